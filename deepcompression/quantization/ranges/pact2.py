"""``pact2``: PACT on both sides, as in PaddleSlim: values are cut to -a .. a, and a is learned."""

from __future__ import annotations

from deepcompression.quantization.ranges.pact import Pact
from deepcompression.quantization.straight_through import Grid


class Pact2(Pact):
    """As ``pact``, for what is below 0 too; the lowest integer is one step below -a, as in every signed grid."""

    signed = None

    def grid(self) -> Grid:
        """The present grid."""
        level, low, high = self.level(), self.integers.low, self.integers.high
        inside = super().grid().inside
        return Grid(level.detach() / high, low, high, (low, inside[1]), (level * (low / high), level))
