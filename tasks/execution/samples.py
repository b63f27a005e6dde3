"""What a model gives for a few samples: by it stages see whether an edited model still computes what it should."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tasks.execution.run import Run

SAMPLES = 64
MOST_BATCHES = 8


def outputs(run: Run, model: nn.Module) -> Tensor:
    """What the model gives for some samples of the validation split, where it is; its loss if that is no tensor."""
    import torch

    from deepcompression.training.batches import Batches
    from deepcompression.training.device import Compute
    from deepcompression.training.problem import stepped

    problem = run.problem()
    torch.manual_seed(0)
    loss, outputs, _ = stepped(problem.step, model, next(iter(Batches(problem.validation, SAMPLES, Compute("cpu")))))
    return outputs if isinstance(outputs, torch.Tensor) else loss


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
