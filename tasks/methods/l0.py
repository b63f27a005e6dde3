"""L0 regularisation as a method of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tasks.execution.patterns import SELECTED
from tasks.execution.settings import ByName, MethodSettings

if TYPE_CHECKING:
    from deepcompression.training.method import Method

Penalty = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(MethodSettings):
    """Gates that learn whether they are open decide which weights stay (Louizos et al. 2018)."""

    penalty: Annotated[Penalty | dict[str, Penalty], ByName, SELECTED] = Field(
        10.0, description="added to the loss, times the expected density"
    )
    granularity: Literal["weight", "filter"] = Field("weight", description="what has a gate of its own")
    start: float = Field(0.99, gt=0, lt=1, description="expected density at the first step")
    speed: float = Field(50.0, gt=0, allow_inf_nan=False, description="the gates' learning rate, as a multiple of lr")

    def make(self) -> Method:
        """The method."""
        from deepcompression.pruning.l0 import L0

        return L0(self.penalty, self.granularity, self.start, self.speed)
