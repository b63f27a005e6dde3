"""What a model gives for a few samples: by it stages see whether an edited model still computes what it should."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tasks.execution.run import Run

SAMPLES = 64
MOST_BATCHES = 8
FEWEST, NUMBERS = 4, 1_000_000  # samples at least; numbers that are enough, of which a large picture has a seventh


def outputs(run: Run, model: nn.Module) -> Tensor:
    """What the model gives for some samples of the validation split, where it is; its loss if that is no tensor."""
    import torch

    from deepcompression.training.problem import stepped

    problem = run.problem()
    torch.manual_seed(0)
    loss, outputs, _ = stepped(problem.step, model, few(problem.validation))
    return outputs if isinstance(outputs, torch.Tensor) else loss


def few(split: Any) -> Any:
    """The first samples of a split, as one batch; of large ones fewer, for a model is run on them many times.

    Args:
        split: tensors, a dataset, or a DataLoader, whose first batch it is.
    """
    from torch.utils.data import DataLoader

    from deepcompression.training.batches import Batches
    from deepcompression.training.device import Compute

    def first(count: int) -> Any:
        return next(iter(Batches(split, count, Compute("cpu"))))

    found = first(FEWEST)
    count = min(SAMPLES, NUMBERS // max(_numbers(found) // FEWEST, 1))
    return found if isinstance(split, DataLoader) or count <= FEWEST else first(count)


def _numbers(value: Any) -> int:
    """How many numbers are in the tensors of a batch."""
    from deepcompression.data.batch import parts

    if hasattr(value, "numel"):
        return int(value.numel())
    return sum(map(_numbers, parts(value) or []))


def passes(run: Run, model: nn.Module) -> Iterator[None]:
    """Runs the model on samples of the validation split, a batch a step.

    Args:
        run: whose split and step these are.
        model: in whatever mode it is.
    """
    from deepcompression.training.batches import Batches
    from deepcompression.training.device import Compute
    from deepcompression.training.problem import stepped

    problem = run.problem()
    for batch in Batches(problem.validation, SAMPLES, Compute("cpu"), most=MOST_BATCHES):
        stepped(problem.step, model, batch)
        yield
