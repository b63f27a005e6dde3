"""The correction of dropout as a method of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tasks.execution.settings import Dropouts, MethodSettings

if TYPE_CHECKING:
    from deepcompression.training.method import Method


class Settings(MethodSettings):
    """Dropout rates follow the density of the layers that they feed (Han et al. 2015, equation 2)."""

    modules: Dropouts = Field(description="dropout module -> the layer whose sparsity corrects its rate")

    def make(self) -> Method:
        """The method."""
        from deepcompression.training.dropout import DropoutCorrection

        return DropoutCorrection(self.modules)
