"""Sharing while training as a method of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from tasks.execution.patterns import RESOLVED, SELECTED
from tasks.execution.settings import Bits, ByName, MethodSettings, Rate, table_of

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.structure.constraints import Structure
    from deepcompression.training.method import Method


class Settings(MethodSettings):
    """Weights take few values while they train (straight-through); codes are drawn anew and come to rest."""

    bits: Annotated[Bits | dict[str, Bits], ByName, SELECTED] = 5
    rate: Annotated[Rate | dict[str, Rate], ByName, RESOLVED] = Field(
        0.0, description="what a coded bit is worth, as a fraction of the weights' mean square"
    )

    def leaves(self, model: nn.Module) -> Structure:
        """Shared values."""
        from deepcompression.network.names import resolve
        from deepcompression.structure.constraints import structured

        names = resolve(model, table_of(self.bits))
        return structured(names, names)

    def make(self) -> Method:
        """The method."""
        from deepcompression.sharing.reassign import TrainedSharing

        return TrainedSharing(self.bits, self.rate)
