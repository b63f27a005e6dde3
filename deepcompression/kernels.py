"""Compiled Huffman coding: the same bytes and symbols as the numpy code in `coders`, much faster.

numba takes a second to import: this module is imported only for streams that repay it (see `coders.kernels`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


def _compiled(function: Callable[..., Any]) -> Any:
    """Compile without the GIL; keep the machine code where there is a place to write it."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


@_compiled
def encode_blocks(
    symbols: NDArray[Any],
    entries: NDArray[np.uint32],
    block: int,
    out: NDArray[np.uint8],
    sizes: NDArray[np.int64],
) -> int:
    """Write the coded blocks of `symbols` (n,) to `out`, their bytes to `sizes` (blocks,); the bytes in all.

    Args:
        entries: (k,) code word << 5 | length.
        block: symbols a block.
        out: at least 4 bytes longer than the coded blocks.
    """
    at = 0
    for i in range(len(sizes)):
        start = at
        pending = np.uint64(0)
        held = np.uint64(0)
        for symbol in symbols[i * block : (i + 1) * block]:
            entry = np.uint64(entries[symbol])
            length = entry & np.uint64(31)
            pending = pending << length | entry >> np.uint64(5)
            held += length
            if held >= np.uint64(32):
                held -= np.uint64(32)
                word = pending >> held
                out[at] = np.uint8(word >> np.uint64(24))
                out[at + 1] = np.uint8(word >> np.uint64(16))
                out[at + 2] = np.uint8(word >> np.uint64(8))
                out[at + 3] = np.uint8(word)
                at += 4
        while held > np.uint64(0):
            if held >= np.uint64(8):
                held -= np.uint64(8)
                out[at] = np.uint8(pending >> held)
            else:
                out[at] = np.uint8(pending << (np.uint64(8) - held))
                held = np.uint64(0)
            at += 1
        sizes[i] = at - start
    return at


@_compiled
def _window(words: NDArray[np.uint64], at: np.uint64) -> np.uint64:
    """The 64 bits from bit position `at` on."""
    word = at >> np.uint64(6)
    offset = at & np.uint64(63)
    high = words[word] << offset
    low = (words[word + np.uint64(1)] >> np.uint64(1)) >> (np.uint64(63) - offset)
    return np.uint64(high | low)


@_compiled
def decode_blocks(
    words: NDArray[np.uint64],
    at: NDArray[np.uint64],
    table: NDArray[np.uint32],
    longest: int,
    block: int,
    symbols: NDArray[Any],
) -> None:
    """Fill `symbols` (n,) from blocks that begin at the bits `at` (blocks,), which move to the blocks' ends.

    Args:
        words: the stream as big-endian 64-bit words, with zeros behind it for as long as a block can be.
        table: coders.lookup(): symbol << 8 | length.
        longest: the longest code in bits.
        block: symbols a block; only the last one may have fewer.
    """
    shift = np.uint64(64 - longest)
    low = np.uint64(255)
    eight = np.uint64(8)
    a_window = 64 // longest
    whole = len(symbols) // block // 4 * 4
    # Four blocks at a time keep four chains of dependent look-ups in flight.
    for i in range(0, whole, 4):
        a, b, c, d = at[i], at[i + 1], at[i + 2], at[i + 3]
        for first in range(0, block, a_window):
            p, q, r, s = _window(words, a), _window(words, b), _window(words, c), _window(words, d)
            for j in range(i * block + first, i * block + min(first + a_window, block)):
                e = np.uint64(table[p >> shift])
                f = np.uint64(table[q >> shift])
                g = np.uint64(table[r >> shift])
                h = np.uint64(table[s >> shift])
                symbols[j] = e >> eight
                symbols[j + block] = f >> eight
                symbols[j + 2 * block] = g >> eight
                symbols[j + 3 * block] = h >> eight
                p <<= e & low
                q <<= f & low
                r <<= g & low
                s <<= h & low
                a += e & low
                b += f & low
                c += g & low
                d += h & low
        at[i], at[i + 1], at[i + 2], at[i + 3] = a, b, c, d
    for i in range(whole, len(at)):
        a = at[i]
        for j in range(i * block, min((i + 1) * block, len(symbols))):
            e = np.uint64(table[_window(words, a) >> shift])
            symbols[j] = e >> eight
            a += e & low
        at[i] = a
