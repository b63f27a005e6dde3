"""Sparse BatchNorm scales as a method of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from tasks.execution.settings import MethodSettings

if TYPE_CHECKING:
    from deepcompression.training.method import Method


class Settings(MethodSettings):
    """A penalty on the scales of BatchNorm, by which filters are pruned afterwards (Liu et al. 2017)."""

    penalty: float = Field(
        1e-4, ge=0, allow_inf_nan=False, description="added to the loss, times the sum of their magnitudes"
    )

    def make(self) -> Method:
        """The method."""
        from deepcompression.pruning.bn_l1 import BnL1

        return BnL1(self.penalty)
