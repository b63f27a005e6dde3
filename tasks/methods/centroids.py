"""Trained quantization as a method of a training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.execution.settings import MethodSettings

if TYPE_CHECKING:
    from deepcompression.training.method import Method


class Settings(MethodSettings):
    """Centroids of shared weights follow the summed gradient of their weights (section 3.3)."""

    def make(self) -> Method:
        """The method."""
        from deepcompression.sharing.centroids import Centroids

        return Centroids()
