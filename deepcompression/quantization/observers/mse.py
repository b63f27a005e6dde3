"""The mean of the squared rounding and clipping errors."""

from __future__ import annotations

from torch import Tensor

from deepcompression.quantization.observers.histogram import Histogram
from deepcompression.quantization.observers.ranges import Grids, Wanted
from deepcompression.quantization.observers.search import best


def bounds(seen: Histogram, wanted: Wanted) -> tuple[float, float]:
    """The range of the least error."""
    return best(seen, wanted, score)


def score(seen: Histogram, some: Grids) -> Tensor:
    """The mean squared error, (grids,), values evenly spread in each bin: an integral, exact however fine the grid is.

    With k the integer that x becomes, k s^3 / 12 + (x - k s)^3 / 3 is continuous where k changes, and its slope is the
    squared error of x.
    """
    edges, mass = seen.used()
    scale = some.scale[:, None]
    integers = (edges / scale).round().clamp(some.low[:, None], some.high[:, None])
    integral = integers * scale**3 / 12 + (edges - integers * scale) ** 3 / 3
    return (integral.diff(dim=1) / seen.width) @ mass / seen.number
