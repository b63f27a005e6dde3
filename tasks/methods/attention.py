"""Attention transfer as a method of a training."""

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
    """Layers of the student look where those of its teacher look (Zagoruyko, Komodakis 2017).

    The teacher is the recipe's ``teacher`` where there is one, else the run's own dense model. Across architectures it
    was seen to hurt.
    """

    learns: ClassVar[bool] = True

    layers: Layers = Field(description="the student's to the teacher's, by names or patterns; a list: the same in both")
    weight: float = Field(1000.0, gt=0, allow_inf_nan=False, description="times the mean squared difference of maps")
    power: float = Field(
        2.0, gt=0, allow_inf_nan=False, description="of absolute values, which are summed over channels"
    )
    axis: int = Field(1, description="of channels; -1 where tokens come first")

    def make(self) -> Method:
        """The method."""
        from deepcompression.distillation.attention import Attention

        return Attention(self.layers, self.weight, self.power, self.axis)

    def fits(self, run: Run, model: nn.Module) -> None:
        """Raises StructureError, before anything trains, where layers are not there or do not go together."""
        refuse_unfit(self.make(), run, model)
