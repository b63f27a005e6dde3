"""``learned``: the range itself is a parameter, as in NNCF 2: its size, or its least value and its width."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcompression.quantization.ranges.range import First, Integers, Range, Size, around_zero
from deepcompression.quantization.straight_through import Grid


class Learned(Range):
    """Symmetric: the largest magnitude; else the least and the greatest value, with 0 moved onto the grid.

    They begin at what there is. Their gradients are taken as they come.
    """

    def __init__(self, first: First, integers: Integers) -> None:
        super().__init__(first, integers)
        if integers.moves:
            width = first.most.clamp(min=0) - first.least.clamp(max=0)
            self.below = Size(torch.maximum(-first.least, width / 1024))
            self.above = Size(torch.maximum(first.most, width / 1024))
        else:
            self.size = Size(first.size if first.scale is None else first.scale * integers.high)

    def grid(self) -> Grid:
        """The present grid."""
        if not self.integers.moves:
            low, high = self.integers.low, self.integers.high
            return Grid(self.size() / high, low, high, (low, high))
        least, most = -self.below(), self.above()
        scale, low, high = around_zero(least, most, self.integers)
        return Grid(scale, low, high, (low, high), (_as(least, low * scale), _as(most, high * scale)))


def _as(trained: Tensor, value: Tensor) -> Tensor:
    """``value``, whose gradient is ``trained``'s."""
    return trained + (value - trained).detach()
