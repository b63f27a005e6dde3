"""``minmax``: the grid holds what there is; nothing of it is learned."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcompression.quantization.ranges.range import First, Integers, Range, around_zero, or_one
from deepcompression.quantization.straight_through import Grid, on_grid

MOMENTUM = 0.01  # of the moving averages


class MinMax(Range):
    """From the least to the greatest weight of each forward; of what goes into layers, moving averages of a batch's."""

    least: Tensor
    most: Tensor

    def __init__(self, first: First, integers: Integers) -> None:
        super().__init__(first, integers)
        self.whole = first.whole
        self.register_buffer("least", first.least.float().clone())
        self.register_buffer("most", first.most.float().clone())

    def forward(self, values: Tensor) -> Tensor:
        """The values on the grid that they, too, have had a part in."""
        if self.whole or (self.training and values.numel()):
            self._see(values.detach())
        return on_grid(values, self.grid())

    def grid(self) -> Grid:
        """The present grid."""
        if self.integers.moves:
            scale, low, high = around_zero(self.least.clamp(max=0), self.most.clamp(min=0), self.integers)
        else:
            low, high = self.integers.low, self.integers.high
            scale = or_one(torch.maximum(self.most, -self.least) / high)
        return Grid(scale, low, high, (low, high))

    def _see(self, values: Tensor) -> None:
        over = [axis for axis in range(values.ndim) if not self.least.ndim or self.least.shape[axis] == 1]
        weight = 1.0 if self.whole else MOMENTUM
        for kept, found in ((self.least, values.amin(over)), (self.most, values.amax(over))):
            kept.lerp_(found.float().reshape(kept.shape), weight)
