"""How many samples a batch of evaluation has: as many as memory serves well, found by running one and two of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from deepcompression.training.batches import some
from deepcompression.training.device import Compute
from deepcompression.training.problem import Step, stepped
from deepcompression.training.randomness import kept

MOST = 1000
# What one operation may give. On CPUs larger tensors are taken from the system, and cleared by it, each time: of
# EfficientNet-Lite0 at 100 pictures that is two thirds of all time.
MOST_BYTES = 32 << 20
MOST_BYTES_ELSEWHERE = 2 << 30  # of a GPU's memory, which torch keeps


def evaluated_batch(model: nn.Module, split: Any, step: Step, compute: Compute) -> int:
    """Samples in a batch, 1 to ``MOST``: so many that no operation gives more than ``MOST_BYTES``.

    Where one or two samples cannot be tried (the step fails on them), and where the split brings batches, ``MOST``.
    All random states, and what the user's objects count, are put back.

    Args:
        model: on its device; in eval mode meanwhile.
        split: one of the forms of ``splits.as_split``.
        step: loss, outputs and targets of a batch.
        compute: where the model runs; its ``evaluate_batch``, where there is one, is what comes out.
    """
    if compute.evaluate_batch is not None or isinstance(split, DataLoader):
        return compute.evaluate_batch or MOST
    most = MOST_BYTES if compute.resolved().type == "cpu" else MOST_BYTES_ELSEWHERE
    mode = model.training
    model.eval()
    with suppress(Exception), kept([], split, step):  # what fails here fails in evaluation, where it is told
        one, two = (_given(model, split, step, compute, count) for count in (1, 2))
        each = max((b - a for a, b in zip_longest(one, two, fillvalue=0)), default=0)
        model.train(mode)
        return min(max(most // max(each, 1), 1), MOST)
    model.train(mode)
    return MOST


def _given(model: nn.Module, split: Any, step: Step, compute: Compute, count: int) -> Sequence[int]:
    """Bytes that each operation on the first ``count`` samples gives."""
    batch = next(some(split, count, count, compute))
    watch = _Watch()
    with torch.no_grad(), watch:
        stepped(step, model, batch)
    return watch.given


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how large the results of all operations are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.given: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The operation's own result."""
        result = func(*args, **(kwargs or {}))
        several = result if isinstance(result, tuple | list) else (result,)
        self.given.append(sum(min(one.nbytes, _storage(one)) for one in several if isinstance(one, Tensor)))
        return result


def _storage(tensor: Tensor) -> int:
    """An expanded tensor has fewer bytes than elements."""
    return tensor.untyped_storage().nbytes()
