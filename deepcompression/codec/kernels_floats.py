"""Compiled: floats to planes and back, and elements to codes, in one pass each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression._numba import compiled

_SLOTS = 1 << 18  # of a table for at most 65,536 values
_MIX = np.uint64(0x9E37_79B9_7F4A_7C15)
_FORTY_SIX, _ONE, _LAST = np.uint64(46), np.uint64(1), np.uint64(_SLOTS - 1)


@compiled
def take_plane(bits: NDArray[Any], size: int, place: int, plane: NDArray[np.uint8]) -> None:
    """Fill `plane` (n,) with a byte of each of `bits` (n,), rotated left by one.

    Args:
        bits: the elements.
        size: their bytes.
        place: of the byte, 0 the highest.
        plane: filled.
    """
    down = 8 * (size - 1 - place) - 1
    if down < 0:
        for i in range(len(bits)):
            plane[i] = bits[i] << 1 | bits[i] >> (8 * size - 1)
    else:
        for i in range(len(bits)):
            plane[i] = bits[i] >> down


@compiled
def join_two(high: NDArray[np.uint8], low: NDArray[np.uint8], out: NDArray[np.uint16]) -> None:
    """Fill `out` with the values of two planes.

    Args:
        high: (n,) the upper plane.
        low: (n,) the lower one.
        out: (n,) filled.
    """
    for i in range(len(out)):
        out[i] = np.uint32(high[i]) << 7 | np.uint32(low[i]) >> 1 | (np.uint32(low[i]) & 1) << 15


@compiled
def join_four(
    a: NDArray[np.uint8], b: NDArray[np.uint8], c: NDArray[np.uint8], d: NDArray[np.uint8], out: NDArray[np.uint32]
) -> None:
    """Fill `out` with the values of four planes.

    Args:
        a: (n,) the highest plane.
        b: (n,) the next one.
        c: (n,) the next one.
        d: (n,) the lowest one.
        out: (n,) filled.
    """
    for i in range(len(out)):
        above = np.uint32(a[i]) << 23 | np.uint32(b[i]) << 15 | np.uint32(c[i]) << 7
        out[i] = above | np.uint32(d[i]) >> 1 | (np.uint32(d[i]) & 1) << 31


@compiled
def find_distinct(flat: NDArray[Any], most: int, keys: NDArray[np.uint64], found: NDArray[np.uint64]) -> int:
    """Write the distinct elements but 0 of `flat` (n,) to `found` (most,) as they occur; their number, or -1 for more.

    Args:
        flat: the elements.
        most: of them.
        keys: (_SLOTS,) zeros; the table.
        found: filled.
    """
    number = 0
    for i in range(len(flat)):
        value = np.uint64(flat[i])
        if value == 0:
            continue
        slot = (value * _MIX) >> _FORTY_SIX
        while keys[slot] != value:
            if keys[slot] == 0:
                if number == most:
                    return -1
                keys[slot] = value
                found[number] = value
                number += 1
                break
            slot = (slot + _ONE) & _LAST
    return number


@compiled
def fill_codes(
    flat: NDArray[Any],
    values: NDArray[np.uint64],
    codes: NDArray[Any],
    keys: NDArray[np.uint64],
    places: NDArray[np.uint16],
    out: NDArray[Any],
) -> None:
    """Write the code of each element of `flat` (n,) to `out` (n,), 0 of 0.

    Args:
        flat: the elements.
        values: (k,) all that occur but 0.
        codes: (k,) of them.
        keys: (_SLOTS,) zeros, and `places` as many: the table.
        out: filled.
    """
    for j in range(len(values)):
        slot = (values[j] * _MIX) >> _FORTY_SIX
        while keys[slot] != 0:
            slot = (slot + _ONE) & _LAST
        keys[slot] = values[j]
        places[slot] = codes[j]
    for i in range(len(flat)):
        value = np.uint64(flat[i])
        if value == 0:
            out[i] = 0
            continue
        slot = (value * _MIX) >> _FORTY_SIX
        while keys[slot] != value:
            slot = (slot + _ONE) & _LAST
        out[i] = places[slot]


@compiled
def jump_down(
    lower: NDArray[np.float64],
    upper: NDArray[np.float64],
    stop: NDArray[np.float64],
    scale: NDArray[np.float64],
    left: NDArray[np.int64],
) -> None:
    """Move scales (g,) down, while jumps are left, to the first that none of the magnitudes of a row rules out.

    Args:
        lower: (g, d) ends of what is rounded to each magnitude, and `upper` as many.
        stop: (g,) below it no more is looked at.
        scale: (g,) moved.
        left: (g,) jumps, counted down.
    """
    for row in range(len(scale)):
        while left[row] > 0 and scale[row] >= stop[row]:
            jump = np.inf
            for place in range(lower.shape[1]):
                integer = np.floor(upper[row, place] / scale[row])
                if integer * scale[row] < lower[row, place]:
                    jump = min(jump, upper[row, place] / (integer + 1))
            if jump == np.inf:
                break
            scale[row] = np.nextafter(jump, 0)
            left[row] -= 1
