"""Values of which k-means asks how many lie below a border, and what they sum to: sorted, or counted into bins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Values = NDArray[np.float32]
BINS = 1 << 16
_PIECE = 1 << 18
_SORTED, _FEW = 1 << 19, 1 << 17  # values at a time, and distinct ones that are merged


class Series(Protocol):
    """Values (n,): an array of float32, or what gives one for every slice or choice of places."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: Any, /) -> Values: ...

    def min(self) -> Any:
        """The least one."""

    def max(self) -> Any:
        """The greatest one."""


class Points:
    """Distinct points (m,), ascending, each standing for some values: their count, mean and sum."""

    tolerance = 0.0

    def __init__(self, counts: NDArray[Any], sums: Floats) -> None:
        self.counts, self.sums = counts.astype(np.float64), sums
        self.keys = sums / self.counts
        self.before = np.zeros((2, len(sums) + 1))
        np.cumsum([self.counts, sums], axis=1, out=self.before[:, 1:])
        self.all = self.before[:, -1]

    def below(self, borders: Floats) -> Floats:
        """Count and sum (2, b) of the values up to each border."""
        return self.before[:, np.searchsorted(self.keys, borders, side="right")]


class Grid:
    """Values counted into an even grid of bins; bins keep the order of the values."""

    def __init__(self, values: Series, low: np.float32, per_unit: np.float32) -> None:
        self.low, self.per_unit, self.width = low, per_unit, 1 / float(per_unit)
        self.tolerance = self.width / 256
        self.counts, sums = np.zeros(BINS, np.int64), np.zeros(BINS)
        for piece in pieces(len(values), _PIECE):
            part = values[piece]
            bins = self.bin_of(part)
            self.counts += np.bincount(bins, minlength=BINS)
            sums += np.bincount(bins, weights=part, minlength=BINS)
        used = self.counts > 0
        self.points = Points(self.counts[used], sums[used])
        self.all = self.points.all
        self.first = np.append(0, np.cumsum(used))

    def bin_of(self, values: Values) -> NDArray[np.int64]:
        """Bins of values in the range; rounding keeps their order, truncation the highest one below BINS."""
        return ((values - self.low) * self.per_unit).astype(np.int64)

    def below(self, borders: Floats) -> Floats:
        """Count and sum (2, b) of the values up to each border, the values of a bin evenly spread."""
        place = (borders - self.low) * float(self.per_unit)
        whole = place.astype(np.int64)
        part = (place - whole) * self.counts[whole]
        middle = (borders + self.low + whole * self.width) / 2
        return np.take(self.points.before, self.first[whole], axis=1) + np.stack([part, part * middle])


def grid_of(values: Series, k: int) -> Grid | None:
    """The grid; None where it would be too coarse for k: crowded bins, or few in use."""
    low, high = values.min(), values.max()
    with np.errstate(over="ignore", divide="ignore"):
        per_unit = np.float32(BINS - 1) / (high - low)
    if not 0 < per_unit < np.inf:
        return None
    grid = Grid(values, low, per_unit)
    crowded = grid.counts.max() * 256 > len(values) or len(grid.points.keys) < 16 * k
    return None if crowded else grid


def sorted_points(values: Series) -> Points:
    """The distinct ones of ``values`` (n,); where they are few, in pieces, which takes no memory to speak of."""
    keys, counts = _distinct(values[:_SORTED])
    for at in range(_SORTED, len(values), _SORTED):
        if len(keys) > _FEW:
            keys, counts = _distinct(values[:])
            break
        keys, counts = _merged(keys, counts, *_distinct(values[at : at + _SORTED]))
    return Points(counts, counts.astype(np.float64) * keys)


def _distinct(values: Values) -> tuple[Values, NDArray[np.int64]]:
    """The distinct ones, ascending, and how often each occurs."""
    ordered = np.sort(values)
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]
    return ordered[first], np.diff(np.flatnonzero(first), append=len(ordered))


def _merged(
    keys: Values, counts: NDArray[np.int64], others: Values, more: NDArray[np.int64]
) -> tuple[Values, NDArray[np.int64]]:
    """The same of two sets of values together."""
    every, place = np.unique(np.concatenate([keys, others]), return_inverse=True)
    return every, np.bincount(place, np.concatenate([counts, more])).astype(np.int64)


def pieces(length: int, size: int) -> Iterator[slice]:
    """Consecutive slices whose intermediate results stay in a processor's cache."""
    return (slice(start, start + size) for start in range(0, length, size))
