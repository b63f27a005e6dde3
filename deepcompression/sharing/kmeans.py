"""One-dimensional k-means, in numpy: the paper's weight sharing (section 3.1) for millions of values.

Clusters of numbers are intervals, so Lloyd's iteration needs only how many values lie below a border and
what they sum to. Small sets are sorted, which answers that exactly. Large ones are counted into 65,536
bins, with the exact sum of each; a border within a bin takes its part, as if values were evenly spread
there. Codes are exact in both cases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepcompression.errors import StructureError, ValuesError
from deepcompression.sharing.optimal import best_groups
from deepcompression.sharing.points import BINS, Floats, Grid, Points, Series, Values, grid_of, pieces, sorted_points

Init = Literal["linear", "density", "random", "optimal"]
Codes = NDArray[np.unsignedinteger[Any]]
MAX_CENTROIDS = 1 << 16
# Sorting more values than this takes longer than counting them into bins.
LARGE = 1 << 18
CODE_PIECE = 1 << 15
# Dynamic programming up to this k; beyond it the asymptotic density of centroids is as good.
OPTIMAL_MOST = 512
# Steps of Lloyd's iteration after dynamic programming, whose start has little left to gain.
OPTIMAL_ITERATIONS = 100
# A cluster with less of a value than this is empty; parts of bins can be that small.
LEAST = 1e-6


@dataclass(frozen=True)
class Codebook:
    """Centroids and which of them each value takes.

    Attributes:
        centroids: (g,) float32, ascending, distinct, each in use; g <= k.
        codes: (n,) uint8, or uint16 where there are more than 256 centroids.
        squared_error: sum over the values of (value - its centroid)^2.
    """

    centroids: Values
    codes: Codes
    squared_error: float


def kmeans1d(values: ArrayLike, k: int, *, init: Init = "linear", seed: int = 0, iterations: int = 1000) -> Codebook:
    """The codebook of at most ``k`` centroids that Lloyd's iteration reaches from ``init``.

    Once the others have settled, a centroid that no value takes goes to the cluster with the largest
    squared error, which is split at its mean. With at most ``k`` distinct values the codebook is exact. A
    value in the middle between two centroids takes the lower one.

    Args:
        values: any real array, read flat, as float32.
        k: number of centroids, 1 to 65,536.
        init: ``linear`` (evenly between minimum and maximum), ``density`` (evenly in the cumulative
            distribution), ``random`` (values drawn without replacement) or ``optimal`` (dynamic programming;
            for k > 512 the asymptotically optimal density of centroids).
        seed: of ``random``.
        iterations: at most so many.

    Raises:
        StructureError: ``k``, ``init`` or ``iterations`` is impossible, or a value is not finite.

    Section 3.1 of Han, Mao, Dally (2016), arXiv 1510.00149.
    """
    flat = np.asarray(values).astype(np.float32, copy=False).ravel()
    check_finite(flat)
    return _coded(flat, nearest1d(flat, k, init=init, seed=seed, iterations=iterations))


def nearest1d(values: Series, k: int, *, init: Init = "linear", seed: int = 0, iterations: int = 1000) -> Nearest:
    """The centroids of ``kmeans1d``, without the codes: what tells which of them a value takes.

    Args:
        values: (n,) finite, read in slices where there are many: so they need not be in memory as float32.
        k: as the others, of ``kmeans1d``.

    Raises:
        StructureError: as ``kmeans1d``.
    """
    check(k, init, iterations)
    grid = grid_of(values, k) if len(values) >= LARGE else None
    points = sorted_points(values) if grid is None else grid.points
    if len(points.keys) <= k:
        return Nearest(points.keys)
    borders = middles(started(points, values, k, init, seed))
    if init == "optimal":
        iterations = min(iterations, OPTIMAL_ITERATIONS)
    means = _lloyd(points if grid is None else grid, points, borders, k, iterations)
    return Nearest(means, grid)


def means_of(points: Points, k: int, iterations: int = OPTIMAL_ITERATIONS) -> Floats:
    """At most ``k`` centroids, ascending, of values that were counted: as ``kmeans1d`` with ``optimal`` finds them.

    Args:
        points: the distinct values, or what stands for several.
        k: number of centroids.
        iterations: at most so many.
    """
    if len(points.keys) <= k:
        return points.keys
    gaps = np.diff(points.keys, prepend=-np.inf, append=np.inf)
    start = _optimal(points, k, 1, np.minimum(gaps[1:], gaps[:-1]))  # one value far away is not wide
    return _lloyd(points, points, middles(start), k, iterations)


def check(k: int, init: str, iterations: int) -> None:
    """Raises StructureError where one of these is impossible.

    Args:
        k: of centroids.
        init: where they begin.
        iterations: at most so many.
    """
    if not 1 <= k <= MAX_CENTROIDS:
        raise StructureError(f"kmeans1d: k must be 1 to {MAX_CENTROIDS:,}, got {k}")
    if init not in get_args(Init):
        raise StructureError(f"kmeans1d: init must be one of {', '.join(get_args(Init))}, got {init!r}")
    if iterations < 1:
        raise StructureError(f"kmeans1d: iterations must be at least 1, got {iterations}")


def check_finite(values: Values) -> None:
    """Raises StructureError where one of ``values`` (n,) is NaN or infinite."""
    if not np.isfinite(values).all():
        bad = len(values) - np.count_nonzero(np.isfinite(values))
        raise ValuesError(f"kmeans1d: values must be finite in float32; {bad} of {len(values)} are not")


def started(points: Points, values: Series, k: int, init: Init, seed: int, times: int = 1) -> Floats:
    """First centroids, at most k, ascending.

    Args:
        points: the distinct values.
        values: all of them, any order.
        k: number of centroids.
        init: as of ``kmeans1d``.
        seed: of ``random``.
        times: as of ``best_groups``.
    """
    if init == "linear":
        return np.linspace(float(values.min()), float(values.max()), k)
    if init == "density":
        ranks = (np.arange(k) + 0.5) / k * len(values)
        return np.take(points.keys, np.searchsorted(points.before[0, 1:], ranks))
    if init == "random":
        generator = np.random.default_rng(seed)
        drawn = generator.choice(len(values), min(k, len(values)), replace=False, shuffle=False)
        return np.unique(values[drawn]).astype(np.float64)
    return _optimal(points, k, times, np.gradient(points.keys))


def _optimal(points: Points, k: int, times: int, widths: Floats) -> Floats:
    if k > OPTIMAL_MOST:
        return _coarsened(points, k, widths).keys
    coarse = _coarsened(points, max(2048, 8 * k), widths)
    centre = points.before[1, -1] / points.before[0, -1]
    starts = best_groups(coarse.counts, coarse.sums - centre * coarse.counts, k, times)
    return np.add.reduceat(coarse.sums, starts) / np.add.reduceat(coarse.counts, starts)


def _coarsened(points: Points, count: int, widths: Floats) -> Points:
    """Neighbours merged into at most ``count`` points, dense where the best centroids are: as density^(1/3).

    (Panter and Dite 1951.) A point of width w and count c has density c / w, so its share is c^(1/3) w^(2/3).
    """
    if len(points.keys) <= count:
        return points
    share = np.cumsum(np.cbrt(points.counts * widths**2))
    group = np.minimum(share / share[-1] * count, count - 1).astype(np.int64)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    return Points(np.add.reduceat(points.counts, starts), np.add.reduceat(points.sums, starts))


def middles(centroids: Floats) -> Floats:
    """Between neighbours (k - 1,)."""
    middles: Floats = (centroids[1:] + centroids[:-1]) / 2
    return middles


def _lloyd(data: Points | Grid, points: Points, borders: Floats, k: int, iterations: int) -> Floats:
    """Means (k,) of the clusters when their borders stand still; ``points`` must be more than k."""
    for step in range(iterations):
        clusters = _clusters(data, borders)
        full = clusters[0] >= LEAST
        # A bin's sum is exact but its even spread is not: a tiny part of one could have its mean elsewhere.
        means: Floats = np.clip(
            clusters[1, full] / clusters[0, full],
            np.append(-np.inf, borders)[full],
            np.append(borders, np.inf)[full],
        )
        last, borders = borders, middles(means)
        still = len(last) == len(borders) and np.abs(borders - last).max(initial=0) <= data.tolerance
        if still and len(means) == k:
            break
        # Errors are worth comparing only when clusters have settled: filling at once ends higher.
        if len(means) < k and (still or step == iterations // 2):
            borders = filled(points, borders, k)
    return means


def _clusters(data: Points | Grid, borders: Floats) -> Floats:
    """Counts and sums (2, b + 1) between borders."""
    clusters: Floats = np.diff(np.column_stack([np.zeros(2), data.below(borders), data.all]))
    return clusters


def filled(points: Points, borders: Floats, k: int) -> Floats:
    """Borders (k - 1,) with points between all of them: the worst clusters are halved at their means.

    Args:
        points: more than k.
        borders: fewer, or with nothing between some.
        k: number of clusters.
    """
    ends = np.concatenate([[0], np.searchsorted(points.keys, borders, side="right"), [len(points.keys)]])
    ends = np.unique(ends)
    while (missing := k + 1 - len(ends)) > 0:
        means = np.diff(points.before[1, ends]) / np.diff(points.before[0, ends])
        errors = points.counts * (points.keys - np.repeat(means, np.diff(ends))) ** 2
        spread = np.where(np.diff(ends) > 1, np.add.reduceat(errors, ends[:-1]), -1)
        worst = np.argsort(-spread, kind="stable")[: min(missing, np.count_nonzero(spread >= 0))]
        cuts = np.searchsorted(points.keys, means[worst], side="right")
        # Rounding may place the mean of two neighbouring values on one of them.
        ends = np.union1d(ends, np.clip(cuts, ends[worst] + 1, ends[worst + 1] - 1))
    filled: Floats = (points.keys[ends[1:-1] - 1] + points.keys[ends[1:-1]]) / 2
    return filled


def limits_of(centroids: Values) -> Values:
    """The highest float32 (k,) in each cluster: not above the middle to the next centroid; last infinity."""
    infinity = np.float32(np.inf)
    middle = middles(centroids.astype(np.float64))
    near = middle.astype(np.float32)
    return np.append(np.where(near > middle, np.nextafter(near, -infinity), near), infinity)


class Nearest:
    """Which of some centroids a value takes, exactly: the nearest, in the middle between two the lower one.

    centroids: (g,) float32, ascending, distinct; rounding may have left some that no value takes.
    """

    def __init__(self, means: Floats, grid: Grid | None = None) -> None:
        """Of means, ascending; grid: into which the values that will be asked for were counted, if they were."""
        self.centroids: Values = np.unique(means.astype(np.float32))
        self._limits, self._grid = limits_of(self.centroids), grid
        # Limits in lower bins are passed for certain; those in a value's own bin, mostly one at most, are
        # compared.
        within = np.bincount(grid.bin_of(self._limits[:-1]), minlength=BINS) if grid else np.zeros(1, np.int64)
        self._compared = int(within.max())
        self._passed: Codes = (np.cumsum(within) - within).astype(np.uint8 if len(self.centroids) <= 256 else np.uint16)

    def codes(self, values: Values) -> Codes:
        """The place of its centroid for each of ``values`` (n,)."""
        codes: Codes = np.empty(len(values), self._passed.dtype)
        for piece in pieces(len(values), CODE_PIECE):
            part, found = values[piece], codes[piece]
            found[:] = self._passed.take(self._grid.bin_of(part)) if self._grid else np.searchsorted(self._limits, part)
            for _ in range(self._compared):
                found += part > self._limits.take(found)
        return codes


def codebook(values: Values, means: Floats) -> Codebook:
    """Exact codes and error for the rounded means; those that rounding left without a value go.

    Args:
        values: (n,).
        means: ascending.
    """
    return _coded(values, Nearest(means))


def _coded(values: Values, nearest: Nearest) -> Codebook:
    centroids, codes = nearest.centroids, nearest.codes(values)
    exact = centroids.astype(np.float64)
    used, error = np.zeros(len(centroids), np.int64), 0.0
    for piece in pieces(len(values), CODE_PIECE):
        used += np.bincount(codes[piece], minlength=len(centroids))
        error += float(np.square(values[piece] - exact.take(codes[piece])).sum())
    if not used.all():
        kept = np.flatnonzero(used)
        centroids, codes = centroids[kept], np.searchsorted(kept, codes).astype(codes.dtype)
    return Codebook(centroids, codes, error)
