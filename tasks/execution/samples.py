"""What a model gives for a few samples: by it stages see whether an edited model still computes what it should."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepcompression.training.device import Compute
    from tasks.execution.run import Run

Feed = Callable[[], Iterable[Any]]
Forward = Callable[[Any, Any], Any]
BATCH = 16  # samples at a time
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


def samples(run: Run, count: int, seed: int, batch: int = BATCH) -> tuple[Compute, Feed, Forward]:
    """Where models run; what gives the same samples of the training split at each call; what runs a model on some.

    Args:
        run: whose data and step.
        count: of samples.
        seed: of the choice.
        batch: samples at a time.
    """
    from deepcompression.data.splits import drawn
    from deepcompression.training.context import context_of

    problem = run.problem(min(batch, count))
    context = context_of(replace(problem, train=drawn(problem.train, count, seed)), run.compute(), seed)

    def feed() -> Iterable[Any]:
        run.rewind()  # a loader that draws an order draws the same in each pass
        return context.batches("reconstruct", count)

    return context.compute, feed, context.forward


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
