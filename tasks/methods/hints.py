"""Hints as a method of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tasks.execution.settings import MethodSettings
from tasks.methods.taught import Layers, refuse_unfit

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.training.method import Method
    from tasks.execution.run import Run


class Settings(MethodSettings):
    """A layer of the student learns to foretell one of its teacher, through a regressor (FitNets, Romero et al. 2015).

    The teacher is the recipe's ``teacher`` where there is one, else the run's own dense model.
    """

    learns: ClassVar[bool] = True

    layers: Layers = Field(description="the student's to the teacher's, by names or patterns; a list: the same in both")
    weight: float = Field(
        10.0, gt=0, allow_inf_nan=False, description="times half the squared difference, of the teacher's squares"
    )
    until: float | None = Field(
        None, gt=0, lt=1, description="the part of the training in which hints alone are learnt; default: side by side"
    )
    axis: int = Field(1, description="of channels; -1 where tokens come first")

    def make(self) -> Method:
        """The method."""
        from deepcompression.distillation.hints import Hints

        return Hints(self.layers, self.weight, self.until, self.axis)

    def fits(self, run: Run, model: nn.Module) -> None:
        """Raises StructureError, before anything trains, where layers are not there or do not go together."""
        refuse_unfit(self.make(), run, model)
