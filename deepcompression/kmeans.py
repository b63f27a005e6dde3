"""One-dimensional k-means, in numpy: the paper's weight sharing (section 3.1) for millions of values.

Small sets are sorted and Lloyd's iteration is exact from the start. Large ones are first counted into 65,536 bins, on
which the iteration runs to its end; then the bins at the borders between clusters are opened, only their values sorted,
and the iteration goes on until every border lies among single values: a fixed point of the exact iteration too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepcompression.errors import StructureError
from deepcompression.partition import best_groups

Init = Literal["linear", "density", "random", "optimal"]
Floats = NDArray[np.float64]
Values = NDArray[np.float32]
MAX_CENTROIDS = 1 << 16
BINS = 1 << 16
# From here on bins are faster than sorting everything.
LARGE = 1 << 17
# Dynamic programming: largest k; beyond it the asymptotic density of centroids is as good.
OPTIMAL_MOST, OPTIMAL_POINTS = 512, 2048


@dataclass(frozen=True)
class Codebook:
    """Centroids and which of them each value takes.

    Attributes:
        centroids: (g,) float32, ascending, distinct, each in use; g <= k.
        codes: (n,) uint8, or uint16 where there are more than 256 centroids.
        squared_error: sum over the values of (value - its centroid)^2.
    """

    centroids: Values
    codes: NDArray[np.unsignedinteger[Any]]
    squared_error: float


def kmeans1d(
    values: ArrayLike, k: int, *, init: Init = "linear", seed: int = 0, iterations: int = 1000
) -> Codebook:
    """The codebook of at most ``k`` centroids that Lloyd's iteration reaches from ``init``.

    A centroid that no value takes is moved into the cluster with the largest squared error, which it splits at its
    mean. With at most ``k`` distinct values the codebook is exact. A value in the middle between two centroids takes
    the lower one.

    Args:
        values: any real array, read flat, as float32.
        k: number of centroids, 1 to 65,536.
        init: ``linear`` (evenly between minimum and maximum), ``density`` (evenly in the cumulative distribution),
            ``random`` (values drawn without replacement) or ``optimal`` (dynamic programming; for k > 512 the
            asymptotically optimal density of centroids).
        seed: of ``random``.
        iterations: at most so many.

    Raises:
        StructureError: ``k`` or ``init`` is impossible, or a value is not finite.

    Section 3.1 of Han, Mao, Dally (2016), arXiv 1510.00149.
    """
    _check(k, init)
    flat = np.asarray(values).astype(np.float32, copy=False).ravel()
    if not np.isfinite(flat).all():
        raise StructureError(f"kmeans1d: values must be finite in float32; {np.sum(~np.isfinite(flat))} are not")
    bins = _binned(flat, k) if len(flat) >= LARGE else None
    points = _sorted_points(flat) if bins is None else _bin_points(bins)
    if len(points.keys) <= k:
        return _codebook(flat, points.keys, None)
    centroids = _lloyd(points, _start(points, flat, k, init, seed), k, iterations)
    opened = np.zeros(BINS, bool)
    while bins is not None and not opened[at_border := _border_bins(bins, centroids)].all():
        # Neighbours as well: a border moves a little when its bin's own values count.
        opened[np.clip(at_border[:, None] + [-1, 0, 1], 0, BINS - 1)] = True
        points = _opened_points(bins, opened)
        centroids = _lloyd(points, centroids, k, iterations)
    return _codebook(flat, centroids, bins)


def squared_error(values: Values, centroids: Values, codes: NDArray[np.unsignedinteger[Any]]) -> float:
    """Sum of (value - centroid)^2 in float64, a piece at a time that fits into a processor's cache."""
    exact = centroids.astype(np.float64)
    error, piece = 0.0, 1 << 15
    for at in range(0, len(values), piece):
        rest = values[at : at + piece] - exact[codes[at : at + piece]]
        error += float(np.dot(rest, rest))
    return error


@dataclass(frozen=True)
class _Points:
    """Distinct points in ascending order, each standing for ``count`` values of its mean, ``key``."""

    keys: Floats
    counts: Floats
    sums: Floats
    before: Floats
    total: Floats

    @classmethod
    def of(cls, counts: NDArray[Any], sums: Floats) -> _Points:
        """From counts and sums (m,); ``before`` and ``total`` (m + 1,) are what precedes each point."""
        weights = counts.astype(np.float64)
        prefix = [np.concatenate([[0.0], np.cumsum(part)]) for part in (weights, sums)]
        return cls(sums / weights, weights, sums, prefix[0], prefix[1])


@dataclass(frozen=True)
class _Bins:
    """Values by the bin of an even grid that each falls into; bins are in the order of the values."""

    values: Values
    index: NDArray[np.uint16]
    low: np.float32
    scale: np.float32
    counts: NDArray[np.int64]
    sums: Floats

    def bin_of(self, values: Values) -> NDArray[np.uint16]:
        """Bins (n,) of values within the grid, by the very arithmetic that binned the data."""
        return _bin_of(values, self.low, self.scale)


def _check(k: int, init: str) -> None:
    if not 1 <= k <= MAX_CENTROIDS:
        raise StructureError(f"kmeans1d: k must be 1 to {MAX_CENTROIDS:,}, got {k}")
    if init not in get_args(Init):
        raise StructureError(f"kmeans1d: init must be one of {', '.join(get_args(Init))}, got {init!r}")


def _bin_of(values: Values, low: np.float32, scale: np.float32) -> NDArray[np.uint16]:
    # Rounding keeps the order of values, and truncation the highest one below BINS.
    return ((values - low) * scale).astype(np.uint16)


def _binned(values: Values, k: int) -> _Bins | None:
    """The values in an even grid; None where that would be too coarse for k: crowded bins, or few in use."""
    low, high = values.min(), values.max()
    with np.errstate(over="ignore", divide="ignore"):
        scale = np.float32(BINS - 1) / (high - low)
    if not 0 < scale < np.inf:
        return None
    index = _bin_of(values, low, scale)
    counts = np.bincount(index, minlength=BINS)
    if counts.max() * 256 > len(values) or np.count_nonzero(counts) < 16 * k:
        return None
    sums = np.bincount(index, weights=values, minlength=BINS)
    return _Bins(values, index, low, scale, counts, sums)


def _sorted_points(values: Values) -> _Points:
    ordered = np.sort(values)
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]
    keys = ordered[first].astype(np.float64)
    counts = np.diff(np.flatnonzero(first), append=len(ordered))
    return _Points.of(counts, counts * keys)


def _bin_points(bins: _Bins) -> _Points:
    used = bins.counts > 0
    return _Points.of(bins.counts[used], bins.sums[used])


def _opened_points(bins: _Bins, opened: NDArray[np.bool_]) -> _Points:
    """Single values in the opened bins, whole bins elsewhere."""
    inside = np.sort(bins.values[opened[bins.index]]).astype(np.float64)
    closed = ~opened & (bins.counts > 0)
    counts = np.concatenate([bins.counts[closed], np.ones(len(inside), np.int64)])
    sums = np.concatenate([bins.sums[closed], inside])
    order = np.argsort(sums / counts, kind="stable")
    return _Points.of(counts[order], sums[order])


def _border_bins(bins: _Bins, centroids: Floats) -> NDArray[np.uint16]:
    return np.unique(bins.bin_of(_borders(centroids.astype(np.float32))))


def _start(points: _Points, values: Values, k: int, init: Init, seed: int) -> Floats:
    """First centroids, at most k, ascending."""
    if init == "linear":
        return np.linspace(float(values.min()), float(values.max()), k)
    if init == "density":
        return points.keys[np.searchsorted(points.before[1:], (np.arange(k) + 0.5) / k * points.before[-1])]
    if init == "random":
        drawn = np.random.default_rng(seed).choice(len(values), min(k, len(values)), replace=False, shuffle=False)
        return np.unique(values[drawn]).astype(np.float64)
    return _optimal(points, k)


def _optimal(points: _Points, k: int) -> Floats:
    if k > OPTIMAL_MOST:
        return _coarsened(points, k).keys
    coarse = _coarsened(points, max(OPTIMAL_POINTS, 8 * k))
    centre = points.total[-1] / points.before[-1]
    starts = best_groups(coarse.counts, coarse.sums - centre * coarse.counts, k)
    return np.add.reduceat(coarse.sums, starts) / np.add.reduceat(coarse.counts, starts)


def _coarsened(points: _Points, count: int) -> _Points:
    """Neighbours merged into at most ``count`` points, dense where the best centroids are: as density^(1/3).

    (Panter and Dite 1951.) A point of width w and count c has density c / w, so its share is c^(1/3) w^(2/3).
    """
    if len(points.keys) <= count:
        return points
    share = np.cumsum(np.cbrt(points.counts * np.gradient(points.keys) ** 2))
    group = np.minimum(share / share[-1] * count, count - 1).astype(np.int64)
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    return _Points.of(np.add.reduceat(points.counts, starts), np.add.reduceat(points.sums, starts))


def _lloyd(points: _Points, centroids: Floats, k: int, iterations: int) -> Floats:
    """Means (k,) of the clusters when borders stop moving; there must be more points than k."""
    last = np.empty(0, np.int64)
    for _ in range(iterations):
        inner = np.searchsorted(points.keys, (centroids[1:] + centroids[:-1]) / 2, side="right")
        ends = np.unique(np.concatenate([[0], inner, [len(points.keys)]]))
        if len(ends) <= k:
            ends = _split(points, ends, k)
        if np.array_equal(ends, last):
            break
        last = ends
        centroids = np.diff(points.total[ends]) / np.diff(points.before[ends])
    return centroids


def _split(points: _Points, ends: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """More ends (k + 1,): the worst clusters are cut at their mean until there are k."""
    while (missing := k + 1 - len(ends)) > 0:
        counts, sums = np.diff(points.before[ends]), np.diff(points.total[ends])
        spread = np.add.reduceat(points.counts * (points.keys - np.repeat(sums / counts, np.diff(ends))) ** 2, ends[:-1])
        spread[np.diff(ends) < 2] = -1
        worst = np.argsort(-spread, kind="stable")[: min(missing, np.count_nonzero(spread >= 0))]
        cuts = np.searchsorted(points.keys, (sums / counts)[worst], side="right")
        # Rounding may place the mean of two neighbouring values on one of them.
        cuts = np.clip(cuts, ends[worst] + 1, ends[worst + 1] - 1)
        ends = np.union1d(ends, cuts)
    return ends


def _borders(centroids: Values) -> Values:
    """Upper limits (k - 1,) of all clusters but the last: the largest float32 not above the middle."""
    middle = (centroids[1:].astype(np.float64) + centroids[:-1]) / 2
    near = middle.astype(np.float32)
    return np.where(near > middle, np.nextafter(near, np.float32(-np.inf)), near)


def _assign(values: Values, centroids: Values, bins: _Bins | None) -> NDArray[np.unsignedinteger[Any]]:
    narrow = np.uint8 if len(centroids) <= 256 else np.uint16
    limits = np.append(_borders(centroids), np.float32(np.inf))
    if bins is None:
        return np.searchsorted(limits, values).astype(narrow)
    # Borders in lower bins are passed for certain; those in the value's own bin, mostly one or none, are compared.
    within = np.bincount(bins.bin_of(limits[:-1]), minlength=BINS)
    codes = (np.cumsum(within) - within).astype(narrow)[bins.index]
    for _ in range(within.max()):
        codes += values > limits[codes]
    return codes


def _codebook(values: Values, means: Floats, bins: _Bins | None) -> Codebook:
    """Codes and error of the rounded means; those that rounding left without a value go."""
    centroids = np.unique(means.astype(np.float32))
    codes = _assign(values, centroids, bins)
    used = np.bincount(codes, minlength=len(centroids)) > 0
    if not used.all():
        centroids, codes = centroids[used], (np.cumsum(used) - 1).astype(codes.dtype)[codes]
    return Codebook(centroids, codes, squared_error(values, centroids, codes))
