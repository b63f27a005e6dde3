"""The divergence of cumulative distributions (KL-J): of the magnitudes that came by, and of those cut and resampled.

Settle et al. (2018), "Quantizing convolutional neural networks for low-power high-throughput inference engines", arXiv
1805.07941, algorithm 1. Of a pair of ends each side of zero has its own distribution, and counts by its share.
"""

from __future__ import annotations

import torch
from torch import Tensor

from deepcompression.quantization.observers.histogram import Histogram
from deepcompression.quantization.observers.ranges import Grids, Wanted
from deepcompression.quantization.observers.search import best

FEWER = 2  # bins of a histogram are one here
LEAST = 1e-6  # of a cumulative share, in a logarithm


def bounds(seen: Histogram, wanted: Wanted) -> tuple[float, float]:
    """The range of the least divergence."""
    return best(seen, wanted, score)


def score(seen: Histogram, some: Grids) -> Tensor:
    """Sum of (c - c') ln(c / c') over bins, (grids,): c the cumulative distribution; c' is 1 from the last bin within
    on, and a straight line between as many points as the grid has integers on this side.
    """
    (below, above), width = seen.sides(FEWER), FEWER * seen.width
    if bool(((some.zero_point == 0) & (some.low < 0)).all()):
        return _divergence(below + above, some.high * some.scale / width, some.high + 1)
    total = (below + above).sum()
    sides = ((below, -some.low), (above, some.high))
    return sum(
        (_divergence(mass, end * some.scale / width, end + 1) * mass.sum() / total for mass, end in sides),
        torch.zeros_like(some.scale),
    )


def _divergence(mass: Tensor, within: Tensor, points: Tensor) -> Tensor:
    """Of one side: ``within`` is how many bins are in range, ``points`` how many the line has, (grids,) both."""
    if not bool(mass.any()):
        return torch.zeros_like(within)
    share = (mass.cumsum(0) / mass.sum())[: int(mass.nonzero().max()) + 1]
    bins = torch.arange(len(share), dtype=torch.float64)
    within = (within - 1e-9).ceil().clamp(0, len(share))[:, None]
    cut = torch.where(bins < within - 1, share, 1.0)
    points = torch.minimum(points[:, None], within).clamp(min=2)
    apart = (within - 1).clamp(min=1) / (points - 1)
    left = torch.minimum((bins / apart).floor(), points - 2)
    first, last = _between(cut, left * apart), _between(cut, (left + 1) * apart)
    line = torch.where(bins < within, first + (last - first) * (bins / apart - left), 1.0)
    return ((share - line) * (share.clamp(min=LEAST) / line.clamp(min=LEAST)).log()).sum(1)


def _between(table: Tensor, places: Tensor) -> Tensor:
    """Values at places between the columns of a table, by straight lines."""
    left = places.floor().clamp(0, table.shape[1] - 1)
    right = (left + 1).clamp(max=table.shape[1] - 1)
    first, last = table.gather(1, left.long()), table.gather(1, right.long())
    return first + (last - first) * (places - left).clamp(0, 1)
