"""Mean and variance of quantized weights as they were before (Banner et al. 2019, arXiv 1810.05723, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_FACTOR = 10.0  # a factor beyond it, or below its inverse, would mend nothing
TURNS = 16  # at most: variance moves the mean, and the mean the variance

Weights = NDArray[np.float64]
Scales = NDArray[np.float32]
Integers = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Corrected:
    """Integers (channels, each), scales (1 or channels, parts of a channel), and what was corrected, for people."""

    integers: Integers
    scales: Scales
    told: str


def corrected(
    rows: NDArray[np.floating[Any]],
    integers: Integers,
    scales: Scales,
    low: Weights,
    high: Weights,
    *,
    free: bool = True,
) -> Corrected:
    """Integers and scales with which weights have the standard deviation of ``rows``, and channels nearly their means.

    Only weights that were not zero count, and only they change. The ratio of the standard deviations, of a channel, or
    of the tensor where it has one scale, is a factor of the scales. The offset of the mean is no multiple of them: it
    is brought about by rounding the other way the weights that lie nearest to the middle between two integers, until
    the sum of the channel is right to half a step (as in Guo et al. 2022, "SQuant", arXiv 2202.07471). Either moves the
    other a little, so both take turns; in the end the deviation is exact, and sums are right to a few steps.

    The equation as it is often printed, zeta (w^ + u), is not offered: it multiplies the mean, too, and leaves it off
    by that factor. Its offset would move pruned weights away from zero, and all others off the grid.

    Args:
        rows: weights before (channels, each).
        integers: of them, int32.
        scales: float32, of the tensor (1, 1), or of equal parts of each channel (channels, parts).
        low: the least integers, as scales.
        high: the greatest.
        free: whether weights may be rounded the other way; those that share values may not.
    """
    alive, exact = rows != 0, rows.astype(np.float64)
    ends = _spread(low, exact), _spread(high, exact)
    scales = _with_deviation(exact, alive, integers, scales)
    for _ in range(TURNS if free else 0):
        steps = _spread(scales, exact).astype(np.float64)
        moved = _with_mean(exact, alive, integers, steps, *ends)
        if np.array_equal(moved, integers):
            break
        integers, scales = moved, _with_deviation(exact, alive, moved, scales)
    return Corrected(integers, scales, _told(len(rows) > len(scales), free))


def _told(one_scale: bool, free: bool) -> str:
    variance = "variance of the tensor, which has one scale" if one_scale else "variance"
    return f"{variance}, and mean" if free else f"{variance}; not the mean: its weights share values"


def _spread(parts: NDArray[Any], weights: Weights) -> NDArray[Any]:
    """What parts of channels have, for each of their weights."""
    return np.repeat(parts, weights.shape[1] // parts.shape[1], axis=1)


def _with_deviation(exact: Weights, alive: NDArray[np.bool_], integers: Integers, scales: Scales) -> Scales:
    """Scales with which the weights that are alive have the deviation that they had."""
    now = np.multiply(integers, _spread(scales, exact), dtype=np.float64)
    before, after = (_deviation(one, alive, len(scales)) for one in (exact, now))
    factor = np.divide(before, after, out=np.ones_like(after), where=after > 0)
    sound = (factor > 1 / MOST_FACTOR) & (factor < MOST_FACTOR)
    return (scales * np.where(sound, factor, 1.0)).astype(np.float32)


def _deviation(values: Weights, alive: NDArray[np.bool_], count: int) -> Weights:
    """The standard deviations (count, 1) of the weights that are alive, in so many equal parts; 0 where none is."""
    values, alive = values.reshape(count, -1), alive.reshape(count, -1)
    size = np.maximum(alive.sum(axis=1, keepdims=True), 1)
    mean = values.sum(axis=1, keepdims=True, where=alive) / size
    variance: Weights = np.square(values - mean).sum(axis=1, keepdims=True, where=alive) / size
    return np.sqrt(variance)


def _with_mean(
    exact: Weights, alive: NDArray[np.bool_], integers: Integers, steps: Weights, low: Weights, high: Weights
) -> Integers:
    """Integers with which each channel's sum is right to half a step: those nearest to the middle are moved by one."""
    missing = np.where(alive, exact / steps - integers, 0)
    wanted = (missing * steps).sum(axis=1, keepdims=True)
    sign = np.sign(wanted).astype(np.int32)
    moved = integers + sign
    may = alive & (sign != 0) & (moved >= low) & (moved <= high)
    order = np.argsort(np.where(may, -missing * sign, np.inf), axis=1, kind="stable")
    ordered = np.take_along_axis(np.where(may, steps, 0.0), order, axis=1)
    reached = np.cumsum(ordered, axis=1) - ordered / 2  # a weight is moved where that brings the sum nearer
    chosen = np.zeros_like(may)
    np.put_along_axis(chosen, order, reached < np.abs(wanted), axis=1)
    return np.where(chosen & may, moved, integers)
