"""``pact``: what is above a clipping level is cut, and the level is learned (Choi et al. 2018, arXiv 1805.06085, 3)."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from deepcompression.quantization.ranges.range import First, Integers, Range, Size
from deepcompression.quantization.straight_through import Grid


class Pact(Range):
    """For what is never below 0: only values from the level on move it, and its square is added to the loss.

    It begins at the largest value of the samples.
    """

    signed: ClassVar[str | None] = "pact2"

    def __init__(self, first: First, integers: Integers) -> None:
        super().__init__(first, integers)
        self.level = Size(first.size)

    def grid(self) -> Grid:
        """The present grid."""
        level, high = self.level(), self.integers.high
        below = float(torch.nextafter(torch.tensor(float(high)), torch.tensor(-math.inf)))
        return Grid(level.detach() / high, 0, high, (0, below), (torch.zeros_like(level), level))

    def penalty(self) -> Tensor:
        """Its square."""
        level: Tensor = self.level()
        return level.square().sum()
