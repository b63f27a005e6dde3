"""Compiled coders: the same bytes and symbols as `coders` and `arithmetic` in numpy, much faster.

numba takes a second to import: this module is imported only for streams that repay it (see `_numba.kernels`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression._numba import compiled
from deepcompression.codec import arithmetic_loop
from deepcompression.codec.kernels_bits import load, store
from deepcompression.codec.kernels_floats import fill_codes, find_distinct, join_four, join_two, jump_down, take_plane
from deepcompression.codec.kernels_inflate import inflate_literals
from deepcompression.codec.kernels_literals import (
    count_runs,
    deflate_literals,
    encode_bytes,
    fill_entries,
    package_merge,
    tree_lengths,
)

__all__ = [
    "count_runs",
    "decode_blocks",
    "decode_threes",
    "deflate_literals",
    "encode_blocks",
    "encode_bytes",
    "fill_codes",
    "fill_entries",
    "find_distinct",
    "inflate_literals",
    "join_four",
    "join_two",
    "jump_down",
    "package_merge",
    "run",
    "take_plane",
    "tree_lengths",
]

run = compiled(arithmetic_loop.run)

# Of an entry of the look-up of three: bits used in the low six, then the count of symbols, then symbols, a byte each.
_TWELVE, _USED, _BYTE = np.uint64(4095), np.uint64(63), np.uint64(255)
_SIX, _EIGHT, _NOTHING = np.uint64(6), np.uint64(8), np.uint64(0)


@compiled
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
        out: at least 8 bytes longer than the coded blocks.
    """
    at = 0
    for i in range(len(sizes)):
        start = at
        pending = np.uint64(0)
        held = np.uint64(0)
        for symbol in symbols[i * block : (i + 1) * block]:
            entry = np.uint64(entries[symbol])
            pending |= (entry >> np.uint64(5)) << held
            held += entry & np.uint64(31)
            if held >= np.uint64(32):
                store(out, at, pending)
                pending >>= np.uint64(32)
                held -= np.uint64(32)
                at += 4
        store(out, at, pending)
        at += int((held + np.uint64(7)) >> np.uint64(3))
        sizes[i] = at - start
    return at


@compiled
def _finish(
    data: NDArray[np.uint8],
    at: int,
    to: int,
    end: int,
    threes: NDArray[np.uint32],
    table: NDArray[np.uint32],
    symbols: NDArray[np.uint8],
) -> int:
    """Decode one block alone, from bit `at` and symbol `to` to symbol `end`; the bit where it ends."""
    mask = np.uint64(len(table) - 1)
    while to <= end - 4:
        e = np.uint64(threes[(load(data, at >> 3) >> np.uint64(at & 7)) & _TWELVE])
        store(symbols, to, e >> _EIGHT)
        at += int(e & _USED)
        to += int((e >> _SIX) & np.uint64(3))
    for k in range(to, end):
        e = np.uint64(table[(load(data, at >> 3) >> np.uint64(at & 7)) & mask])
        symbols[k] = e >> _EIGHT
        at += int(e & _BYTE)
    return at


@compiled
def decode_threes(
    data: NDArray[np.uint8],
    at: NDArray[np.int64],
    first: NDArray[np.int64],
    number: NDArray[np.int64],
    threes: NDArray[np.uint32],
    table: NDArray[np.uint32],
    symbols: NDArray[np.uint8],
) -> None:
    """Fill `symbols` from blocks that begin at the bits `at` (blocks,), which move to the blocks' ends.

    Args:
        data: the blocks, with zeros behind them for as long as a block can be.
        first, number: (blocks,) where the symbols of each block go, and how many they are.
        threes: coders.lookup_three(); table: coders.lookup(), of at most 12 bits.
        symbols: eight longer than what is filled.
    """
    whole = len(at) // 4 * 4
    # Four blocks at a time keep four chains of dependent look-ups in flight.
    for i in range(0, whole, 4):
        a, b, c, d = at[i], at[i + 1], at[i + 2], at[i + 3]
        p, q, r, s = first[i], first[i + 1], first[i + 2], first[i + 3]
        # Twelve symbols a round at most, and one byte more is written.
        stop_p = p + number[i] - 13
        stop_q = q + number[i + 1] - 13
        stop_r = r + number[i + 2] - 13
        stop_s = s + number[i + 3] - 13
        while p <= stop_p and q <= stop_q and r <= stop_r and s <= stop_s:
            v = load(data, a >> 3) >> np.uint64(a & 7)
            w = load(data, b >> 3) >> np.uint64(b & 7)
            x = load(data, c >> 3) >> np.uint64(c & 7)
            y = load(data, d >> 3) >> np.uint64(d & 7)
            # Bits used in the low six, symbols above them: four look-ups add up without meeting.
            j = k = m = n = _NOTHING
            for _ in range(4):
                e = np.uint64(threes[v & _TWELVE])
                f = np.uint64(threes[w & _TWELVE])
                g = np.uint64(threes[x & _TWELVE])
                h = np.uint64(threes[y & _TWELVE])
                store(symbols, p + np.int64(j >> _SIX), e >> _EIGHT)
                store(symbols, q + np.int64(k >> _SIX), f >> _EIGHT)
                store(symbols, r + np.int64(m >> _SIX), g >> _EIGHT)
                store(symbols, s + np.int64(n >> _SIX), h >> _EIGHT)
                v >>= e & _USED
                w >>= f & _USED
                x >>= g & _USED
                y >>= h & _USED
                j += e & _BYTE
                k += f & _BYTE
                m += g & _BYTE
                n += h & _BYTE
            a += np.int64(j & _USED)
            b += np.int64(k & _USED)
            c += np.int64(m & _USED)
            d += np.int64(n & _USED)
            p += np.int64(j >> _SIX)
            q += np.int64(k >> _SIX)
            r += np.int64(m >> _SIX)
            s += np.int64(n >> _SIX)
        at[i], at[i + 1], at[i + 2], at[i + 3] = a, b, c, d
        done = (p, q, r, s)
        for lane in range(4):
            at[i + lane] = _finish(
                data, at[i + lane], done[lane], first[i + lane] + number[i + lane], threes, table, symbols
            )
    for i in range(whole, len(at)):
        at[i] = _finish(data, at[i], first[i], first[i] + number[i], threes, table, symbols)


@compiled
def decode_blocks(
    data: NDArray[np.uint8],
    at: NDArray[np.int64],
    first: NDArray[np.int64],
    number: NDArray[np.int64],
    table: NDArray[np.uint32],
    symbols: NDArray[Any],
) -> None:
    """As `decode_threes`, one symbol at a time: for alphabets of more than 256.

    Args:
        data: the blocks, with zeros behind them for as long as a block can be.
        at: (blocks,) bits at which they begin; moved to their ends.
        first: (blocks,) where the symbols of each go.
        number: (blocks,) how many they are.
        table: of `huffman.lookup`.
        symbols: filled.
    """
    mask = np.uint64(len(table) - 1)
    for i in range(len(at)):
        a = at[i]
        for j in range(first[i], first[i] + number[i]):
            e = np.uint64(table[(load(data, a >> 3) >> np.uint64(a & 7)) & mask])
            symbols[j] = e >> np.uint64(8)
            a += np.int64(e & np.uint64(255))
        at[i] = a
