"""How many times smaller to try next, where nothing trains: what is lost grows steadily as fewer bits are left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

FIRST = 6.0
BEND = 32 * math.log(4)  # of ln(loss) over 1 / ratio: the square of what rounding changes, of float32
BENDS = BEND / 2, BEND * 3  # that two results are believed to tell
FURTHER = 1.6  # times as small as what is kept, at most
LEAP = 2.0  # the same, while nothing is lost
NEARER = 1.08  # and at least
CLOSE = 1.05  # what is kept and what is not are so near that nothing is left to gain
INSIDE = 0.2  # of the way between them that is kept from either
SURELY = 0.9  # of the loss that is allowed is aimed at
LEAST = 0.01  # of it: a loss that is smaller tells nothing


@dataclass(frozen=True)
class Tried:
    """How many times smaller a file is than the dense model, what is lost, and whether that is little enough."""

    ratio: float
    loss: float
    kept: bool


def next_ratio(most: float, tried: Sequence[Tried], first: float = FIRST) -> float | None:
    """The ratio to try next; None where what is kept is as near to what is not as is worth a try.

    Args:
        most: loss that is allowed, above 0.
        tried: in any order; what needs no samples may be among them.
        first: of the first.
    """
    kept = max((one.ratio for one in tried if one.kept), default=None)
    lost = min((one.ratio for one in tried if not one.kept and one.ratio > (kept or 0)), default=None)
    if kept is not None and lost is not None and lost / kept < CLOSE:
        return None
    if not tried:
        return first
    low, high = _bounds(kept, lost, first)
    return min(max(_guess(most, tried, first), low), high)


def _bounds(kept: float | None, lost: float | None, first: float) -> tuple[float, float]:
    if kept is None:
        assert lost is not None
        return lost / FURTHER, lost / NEARER
    if lost is None:
        return kept * NEARER, max(kept * LEAP, first)
    apart = math.log(lost / kept)
    return kept * math.exp(INSIDE * apart), lost * math.exp(-INSIDE * apart)


def _guess(most: float, tried: Sequence[Tried], first: float) -> float:
    """Where the loss comes to what is allowed, by the result that is nearest to it and the bend of the nearest two."""
    telling = [one for one in tried if math.isfinite(one.loss) and one.loss > LEAST * most]
    farthest = max(one.ratio for one in tried)
    if not telling:
        return max(first, LEAP * farthest)
    nearest = sorted(telling, key=lambda one: abs(math.log(one.loss / most)))
    bend = _bend(nearest[0], nearest[1]) if len(nearest) > 1 else BEND
    inverse = 1 / nearest[0].ratio - math.log(SURELY * most / nearest[0].loss) / bend
    return min(1 / max(inverse, 1e-9), FURTHER * farthest)


def _bend(one: Tried, other: Tried) -> float:
    if math.isclose(one.ratio, other.ratio, rel_tol=1e-3):
        return BEND
    found = math.log(one.loss / other.loss) / (1 / other.ratio - 1 / one.ratio)
    return min(max(found, BENDS[0]), BENDS[1])
