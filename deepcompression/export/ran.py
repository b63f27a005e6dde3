"""A model that computes in another runtime, for all that takes a model: evaluation, comparison, measuring."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from deepcompression.errors import ExportError, InvariantError
from deepcompression.export.exported import Array, Session
from deepcompression.network.trace import resting


class InRuntime(nn.Module):
    """An exported file in the place of the model that it was made of: same arguments, same structure of outputs.

    Args:
        session: the file in its runtime.
        model: what it was made of, on the CPU; it is called once and not kept.
        sample: what its forward takes by position.
    """

    def __init__(self, session: Session, model: nn.Module, sample: Sequence[Tensor]) -> None:
        super().__init__()
        self.session = session
        self.signature = inspect.signature(model.forward)
        with resting(model), torch.no_grad():
            leaves, self.structure = _pytree.tree_flatten(model(*sample))
        self.tensors = [isinstance(one, Tensor) for one in leaves]
        self.others = [None if is_tensor else one for one, is_tensor in zip(leaves, self.tensors, strict=True)]

    def forward(self, *arguments: Any, **named: Any) -> Any:
        """The outputs as tensors on the CPU.

        Raises:
            ExportError: an argument is no tensor, or sizes of the batch differ.
        """
        given = self.signature.bind(*arguments, **named).arguments.values()
        flat = [part for one in given for part in (one if isinstance(one, tuple) else [one])]  # *arguments are a tuple
        if not all(isinstance(one, Tensor) for one in flat):
            raise ExportError("an exported file takes tensors alone, as arguments of forward")
        found = iter(self._run([one.detach().cpu().numpy() for one in flat]))
        pairs = zip(self.tensors, self.others, strict=True)
        leaves = [torch.from_numpy(next(found)) if is_tensor else other for is_tensor, other in pairs]
        return _pytree.tree_unflatten(leaves, self.structure)

    def _run(self, inputs: list[Array]) -> list[Array]:
        size = self.session.fixed_batch
        if size is None or len(inputs[0]) == size:
            return self.session(inputs)
        count = len(inputs[0])
        parts = [self.session([_of(one, start, size) for one in inputs]) for start in range(0, count, size)]
        return [np.concatenate(some)[:count] for some in zip(*parts, strict=True)]


def _of(array: Array, start: int, size: int) -> Array:
    """So many elements; the last one stands for those that are missing."""
    some = array[start : start + size]
    return np.concatenate([some, np.repeat(some[-1:], size - len(some), axis=0)]) if len(some) < size else some


def difference(target: str, wanted: Array, got: Array, rounding: float) -> float:
    """The largest difference of an output in a runtime to PyTorch's; 0 where it has no elements.

    Args:
        target: its word, for the error.
        wanted: PyTorch's, any shape.
        got: the runtime's.
        rounding: what may differ, as a part of the largest magnitude, 1 at the least.

    Raises:
        InvariantError: another shape, more than that, or NaN.
    """
    if wanted.shape != got.shape:
        raise InvariantError(f"export {target}: an output is {got.shape} instead of {wanted.shape}")
    if not wanted.size:
        return 0.0
    apart = float(np.abs(got.astype(np.float64) - wanted).max())
    allowed = rounding * max(1.0, float(np.abs(wanted.astype(np.float64)).max()))
    if not apart <= allowed:  # nor NaN
        raise InvariantError(
            f"export {target}: an output in its own runtime differs from PyTorch's by {apart:.3g}, where rounding may "
            f"make {allowed:.3g}; nothing was written"
        )
    return apart
