"""Compiled loops over the rows of a weight without zeros."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression._numba import compiled
from deepcompression.runtime import full_dots as dots

Floats = NDArray[np.float32]
INTEGERS, SIGNS, OF_16, OF_32, OF_64, OF_ANY = range(6)


@compiled
def rows(
    codes: NDArray[np.uint8],
    table: Floats,
    scale: Floats,
    bias: Floats,
    how: tuple[int, int],
    x: Floats,
    out: Floats,
    low_row: int,
    high_row: int,
) -> None:
    """Outputs (n, rows) of inputs (n, columns and zeros behind them): of rows from ``low_row`` on.

    Args:
        codes: (rows, bytes of a row).
        table: values by code.
        scale: (rows,).
        bias: (rows,).
        how: steps of a row, kind of codes.
        x: inputs.
        out: filled.
        low_row: first row.
        high_row: the row behind the last.
    """
    steps, kind = how
    places = table.ctypes.data
    for r in range(low_row, high_row):
        row = codes.ctypes.data + r * codes.shape[1]
        for i in range(len(x)):
            inputs = x.ctypes.data + 4 * i * x.shape[1]
            if kind == INTEGERS:
                sum_ = dots.dot_integers(row, steps, places, inputs)
            elif kind == SIGNS:
                sum_ = dots.dot_signs(row, steps, places, inputs)
            elif kind == OF_16:
                sum_ = dots.dot_16(row, steps, places, inputs)
            elif kind == OF_32:
                sum_ = dots.dot_32(row, steps, places, inputs)
            elif kind == OF_64:
                sum_ = dots.dot_64(row, steps, places, inputs)
            else:
                sum_ = dots.dot_any(row, steps, places, inputs)
            out[i, r] = sum_ * scale[r] + bias[r]


@compiled
def decode(
    codes: NDArray[np.uint8], table: Floats, how: tuple[int, int], out: Floats, low_row: int, high_row: int
) -> None:
    """Rows as floats, without their scales.

    Args:
        codes: as of ``rows``.
        table: as of ``rows``.
        how: as of ``rows``.
        out: (rows, columns and zeros behind them), filled from its first row on.
        low_row: first row.
        high_row: the row behind the last.
    """
    steps, kind = how
    places = table.ctypes.data
    for r in range(low_row, high_row):
        row, to = codes.ctypes.data + r * codes.shape[1], out.ctypes.data + 4 * (r - low_row) * out.shape[1]
        if kind == INTEGERS:
            dots.row_integers(row, steps, places, to)
        elif kind == SIGNS:
            dots.row_signs(row, steps, places, to)
        elif kind == OF_16:
            dots.row_16(row, steps, places, to)
        elif kind == OF_32:
            dots.row_32(row, steps, places, to)
        elif kind == OF_64:
            dots.row_64(row, steps, places, to)
        else:
            dots.row_any(row, steps, places, to)


__all__: list[Any] = ["decode", "rows"]
