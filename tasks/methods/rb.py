"""RB sparsity as a method of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from deepcompression.training.ramps import TOLERANCE
from tasks.execution.patterns import NAMED
from tasks.execution.pruned_by import Curve, Tolerance
from tasks.execution.settings import Density, MethodSettings

if TYPE_CHECKING:
    from deepcompression.training.method import Method


class Settings(MethodSettings):
    """Random binary gates that learn which weights stay, held to one density of all together (NNCF's RB)."""

    density: Density = Field(description="of all weights together, about; which layer gives how much is learnt")
    layers: Annotated[list[str] | None, NAMED] = Field(
        None, min_length=1, description="names of tensors or patterns; default: all prunable ones"
    )
    ramp: float = Field(0.7, gt=0, le=1, description="fraction of the training in which the level falls")
    curve: Curve = Field("exponential", description="along which the level falls")
    tolerance: Tolerance = TOLERANCE
    width: float = Field(0.05, gt=0, allow_inf_nan=False, description="distance from the level that costs 1")
    speed: float = Field(50.0, gt=0, allow_inf_nan=False, description="the gates' learning rate, as a multiple of lr")

    def make(self) -> Method:
        """The method."""
        from deepcompression.pruning.rb import RB

        layers = None if self.layers is None else tuple(self.layers)
        return RB(self.density, layers, self.ramp, self.width, self.speed, self.curve, self.tolerance)
