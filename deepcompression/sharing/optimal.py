"""The best split of sorted weighted points into contiguous groups, by dynamic programming."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray

from deepcompression import _numba

Floats = NDArray[np.float64]
Indices = NDArray[np.int32]
# Evaluations that repay a call of the compiled code, and the import of numba, which takes half a second.
WORTH_CALLING, WORTH_IMPORTING = 10_000, 40_000


def best_groups(counts: Floats, sums: Floats, k: int, times: int = 1) -> NDArray[np.int64]:
    """First points (g,) of the ``g = min(k, m)`` groups with the least squared error around their means.

    Exact for these points. The least error is the largest sum of ``(sum of a group)^2 / (its count)``,
    searched in a layer for each number of groups. The last group's first point never moves left as points
    or groups are added, which bounds every search (Gronlund et al. 2017, arXiv 1701.07204).

    Args:
        counts: weights (m,) of the points, positive.
        sums: weight x value (m,), values ascending; best centred, so that squares lose no digits.
        k: number of groups.
        times: such searches in a row, which repay compiled code together.
    """
    points = len(counts)
    k = min(k, points)
    before, total = np.zeros(points + 1), np.zeros(points + 1)
    np.cumsum(counts, out=before[1:])
    np.cumsum(sums, out=total[1:])
    firsts = np.zeros((k, points + 1), np.int32)
    gains = np.zeros(points + 1)
    gains[1:] = total[1:] ** 2 / before[1:]
    layer = _layer(points * k * times)
    for number in range(1, k):
        gains = layer(gains, before, total, firsts[number - 1], firsts[number])
    starts = np.zeros(k, np.int64)
    end = points
    for number in range(k - 1, -1, -1):
        end = starts[number] = firsts[number, end]
    return np.unique(starts)


def _layer(work: int) -> Callable[..., Floats]:
    """The compiled layer where numba is installed and ``work`` repays it, else numpy's: equal results."""
    return _compiled() if _numba.wanted(work, WORTH_CALLING, WORTH_IMPORTING) else _layer_vectorised


@cache
def _compiled() -> Callable[..., Floats]:
    layer: Callable[..., Floats] = _numba.compiled(_layer_plain)
    return layer


def _layer_plain(gains: Floats, before: Floats, total: Floats, least: Indices, firsts: Indices) -> Floats:
    """One more group: the gains (m + 1,) of the first i points; ``firsts`` gets where the last group begins.

    Args:
        gains: with one group less.
        before: sums of counts (m + 1,).
        total: sums of values (m + 1,).
        least: ``firsts`` with one group less.
        firsts: written to.
    """
    points = len(gains) - 1
    made = np.zeros(points + 1)
    step = 1
    while step <= points:
        step *= 2
    while step > 1:
        step //= 2
        for i in range(step, points + 1, 2 * step):
            low = max(firsts[i - step], least[i])
            high = i - 1
            if i + step <= points:
                high = max(low, min(high, firsts[i + step]))
            best = -1.0
            first = low
            for j in range(low, high + 1):
                difference = total[i] - total[j]
                gain = gains[j] + difference * difference / (before[i] - before[j])
                if gain > best:
                    best = gain
                    first = j
            made[i] = best
            firsts[i] = first
    return made


def _layer_vectorised(gains: Floats, before: Floats, total: Floats, least: Indices, firsts: Indices) -> Floats:
    """``_layer_plain`` in numpy: all searches of one step at once."""
    points = len(gains) - 1
    made = np.zeros(points + 1)
    step = 1 << points.bit_length()
    while step > 1:
        step //= 2
        i = np.arange(step, points + 1, 2 * step)
        low = np.maximum(firsts[i - step], least[i])
        bound = np.where(i + step <= points, firsts[np.minimum(i + step, points)], points)
        widths = np.maximum(np.minimum(i - 1, bound) - low, 0) + 1
        heads = np.cumsum(widths) - widths
        j = np.arange(widths.sum()) - np.repeat(heads - low, widths)
        difference = np.repeat(total[i], widths) - total[j]
        gain = gains[j] + difference * difference / (np.repeat(before[i], widths) - before[j])
        best = np.maximum.reduceat(gain, heads)
        hits = np.flatnonzero(gain == np.repeat(best, widths))[::-1]
        # Of equal gains the first one counts: written last, it stays.
        firsts[i[np.searchsorted(heads, hits, side="right") - 1]] = j[hits]
        made[i] = best
    return made
