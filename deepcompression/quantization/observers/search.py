"""The best of many ranges: pairs of ends for asymmetric grids, one end for the others; and what a histogram becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from deepcompression.quantization.observers.histogram import Histogram
from deepcompression.quantization.observers.ranges import Grids, Wanted, grids

AT_ONCE = 1 << 17  # elements of a table that is made at a time
Score = Callable[[Histogram, Grids], Tensor]


class Pair(NamedTuple):
    """Two distributions over the bins that have values, one row a grid, each summing to 1: ``cut`` is the histogram,
    what is out of range put into the outermost bin within; ``rounded`` has the mass of all bins that become one integer
    spread evenly over them, without what was out of range. Both are 0 out of range.
    """

    cut: Tensor
    rounded: Tensor


def best(seen: Histogram, wanted: Wanted, score: Score) -> tuple[float, float]:
    """The range whose grid has the lowest score, of those that tie the widest.

    Among ``wanted.steps`` parts of each end; then among as many between the neighbours of the best.

    Args:
        seen: the values.
        wanted: bits, scheme and steps.
        score: of grids, (n,); the lower the better.
    """
    if not seen.width:
        return 0.0, 0.0
    spans = [(0.0, 1.0)] * (2 if _is_pair(seen, wanted) else 1)  # parts of the least and of the greatest value
    for _ in range(2):
        tried = [torch.linspace(last, first, wanted.steps + 1, dtype=torch.float64) for first, last in spans]
        parts = [table.reshape(-1) for table in torch.meshgrid(*tried, indexing="ij")]
        low, high = _ends(seen, wanted, parts)
        scores = torch.cat([score(seen, some) for some in _portions(low, high, seen, wanted)])
        found = int(torch.where(high > low, scores, torch.inf).argmin())
        steps = [(last - first) / wanted.steps for first, last in spans]
        middles = [float(part[found]) for part in parts]
        spans = [(max(at - step, 0.0), min(at + step, 1.0)) for at, step in zip(middles, steps, strict=True)]
    return float(low[found]), float(high[found])


def _is_pair(seen: Histogram, wanted: Wanted) -> bool:
    return wanted.scheme == "asymmetric" and seen.least < 0 < seen.most


def _ends(seen: Histogram, wanted: Wanted, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Lower and upper ends of ranges that are parts of the one that came by."""
    if len(parts) == 2:
        return seen.least * parts[0], seen.most * parts[1]
    ends = max(seen.most, -seen.least) * parts[0]
    return -ends * seen.signed, ends * (seen.most > 0 or wanted.scheme == "symmetric")


def _portions(low: Tensor, high: Tensor, seen: Histogram, wanted: Wanted) -> Iterator[Grids]:
    """The grids, as many at a time as tables have room for."""
    every = grids(low, high, wanted, seen.signed)
    count = max(1, AT_ONCE // max(len(seen.used()[1]), 2**wanted.bits))
    for start in range(0, len(low), count):
        yield Grids(*(one[start : start + count] for one in every))


def distributions(seen: Histogram, some: Grids) -> Pair:
    """What ``Pair`` says, of the values that are not zero: (grids, bins).

    Args:
        seen: the values.
        some: the grids.
    """
    values, mass = seen.filled()
    integers = (values / some.scale[:, None]).round()
    low, high = some.low[:, None], some.high[:, None]
    inside = (integers >= low) & (integers <= high)
    cells = (integers.clamp(low, high) - low).long()
    held = mass * inside
    room = torch.zeros(len(some.scale), int((some.high - some.low).max()) + 1, dtype=torch.float64)
    totals, numbers = room.scatter_add(1, cells, held), room.scatter_add(1, cells, inside.double())
    spread = (totals / numbers.clamp(min=1)).gather(1, cells) * inside
    rows = torch.arange(len(cells))
    first, last = inside.byte().argmax(1), inside.shape[1] - 1 - inside.flip(1).byte().argmax(1)
    cut = held.clone()
    cut[rows, first] += (mass * (integers < low)).sum(1)
    cut[rows, last] += (mass * (integers > high)).sum(1)
    return Pair(cut / mass.sum(), spread / held.sum(1, keepdim=True).clamp(min=1))


def finite(scores: Tensor, pair: Pair) -> Tensor:
    """Scores, infinite where no bin at all is within the range."""
    return torch.where(pair.rounded.any(1), scores, torch.inf)
