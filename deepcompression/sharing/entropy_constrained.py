"""Codebooks that count bits: entropy-constrained scalar quantization, with zero among the candidates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepcompression.errors import StructureError, ValuesError
from deepcompression.sharing.kmeans import kmeans1d

Floats = NDArray[np.float64]
# Zero may be tried where no element is zero: its code is then as long as if half an element were.
LEAST_COUNT = 0.5
WORTH = 0.1  # part of its cost by which a codebook must be better than the one that is there, to take its place


@dataclass(frozen=True)
class RateBook:
    """Levels for the weights of one tensor, and which weights take which.

    Attributes:
        levels: (g,) float64, ascending; 0.0 among them where some value takes it.
        thresholds: (g - 1,) float64, ascending; a value takes ``levels[searchsorted(thresholds, value)]``.
        bits: (g,) float64, the ideal length of each level's code, -log2 of its share of all elements.
    """

    levels: Floats
    thresholds: Floats
    bits: Floats

    def codes(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Which level each of ``values`` (m,) takes."""
        return np.searchsorted(self.thresholds, values)


def rate_codebook(
    values: ArrayLike, k: int, *, rate: float, elements: int, start: RateBook | None = None, iterations: int = 100
) -> RateBook:
    """At most ``k`` centroids and zero, such that squared error + lambda x coded bits is least (a local minimum).

    Alternates between the best assignment for given levels and code lengths, and the best levels (means; zero
    stays zero) and code lengths for given assignments. Lambda is ``rate`` x the mean square of the values, so that
    one rate suits tensors of any scale: 0 is k-means, 0.01 trades little, 0.1 much. Zero's code is as short as zeros
    are frequent among all elements, so that small weights are pruned where their bits are worth more than they.

    Args:
        values: (m,) finite, not all zero: the weights that are not zero.
        k: number of centroids beside zero, 1 to 65,536.
        rate: 0 or more.
        elements: of the whole tensor, at least m; the others are zeros.
        start: the codebook of nearly the same values, a little earlier. One iteration from it is taken, unless what is
            found from optimal k-means costs less by a tenth: minima that differ hardly in their cost differ widely in
            their levels, and weights in training lose what they learned whenever these jump.
        iterations: at most so many, from optimal k-means.

    Raises:
        StructureError: the rate is negative, there is no value, or so high a rate makes every weight zero.

    Chou, Lookabaugh, Gray (1989), "Entropy-constrained vector quantization", for scalars.
    """
    ordered = np.sort(np.asarray(values, np.float64).ravel())
    if not rate >= 0 or not ordered.size or elements < ordered.size:
        raise StructureError(
            f"rate_codebook: rate {rate}, {ordered.size} values of {elements} elements; expected a rate of 0 or more "
            "and at least one value"
        )
    weight = rate * float(np.mean(ordered**2))
    sums = np.stack([np.arange(ordered.size + 1.0), *(np.append(0.0, np.cumsum(ordered**n)) for n in (1, 2))])
    fresh = np.unique(np.append(kmeans1d(ordered, k, init="optimal").centroids.astype(np.float64), 0.0))
    found = _refined(fresh, np.zeros(len(fresh)), ordered, sums, weight, elements, iterations)
    if found is None:
        raise ValuesError(f"rate {rate} would make every weight zero; lower it")
    kept = start and _refined(start.levels, start.bits, ordered, sums, weight, elements, 1)
    return found[0] if not kept or found[1] < (1 - WORTH) * kept[1] else kept[0]


def _refined(
    levels: Floats, lengths: Floats, ordered: Floats, sums: Floats, weight: float, elements: int, iterations: int
) -> tuple[RateBook, float] | None:
    """The local minimum that ``levels`` and code lengths (g,) lead to, and its cost; None if all would be zero."""
    for _ in range(iterations):
        chosen, thresholds = _envelope(levels, weight * lengths)
        used, counts = _means(levels[chosen], thresholds, ordered, sums, elements)
        if not used.any():
            return None
        lengths_now = np.log2(elements / counts)
        if len(used) == len(levels) and np.allclose(used, levels, 1e-6) and np.allclose(lengths_now, lengths, 1e-4):
            break
        levels, lengths = used, lengths_now
    chosen, thresholds = _envelope(levels, weight * lengths)
    book = RateBook(levels[chosen], thresholds, lengths[chosen])
    counts, first, second = _by_level(thresholds, ordered, sums)
    squares = second - 2 * book.levels * first + book.levels**2 * counts
    return book, float(squares.sum() + weight * (counts @ book.bits))


def _by_level(thresholds: Floats, ordered: Floats, sums: Floats) -> Floats:
    """Count, sum and sum of squares (3, g) of what takes each level."""
    return np.diff(sums[:, np.searchsorted(ordered, [-np.inf, *thresholds, np.inf], side="right")], axis=1)


def _means(levels: Floats, thresholds: Floats, ordered: Floats, sums: Floats, elements: int) -> tuple[Floats, Floats]:
    """The mean of what takes each level, of those that something takes, and how much; zero stays, whatever takes it."""
    counts, totals, _ = _by_level(thresholds, ordered, sums)
    is_zero = levels == 0
    others = ~is_zero & (counts > 0)
    zeros = max(float(counts[is_zero].sum()) + elements - ordered.size, LEAST_COUNT)
    # Sums of values many orders of magnitude apart are inexact: means may collide.
    means, first = np.unique(totals[others] / counts[others], return_index=True)
    used, means = counts[others][first][means != 0], means[means != 0]
    place = int(np.searchsorted(means, 0.0))
    return np.insert(means, place, 0.0), np.insert(used, place, zeros)


def _envelope(levels: Floats, penalties: Floats) -> tuple[NDArray[np.int64], Floats]:
    """Which levels some value takes, where level j costs (value - level)^2 + penalty, and the thresholds between.

    The square of the value is common to all; what is left are lines in the value, whose lower envelope this is.
    """
    heights = levels**2 + penalties
    chosen: list[int] = []
    borders: list[float] = []
    for j in range(len(levels)):
        border = -np.inf
        while chosen:
            border = float(heights[j] - heights[chosen[-1]]) / float(2 * (levels[j] - levels[chosen[-1]]))
            if not borders or border > borders[-1]:
                break
            chosen.pop()
            borders.pop()
        if chosen:
            borders.append(border)
        chosen.append(j)
    return np.array(chosen), np.array(borders)
