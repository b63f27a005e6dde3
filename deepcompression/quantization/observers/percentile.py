"""All but the outermost values."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcompression.quantization.observers.histogram import BINS, Histogram
from deepcompression.quantization.observers.ranges import Wanted


def bounds(seen: Histogram, wanted: Wanted) -> tuple[float, float]:
    """The range from the (100 - percentile)-th to the percentile-th value, zeros counted; of a symmetric grid the
    percentile-th magnitude. Within a bin values are taken to be evenly spread.
    """
    part, edges = wanted.percentile / 100, seen.edges()
    if seen.signed and wanted.scheme == "symmetric":
        below, above = seen.sides()
        end = min(_at(part, below + above, seen.zeros, edges[BINS:]), max(seen.most, -seen.least))
        return -end, end
    below, above = seen.sides()
    low = -_at(part, below, seen.number - int(below.sum()), edges[BINS:])
    high = _at(part, above, seen.number - int(above.sum()), edges[BINS:])
    return max(low, seen.least), min(high, seen.most)


def _at(part: float, mass: Tensor, before: int, edges: Tensor) -> float:
    """Below which magnitude a part of the values are: ``before`` of them are below the first edge."""
    reached = torch.cat([torch.tensor([float(before)], dtype=torch.float64), before + mass.cumsum(0)])
    wanted = part * float(reached[-1])
    if wanted <= before or not bool(mass.any()):
        return 0.0
    bin = int(torch.searchsorted(reached, wanted)) - 1
    return float(edges[bin] + (edges[bin + 1] - edges[bin]) * (wanted - reached[bin]) / mass[bin])
