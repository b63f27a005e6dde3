"""Compiled loops of layers whose weights are signs, for inputs of two values: differing bits are counted."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepcompression._numba import compiled
from deepcompression.runtime import bits as b
from deepcompression.runtime.vectors import LANES

Floats = NDArray[np.float32]
Words = NDArray[np.uint64]
FEW = 64  # inputs that are looked at first: among them more than two values are soon found


@compiled
def two_values(flat: Floats) -> tuple[bool, float, float]:
    """Whether inputs (n,) may have at most two values, as far as the first ones tell; and those, the lower first."""
    low, high = flat[0], flat[0]
    for i in range(len(flat)):
        if low != high and i >= FEW:
            break
        value = flat[i]
        if low == high:
            low, high = min(low, value), max(high, value)
        elif value != low and value != high:
            return False, low, high
    return True, low, high


@compiled
def pack_rows(x: Floats, low: np.float32, high: np.float32, words: Words) -> bool:
    """Bits (n, words) of inputs (n, columns) that are ``low`` or ``high``; False where one is neither.

    Args:
        x: inputs.
        low: the least.
        high: the greatest.
        words: filled, zeros behind a row's last bit.
    """
    whole = x.shape[1] // LANES
    for i in range(len(x)):
        words[i, :] = 0
        row = x[i]
        if b.packed(row.ctypes.data, whole, low, high, words[i].ctypes.data) != 0:
            return False
        for c in range(whole * LANES, x.shape[1]):
            if row[c] != low and row[c] != high:
                return False
            words[i, c // 64] |= np.uint64(row[c] == high) << np.uint64(c % 64)
    return True


@compiled
def rows(
    weights: Words,
    scale: Floats,
    sums: NDArray[np.int32],
    bias: Floats,
    how: tuple[int, float, float],
    x: Words,
    out: Floats,
    low_row: int,
    high_row: int,
) -> None:
    """Outputs (n, rows) of bits (n, words): of rows from ``low_row`` on.

    Args:
        weights: (rows, words), a bit on for a positive one.
        scale: (rows,).
        sums: (rows,) of the signs.
        bias: (rows,).
        how: columns, and the values of a bit that is off, and on.
        x: bits of inputs.
        out: filled.
        low_row: first row.
        high_row: the row behind the last.
    """
    columns, low, high = how
    middle, half = np.float32((low + high) / 2), np.float32((high - low) / 2)
    for r in range(low_row, high_row):
        row = weights.ctypes.data + 8 * r * weights.shape[1]
        for i in range(len(x)):
            unlike = b.differing(row, x.ctypes.data + 8 * i * x.shape[1], x.shape[1])
            sum_ = middle * np.float32(sums[r]) + half * np.float32(columns - 2 * unlike)
            out[i, r] = sum_ * scale[r] + bias[r]


@compiled
def pack_images(x: Floats, low: np.float32, high: np.float32, words: Words) -> bool:
    """Bits (n, height, width, words) of images (n, channels, height, width); False where a value is neither.

    Args:
        x: images.
        low: the least value.
        high: the greatest.
        words: filled.
    """
    words[:] = 0
    for i in range(len(x)):
        for c in range(x.shape[1]):
            word, shift = c // 64, np.uint64(c % 64)
            for h in range(x.shape[2]):
                row = x[i, c, h]
                others = 0
                for w in range(len(row)):
                    others += row[w] != low and row[w] != high
                    words[i, h, w, word] |= np.uint64(row[w] == high) << shift
                if others:
                    return False
    return True


@compiled
def convolve(
    weights: Words,
    scale: Floats,
    bias: Floats,
    how: tuple[int, int, int, int, int, int, int, int, int],
    levels: tuple[float, float],
    x: Words,
    patch: Words,
    out: Floats,
) -> None:
    """Outputs (n, rows, height, width) of bits (n, height, width, words); zeros around the images have no sign.

    Args:
        weights: (rows, kernel's places, words).
        scale: (rows,).
        bias: (rows,).
        how: channels; kernel, stride, padding before, dilation of height and width.
        levels: the values of a bit that is off, and on.
        x: bits of images.
        patch: (kernel's places, words), scratch.
        out: filled.
    """
    channels, tall, wide, down, right, above, before, step, stride = how
    middle, half = np.float32((levels[0] + levels[1]) / 2), np.float32((levels[1] - levels[0]) / 2)
    words = weights.shape[2]
    empty = np.zeros(words, np.uint64)
    inside = np.empty(tall * wide, np.int64)
    for i in range(len(x)):
        for h in range(out.shape[2]):
            for w in range(out.shape[3]):
                count = 0
                for place in range(tall * wide):
                    y = h * down - above + place // wide * step
                    z = w * right - before + place % wide * stride
                    if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                        patch[place] = x[i, y, z]
                        inside[count] = place
                        count += 1
                for r in range(len(scale)):
                    unlike = positive = 0
                    row = weights.ctypes.data + 8 * r * weights.shape[1] * words
                    if count == tall * wide:
                        unlike = b.differing(row, patch.ctypes.data, count * words)
                    for at in range(count if count < tall * wide else 0):
                        offset = 8 * inside[at] * words
                        unlike += b.differing(row + offset, patch.ctypes.data + offset, words)
                    for at in range(count if middle != 0 else 0):
                        positive += b.differing(row + 8 * inside[at] * words, empty.ctypes.data, words)
                    sum_ = middle * np.float32(2 * positive - count * channels)
                    sum_ += half * np.float32(count * channels - 2 * unlike)
                    out[i, r, h, w] = sum_ * scale[r] + bias[r]
    empty[0] = inside[0] = 0  # both live until here: addresses do not keep them
