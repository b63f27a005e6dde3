"""Compiled loops over the entries of a sparse layer: by dots for one input at a time, by tiles for many outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression._numba import compiled
from deepcompression.runtime import dots, tiles
from deepcompression.runtime.vectors import LANES

Floats = NDArray[np.float32]
OF_32, OF_64, OF_ANY, OF_ENTRIES = range(4)  # where weights are: by code in 32 or 64 floats, in more, or by entry


@compiled
def rows(
    entries: NDArray[np.uint16],
    start: NDArray[np.int32],
    weights: Floats,
    scale: Floats,
    bias: Floats,
    how: tuple[int, int, int],
    x: Floats,
    out: Floats,
    low_row: int,
    high_row: int,
) -> None:
    """Outputs (n, rows) of inputs (n, columns): of rows from ``low_row`` on, below ``high_row``.

    Args:
        entries: block by block, in each row by row, and some more behind them.
        start: (blocks x rows + 1,) where the entries of each begin.
        weights: by code, or one for each entry.
        scale: (rows,).
        bias: (rows,).
        how: low bits of an entry that are its column, columns of a block, where weights are.
        x: inputs.
        out: filled.
        low_row: first row.
        high_row: the row behind the last.
    """
    low, block, kind = how
    first, weight, count = entries.ctypes.data, weights.ctypes.data, out.shape[1]
    for i in range(len(x)):
        out[i, low_row:high_row] = 0
        for k in range((len(start) - 1) // count):
            inputs = x.ctypes.data + 4 * (i * x.shape[1] + k * block)
            for r in range(low_row, high_row):
                a = np.int64(start[k * count + r])
                n = np.int64(start[k * count + r + 1]) - a
                if kind == OF_32:
                    out[i, r] += dots.of_32(first + 2 * a, n, low, weight, inputs)
                elif kind == OF_64:
                    out[i, r] += dots.of_64(first + 2 * a, n, low, weight, inputs)
                elif kind == OF_ANY:
                    out[i, r] += dots.of_any(first + 2 * a, n, low, weight, inputs)
                else:
                    out[i, r] += dots.of_entries(first + 2 * a, n, low, weight + 4 * a, inputs)
        for r in range(low_row, high_row):
            out[i, r] = out[i, r] * scale[r] + bias[r]


@compiled
def arrange(x: Floats, how: tuple[int, int, int, int, int, int, int], laid: Floats) -> None:
    """Lay images out so that what one weight multiplies is one row, whatever padding, stride and dilation.

    Args:
        x: (n, channels, height, width).
        how: strides of height and width; rows above and columns before, which are zeros; height and width of a plane;
            images side by side.
        laid: (groups of images, channels x strides x planes x images + some more), filled.
    """
    down, right, above, before, height, width, abreast = how
    laid[:] = 0
    for at in range(len(x)):
        group, lane = at // abreast, at % abreast
        for c in range(x.shape[1]):
            for h in range(x.shape[2]):
                y = h + above
                base = ((c * down + y % down) * right * height + y // down) * width
                row = x[at, c, h]
                for phase in range(right):
                    first = (phase - before) % right  # of the columns that fall on this plane
                    beyond = base + phase * height * width + (first + before) // right
                    into, of = laid[group, beyond * abreast + lane :], row[first:]
                    if right == 1 and abreast == 1:
                        for w in range(len(of)):
                            into[w] = of[w]
                    else:
                        for w in range((len(of) + right - 1) // right):
                            into[w * abreast] = of[w * right]


@compiled
def _add_codes(first: int, n: int, low: int, weight: int, table: int, step: int, x: int, y: int, vectors: int) -> None:
    """A row of outputs, of codes."""
    while vectors > 0:
        if vectors >= 8:
            tiles.codes_8(first, n, low, weight, table, step, x, y)
            done = 8
        elif vectors >= 4:
            tiles.codes_4(first, n, low, weight, table, step, x, y)
            done = 4
        elif vectors >= 2:
            tiles.codes_2(first, n, low, weight, table, step, x, y)
            done = 2
        else:
            tiles.codes_1(first, n, low, weight, table, step, x, y)
            done = 1
        vectors -= done
        x += 4 * LANES * done
        y += 4 * LANES * done


@compiled
def _add_floats(first: int, n: int, low: int, weight: int, table: int, step: int, x: int, y: int, vectors: int) -> None:
    """A row of outputs, of floats."""
    while vectors > 0:
        if vectors >= 8:
            tiles.floats_8(first, n, low, weight, table, step, x, y)
            done = 8
        elif vectors >= 4:
            tiles.floats_4(first, n, low, weight, table, step, x, y)
            done = 4
        elif vectors >= 2:
            tiles.floats_2(first, n, low, weight, table, step, x, y)
            done = 2
        else:
            tiles.floats_1(first, n, low, weight, table, step, x, y)
            done = 1
        vectors -= done
        x += 4 * LANES * done
        y += 4 * LANES * done


@compiled
def planes(
    entries: NDArray[np.uint16],
    start: NDArray[np.int32],
    weights: Floats,
    scale: Floats,
    bias: Floats,
    how: tuple[int, int, int],
    table: NDArray[np.int32],
    shape: tuple[int, int, int, int, int],
    laid: Floats,
    sums: Floats,
    out: Floats,
    low_row: int,
    high_row: int,
) -> None:
    """Outputs (n, rows, height, width) of images that ``arrange`` laid out; the rest as of ``rows``.

    Args:
        entries: likewise.
        start: likewise.
        weights: likewise.
        scale: likewise.
        bias: likewise.
        how: likewise.
        table: (columns,) where the row of a column begins in ``laid``, for one image.
        shape: groups; floats of a group's channels, for one image; width of a plane; output rows at a time; images
            side by side.
        laid: images.
        sums: (rows, outputs at a time and some more), scratch.
        out: filled.
        low_row: first row.
        high_row: the row behind the last.
    """
    low, block, kind = how
    groups, channels, width, band, abreast = shape
    count = len(scale)
    first, weight = entries.ctypes.data, weights.ctypes.data
    for chunk in range(len(laid)):
        for top in range(0, out.shape[2], band):
            tall = min(band, out.shape[2] - top)
            vectors = (((tall - 1) * width + out.shape[3]) * abreast + LANES - 1) // LANES
            sums[low_row:high_row] = 0
            for k in range((len(start) - 1) // count):
                for r in range(low_row, high_row):
                    a = np.int64(start[k * count + r])
                    n = np.int64(start[k * count + r + 1]) - a
                    x = laid.ctypes.data + 4 * chunk * laid.shape[1]
                    x += 4 * abreast * (r // (count // groups) * channels + top * width)
                    places, y = table.ctypes.data + 4 * k * block, sums.ctypes.data + 4 * r * sums.shape[1]
                    if kind == OF_ENTRIES:
                        _add_floats(first + 2 * a, n, low, weight + 4 * a, places, 4 * abreast, x, y, vectors)
                    else:
                        _add_codes(first + 2 * a, n, low, weight, places, 4 * abreast, x, y, vectors)
            _put(sums, scale, bias, (chunk * abreast, top, tall, width, abreast), out, low_row, high_row)


@compiled
def _put(
    sums: Floats,
    scale: Floats,
    bias: Floats,
    place: tuple[int, int, int, int, int],
    out: Floats,
    low_row: int,
    high_row: int,
) -> None:
    """What is summed, times its scale, with its bias, where it belongs."""
    image, top, tall, width, abreast = place
    for r in range(low_row, high_row):
        for h in range(tall if abreast == 1 else 0):
            into, of = out[image, r, top + h], sums[r, h * width :]
            for w in range(len(into)):
                into[w] = of[w] * scale[r] + bias[r]
        for i in range(min(abreast, len(out) - image) if abreast > 1 else 0):
            for h in range(tall):
                for w in range(out.shape[3]):
                    sum_ = sums[r, (h * width + w) * abreast + i]
                    out[image + i, r, top + h, w] = sum_ * scale[r] + bias[r]


def kind_of(weights: int, own: bool) -> int:
    """Where so many weights are."""
    if own:
        return OF_ENTRIES
    return OF_32 if weights <= 32 else OF_64 if weights <= 64 else OF_ANY


__all__: list[Any] = ["OF_ENTRIES", "arrange", "kind_of", "planes", "rows"]
