"""Rows of weights as integers times a scale, with an exact zero.

x^ = s (q - z), with q = clip(round(x / s) + z): symmetric grids have z = 0 and as many integers below 0 as above
(narrow range, as NNCF has it); asymmetric ones have an integer z, so that 0 is exact and what was pruned stays pruned.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

STEPS = 2.0 ** (-np.arange(41) / 10)  # ranges that are tried, in parts of the widest: down to a sixteenth
REFINED = 4  # times that a scale is fitted to its integers, and these to it

Scheme = Literal["symmetric", "asymmetric"]
Range = Literal["minmax", "mse"]
Rows = NDArray[np.floating[Any]]  # (rows, each): what has one scale
Ends = NDArray[np.float64]  # (rows, 1)


class Integers(NamedTuple):
    """Rows of integers (rows, each) int32, from ``low`` to ``high`` (rows, 1), and their ``scales`` (rows, 1) float32.

    Integers are those that are multiplied: q - z.
    """

    integers: NDArray[np.int32]
    scales: NDArray[np.float32]
    low: Ends
    high: Ends


def integers_of(rows: Rows, bits: int, scheme: Scheme = "symmetric", range: Range = "minmax") -> Integers:
    """The integers and the scale of each row.

    Symmetric: from -(2^(bits-1) - 1) to 2^(bits-1) - 1. Asymmetric: 2^bits integers, of which one is 0; the range is
    that of the row and 0, made a little wider on one side (NNCF, compression_algorithms/Quantization.md). ``mse`` tries
    ranges down to a sixteenth of that, then fits each scale to its integers by least squares and rounds anew.

    Args:
        rows: finite floats (rows, each).
        bits: 2 to 16.
        scheme: of the integers.
        range: ``minmax`` or ``mse``.
    """
    least = rows.min(axis=1, initial=0, keepdims=True).astype(np.float64)
    most = rows.max(axis=1, initial=0, keepdims=True).astype(np.float64)
    best = _steps(least, most, bits, scheme)
    if range == "mse":
        best = _least_error(rows, least, most, best, bits, scheme)
    return Integers(_rounded(rows, best).astype(np.int32), *best)


class Step(NamedTuple):
    """The scale of each row, its least and its greatest integer; all (rows, 1)."""

    scales: NDArray[np.float32]
    low: Ends
    high: Ends

    def take(self, better: NDArray[np.bool_], other: Step) -> Step:
        """These, and where it is ``better`` the others."""
        return Step(
            np.where(better, other.scales, self.scales),
            np.where(better, other.low, self.low),
            np.where(better, other.high, self.high),
        )


def _steps(least: Ends, most: Ends, bits: int, scheme: Scheme) -> Step:
    """The grid of rows whose values go from ``least`` (0 or below) to ``most`` (0 or above)."""
    count = (1 << bits) - 1
    if scheme == "symmetric":
        high = np.full_like(most, count // 2)
        return Step(_scale(np.maximum(most, -least), high), -high, high)
    wide = most - least
    zero = np.rint(np.divide(-least * count, wide, out=np.zeros_like(wide), where=wide > 0))
    inside = (zero > 0) & (zero < count)
    below, above = np.where(inside, zero, 1), np.where(inside, count - zero, 1)  # integers on either side of 0
    wider = np.maximum(wide, np.where(inside, np.maximum(-least / below, most / above) * count, 0))
    return Step(_scale(wider, np.full_like(wide, count)), -zero, count - zero)


def _scale(widths: Ends, counts: Ends) -> NDArray[np.float32]:
    """1 for rows of zeros."""
    return np.where(widths > 0, widths / counts, 1.0).astype(np.float32)


def _rounded(rows: Rows, step: Step) -> Rows:
    """The integers of rows, as floats."""
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        found = rows / step.scales
    np.rint(found, out=found)
    return np.clip(found, step.low.astype(found.dtype), step.high.astype(found.dtype), out=found)


def _least_error(rows: Rows, least: Ends, most: Ends, best: Step, bits: int, scheme: Scheme) -> Step:
    """The grids of least squared error, row by row: of narrower ranges, then of scales that are fitted."""
    error = _error(rows, best)
    for narrow_least, narrow_most in _narrower(least, most, scheme):
        best, error = _better(rows, _steps(narrow_least, narrow_most, bits, scheme), best, error)
    for _ in range(REFINED):
        best, error = _better(rows, _fitted(rows, best), best, error)
        for shift in (1, -1) if scheme == "asymmetric" else ():
            inside = (best.low + shift <= 0) & (best.high + shift >= 0)
            moved = best._replace(low=best.low + shift * inside, high=best.high + shift * inside)
            best, error = _better(rows, _fitted(rows, moved), best, error)
    return best


def _narrower(least: Ends, most: Ends, scheme: Scheme) -> Iterator[tuple[Ends, Ends]]:
    """Ranges to try: both ends nearer to 0; and of asymmetric ones several pairs of their ends."""
    for step in STEPS[1:]:
        yield least * step, most * step
    some = STEPS[:21:4] if scheme == "asymmetric" else STEPS[:0]
    for one, other in itertools.permutations(some, 2):
        yield least * one, most * other


def _better(rows: Rows, tried: Step, best: Step, error: Ends) -> tuple[Step, Ends]:
    new = _error(rows, tried)
    return best.take(new < error, tried), np.minimum(error, new)


def _error(rows: Rows, step: Step) -> Ends:
    """The squared error (rows, 1)."""
    gap = _rounded(rows, step)
    gap *= step.scales
    gap -= rows
    total: Ends = np.square(gap, out=gap).sum(axis=1, keepdims=True, dtype=np.float64)
    return total


def _fitted(rows: Rows, step: Step) -> Step:
    """The scales of least squared error for the integers that rows have now."""
    integers = _rounded(rows, step)
    square = np.square(integers).sum(axis=1, keepdims=True, dtype=np.float64)
    product = np.multiply(integers, rows, out=integers).sum(axis=1, keepdims=True, dtype=np.float64)
    fits = (square > 0) & (product > 0)
    scales = np.divide(product, square, out=step.scales.astype(np.float64), where=fits)
    return step._replace(scales=scales.astype(np.float32))
