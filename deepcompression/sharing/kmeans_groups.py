"""k-means of many small sets of values at once: those of a tensor's channels, or of its groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from deepcompression.sharing.kmeans import (
    LEAST,
    OPTIMAL_ITERATIONS,
    Codebook,
    Init,
    check,
    check_finite,
    codebook,
    filled,
    kmeans1d,
    middles,
    started,
)
from deepcompression.sharing.points import Floats, Points, Values, sorted_points

LONG = 1 << 14  # values of a set, beyond which its own time outweighs that of calls
AT_ONCE = 1 << 20  # values, which bounds the memory of what is worked on together


def kmeans_groups(
    sets: Sequence[Values], k: int, *, init: Init = "linear", seed: int = 0, iterations: int = 1000
) -> list[Codebook]:
    """What ``kmeans1d`` finds for each of some sets of values, to the bit; small ones in a fraction of its time.

    Args:
        sets: (m,) float32 each, finite.
        k: centroids of each, at most.
        init: as of ``kmeans1d``.
        seed: of ``random``, for each set the same.
        iterations: at most so many.

    Raises:
        StructureError: as ``kmeans1d``.
    """
    check(k, init, iterations)
    if init == "optimal":
        iterations = min(iterations, OPTIMAL_ITERATIONS)
    found: dict[int, Codebook] = {}
    for piece in _pieces(sets):
        for i in piece:
            check_finite(sets[i])
        points = {i: sorted_points(sets[i]) for i in piece}
        many = [i for i in piece if len(points[i].keys) > k]
        starts = [started(points[i], sets[i], k, init, seed, times=len(sets)) for i in many]
        means = dict(zip(many, _lloyd([points[i] for i in many], starts, k, iterations), strict=True))
        found |= {i: codebook(sets[i], means.get(i, points[i].keys)) for i in piece}
    return [
        found[i] if i in found else kmeans1d(one, k, init=init, seed=seed, iterations=iterations)
        for i, one in enumerate(sets)
    ]


def _pieces(sets: Sequence[Values]) -> Iterator[list[int]]:
    """Numbers of sets that are worked on together; the long ones are left out."""
    small = [i for i, one in enumerate(sets) if len(one) <= LONG]
    longest = max((len(sets[i]) for i in small), default=0)
    count = max(AT_ONCE // max(longest, 1), 1)
    return (small[at : at + count] for at in range(0, len(small), count))


def _lloyd(points: Sequence[Points], starts: Sequence[Floats], k: int, iterations: int) -> list[Floats]:
    """Means (k,) of the clusters of each set when its borders stand still; each has more than k points."""
    keys, before = _side_by_side(points)
    borders = np.full((len(points), k - 1), np.inf)  # of what has fewer clusters, the last ones
    for row, start in zip(borders, starts, strict=True):
        row[: len(start) - 1] = middles(start)
    means, moving = np.full((len(points), k), np.inf), np.arange(len(points))
    for step in range(iterations):
        if not len(moving):
            break
        last = borders[moving]
        means[moving] = now = _means(keys, before, last, moving)
        borders[moving] = _middles(now)
        counts = np.isfinite(now).sum(axis=1)
        still = (borders[moving] == last).all(axis=1)
        for i in np.flatnonzero((counts < k) & (still | (step == iterations // 2))):
            borders[moving[i]] = filled(points[moving[i]], borders[moving[i], : counts[i] - 1], k)
        moving = moving[~(still & (counts == k))]
    return [row[np.isfinite(row)] for row in means]


def _side_by_side(points: Sequence[Points]) -> tuple[Floats, Floats]:
    """Keys (sets, m), infinite behind the last, and the sums below them (2, sets, m + 1), which stay as they are."""
    most = max((len(one.keys) for one in points), default=0)
    keys, before = np.full((len(points), most), np.inf), np.zeros((2, len(points), most + 1))
    for i, one in enumerate(points):
        keys[i, : len(one.keys)] = one.keys
        before[:, i, : len(one.keys) + 1] = one.before
        before[:, i, len(one.keys) + 1 :] = one.all[:, None]
    return keys, before


def _means(keys: Floats, before: Floats, borders: Floats, rows: NDArray[np.int64]) -> Floats:
    """Means (r, k) of the clusters between borders (r, k - 1) of some rows; last, infinite ones of empty clusters."""
    sums = before[:, rows[:, None], _below(keys, borders, rows)]
    ends = before[:, rows, -1:]
    counts, totals = np.diff(np.concatenate([np.zeros_like(ends), sums, ends], axis=2))
    full = counts >= LEAST
    outer = np.full((len(rows), 1), np.inf)
    low, high = np.concatenate([-outer, borders], axis=1), np.concatenate([borders, outer], axis=1)
    means = np.clip(totals / np.where(full, counts, 1.0), low, high)
    return np.sort(np.where(full, means, np.inf), axis=1)


def _middles(means: Floats) -> Floats:
    between: Floats = (means[:, 1:] + means[:, :-1]) / 2
    return between


def _below(keys: Floats, borders: Floats, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many keys of its row are up to each border (r, b): ``searchsorted`` from the right, of all rows at once."""
    place = np.zeros(borders.shape, np.int64)
    width = keys.shape[1]
    row = rows[:, None] * width
    flat = keys.reshape(-1)
    step = 1 << width.bit_length()
    while step := step >> 1:
        reached = place + step
        inside = flat[row + np.minimum(reached, width) - 1] <= borders
        place = np.where(inside & (reached <= width), reached, place)
    return place
