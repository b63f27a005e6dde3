"""``lsq``: the step between two values is learned (Esser et al. 2019, arXiv 1902.08153, sections 2.1 to 2.3)."""

from __future__ import annotations

import math

from deepcompression.quantization.ranges.range import First, Integers, Range, Size, or_one
from deepcompression.quantization.straight_through import Grid


class Lsq(Range):
    """It begins as 2 mean(|v|) / sqrt(Q), and its gradient is taken 1 / sqrt(n Q) times (section 2.2)."""

    def __init__(self, first: First, integers: Integers) -> None:
        super().__init__(first, integers)
        most = integers.high
        start = or_one(2 * first.mean / math.sqrt(most)) if first.scale is None else first.scale
        self.step = Size(start, 1 / math.sqrt(first.count * most))

    def grid(self) -> Grid:
        """The present grid."""
        low, high = self.integers.low, self.integers.high
        return Grid(self.step(), low, high, (low, high))
