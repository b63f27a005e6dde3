"""Distillation: a student that trains also learns what a teacher thinks of every class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deepcompression.errors import FactoryError, StructureError
from deepcompression.training.method import Context, Method


@dataclass(eq=False)
class Distillation(Method):
    """The training loss is (1 - weight) x the model's own + weight x the teacher's; validation is as before.

    The teacher's is temperature^2 x KL(softmax(teacher / temperature) || softmax(student / temperature)), on the same
    (augmented) batch, so that its gradient keeps its size at any temperature. Outputs must be logits, classes in
    dimension 1.

    Args:
        temperature: above 0; 1 to 10 are usual.
        weight: the teacher's part of the loss, 0 to 1.

    Hinton, Vinyals, Dean (2015), arXiv 1503.02531.
    """

    name: ClassVar[str] = "distil"
    learns: ClassVar[bool] = True
    temperature: float = 4.0
    weight: float = 0.5

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Takes the teacher.

        Raises:
            StructureError: there is none; or temperature or weight are impossible.
        """
        if not self.temperature > 0 or not 0 <= self.weight <= 1:
            got = f"{self.temperature} and {self.weight}"
            raise StructureError(f"distil: expected a temperature above 0 and a weight from 0 to 1, got {got}")
        if context.teacher is None:
            raise StructureError("distil needs a teacher; give attach() or train() teacher=")
        self._teacher, self._sum, self._count = context.teacher, torch.zeros(()), 0
        return []

    def loss(self, loss: Tensor, model: nn.Module, batch: Any, outputs: Any) -> Tensor:
        """The mixture.

        Args:
            loss: of the task.
            model: the student.
            batch: its inputs go to the teacher too.
            outputs: of the student.

        Raises:
            FactoryError: outputs are no logits, or of another shape than the teacher's.
        """
        learnt = divergence(outputs, self._teacher(batch), self.temperature)
        self._sum, self._count = self._sum.to(learnt.device) + learnt.detach(), self._count + 1
        return (1 - self.weight) * loss + self.weight * learnt

    def figures(self, model: nn.Module) -> dict[str, float]:
        """The mean of the teacher's loss since the last epoch."""
        mean = float(self._sum) / max(self._count, 1)
        self._sum, self._count = torch.zeros(()), 0
        return {"loss": mean}


def divergence(outputs: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """temperature^2 x the mean over samples of KL(teacher || student), from logits (n, classes, ...) of both.

    Args:
        outputs: the student's.
        wanted: the teacher's, of the same shape.
        temperature: both are divided by it.

    Raises:
        FactoryError: they are no logits, or of different shapes.
    """
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
