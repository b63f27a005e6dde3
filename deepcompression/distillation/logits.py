"""Distillation: a student that trains also learns what a teacher thinks of every class."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.data.batch import copied
from deepcompression.errors import FactoryError
from deepcompression.training.device import Compute
from deepcompression.training.problem import Problem, Step, stepped


def distilled(
    problem: Problem,
    teacher: nn.Module,
    *,
    temperature: float = 4.0,
    weight: float = 0.5,
    compute: Compute | None = None,
) -> Problem:
    """``problem`` whose training loss is (1 - weight) x its own + weight x the teacher's; it validates as before.

    The teacher's is temperature^2 x KL(softmax(teacher / temperature) || softmax(student / temperature)), on the same
    (augmented) batch, so that its gradient keeps its size at any temperature.

    Args:
        problem: its step's outputs must be logits, classes in dimension 1.
        teacher: placed on the device, in eval mode, and never trained.
        temperature: above 0; 1 to 10 are usual.
        weight: 0 to 1.
        compute: where the teacher computes, and in which precision.

    Raises:
        FactoryError: when training begins, where outputs are no logits, or of another shape than the teacher's.

    Hinton, Vinyals, Dean (2015), arXiv 1503.02531.
    """
    compute = compute or Compute()
    compute.place(teacher).eval().requires_grad_(False)
    return replace(problem, train_step=_step(problem.step, teacher, temperature, weight))


def _step(step: Step, teacher: nn.Module, temperature: float, weight: float) -> Step:
    def both(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        again = copied(batch)  # a step may take parts out of its batch
        loss, outputs, targets = stepped(step, model, batch)
        with torch.no_grad():
            wanted = stepped(step, teacher, again)[1]
        return (1 - weight) * loss + weight * divergence(outputs, wanted, temperature), outputs, targets

    return both


def divergence(outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """temperature^2 x the mean over samples of KL(teacher || student), from logits (n, classes, ...) of both."""
    for one in (outputs, wanted):
        if not isinstance(one, Tensor) or one.ndim < 2 or one.shape != getattr(wanted, "shape", None):
            shapes = [tuple(getattr(each, "shape", ())) for each in (outputs, wanted)]
            raise FactoryError(
                f"distil: the step's outputs must be logits (n, classes) of student and teacher alike, got {shapes}"
            )
    student = (outputs.float() / temperature).log_softmax(1)
    teacher = (wanted.float() / temperature).log_softmax(1)
    each = nn.functional.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
    return temperature**2 * each.mean()
