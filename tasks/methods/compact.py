"""Compact weights as a method of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tasks.execution.patterns import SELECTED
from tasks.execution.settings import ByName, MethodSettings

if TYPE_CHECKING:
    from deepcompression.training.method import Method

Penalty = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Settings(MethodSettings):
    """A penalty on the tails of weights, which then need fewer bits (Shkolnik et al. 2020)."""

    penalty: Annotated[Penalty | dict[str, Penalty], ByName, SELECTED] = Field(
        1.0, description="added to the loss, times the mean over tensors"
    )
    by: Literal["kurtosis", "l2"] = Field(
        "kurtosis", description="kurtosis: (kurtosis - target)^2; l2: the mean square, beside what it was at first"
    )
    target: float = Field(1.8, ge=1, allow_inf_nan=False, description="of the kurtosis; evenly spread values have 1.8")

    def make(self) -> Method:
        """The method."""
        from deepcompression.quantization.compact import Compact

        return Compact(self.penalty, self.by, self.target)
