"""All that came by: from the least value to the greatest."""

from __future__ import annotations

from deepcompression.quantization.observers.histogram import Histogram
from deepcompression.quantization.observers.ranges import Wanted


def bounds(seen: Histogram, wanted: Wanted) -> tuple[float, float]:
    """The range; both ends exact."""
    return seen.least, seen.most
