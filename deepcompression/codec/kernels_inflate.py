"""Compiled: what is deflated without matches, as planes are by regions, read several bytes at a look.

Only what zlib reads alike is read here: of anything else, and of what is damaged, this says so, and zlib has the word.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepcompression._numba import compiled
from deepcompression.codec.kernels_bits import load, store

_ORDER = np.array([16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15])
_AT_ONCE = 11  # bits of the look-up of several
_LOW = np.uint64((1 << _AT_ONCE) - 1)
_END = 256


@compiled
def _bits(data: NDArray[np.uint8], at: int, count: int) -> int:
    return int((load(data, at >> 3) >> np.uint64(at & 7)) & np.uint64((1 << count) - 1))


@compiled
def _build(lengths: NDArray[np.uint8], table: NDArray[np.uint32]) -> int:
    """Fill `table` with symbol << 4 | length by what a stream begins with; bits of its index, -1 for no whole code."""
    counts = np.zeros(17, np.int64)
    for length in lengths:
        counts[length] += 1
    counts[0] = 0
    longest, room = 0, 0
    following = np.zeros(17, np.int64)
    for length in range(1, 16):
        following[length] = room >> (15 - length)
        room += counts[length] << (15 - length)
        if counts[length]:
            longest = length
    if room != 1 << 15:
        return -1
    for symbol in range(len(lengths)):
        length = int(lengths[symbol])
        if length:
            code, turned = following[length], 0
            following[length] += 1
            for _ in range(length):
                turned = turned << 1 | (code & 1)
                code >>= 1
            for index in range(turned, 1 << longest, 1 << length):
                table[index] = symbol << 4 | length
    return longest


@compiled
def _several(table: NDArray[np.uint32], longest: int, several: NDArray[np.uint32]) -> None:
    """Fill `several` with bytes << 8 | how many << 4 | bits of up to three literals at once; 0 where there is none."""
    mask = (1 << longest) - 1
    for index in range(len(several)):
        used, number, found = 0, 0, 0
        while number < 3:
            entry = table[(index >> used) & mask]
            length = entry & 15
            if used + length > _AT_ONCE or entry >> 4 >= _END:
                break
            found |= (entry >> 4) << (8 * number)
            used += length
            number += 1
        several[index] = found << 8 | number << 4 | used


@compiled
def _read_lengths(data: NDArray[np.uint8], at: int, lengths: NDArray[np.uint8], table: NDArray[np.uint32]) -> int:
    """Fill `lengths` with the code lengths of a block, literals first; the bit behind, -1 where they are not sound."""
    small = np.zeros(19, np.uint8)
    kept = _bits(data, at, 4) + 4
    at += 4
    for i in range(kept):
        small[_ORDER[i]] = _bits(data, at, 3)
        at += 3
    longest = _build(small, table)
    number, end = 0, len(lengths)
    while longest > 0 and number < end:
        if at >> 3 > len(data) - 16:
            return -1
        entry = int(table[_bits(data, at, longest)])
        at += entry & 15
        symbol = entry >> 4
        if symbol < 16:
            lengths[number] = symbol
            number += 1
            continue
        extra = 2 if symbol == 16 else 3 if symbol == 17 else 7
        again = _bits(data, at, extra) + (11 if symbol == 18 else 3)
        at += extra
        if number + again > end or (symbol == 16 and number == 0):
            return -1
        value = lengths[number - 1] if symbol == 16 else 0
        for i in range(number, number + again):
            lengths[i] = value
        number += again
    return at if longest > 0 else -1


@compiled
def _sound_distances(lengths: NDArray[np.uint8]) -> bool:
    """Whether zlib takes these code lengths of distances: none, one of 1 bit, or a complete code."""
    used, room = 0, 0
    for length in lengths:
        if length:
            used += 1
            room += 1 << (15 - int(length))
    return used == 0 or room == 1 << 15 or (used == 1 and room == 1 << 14)


@compiled
def inflate_literals(data: NDArray[np.uint8], size: int, out: NDArray[np.uint8]) -> bool:
    """Fill `out`, but for its last 16 bytes, from a deflate stream without matches; whether it is one, and sound.

    Args:
        data: the stream, with 24 zeros behind it.
        size: its bytes.
        out: filled.
    """
    at, to, end, count = 0, 0, 8 * size, len(out) - 16
    table, several = np.zeros(1 << 15, np.uint32), np.zeros(1 << _AT_ONCE, np.uint32)
    every = np.zeros(320, np.uint8)
    last = False
    while not last:
        last = _bits(data, at, 1) == 1
        kind = _bits(data, at + 1, 2)
        at += 3
        if kind == 0:
            start = ((at + 7) >> 3) + 4
            length = int(load(data, min(start - 4, size)) & np.uint64(0xFFFF))
            check = int(load(data, min(start - 2, size)) & np.uint64(0xFFFF))
            if start + length > size or length != check ^ 0xFFFF or to + length > count:
                return False
            out[to : to + length] = data[start : start + length]
            to += length
            at = 8 * (start + length)
            continue
        literals, distances = _bits(data, at, 5) + 257, _bits(data, at + 5, 5) + 1
        if kind != 2 or at > end or literals > 286 or distances > 30:
            return False
        lengths = every[: literals + distances]
        at = _read_lengths(data, at + 10, lengths, table)
        if at < 0 or lengths[_END] == 0 or not _sound_distances(lengths[literals:]):
            return False
        longest = _build(lengths[:literals], table)
        if longest < 0:
            return False
        _several(table, longest, several)
        mask = np.uint64((1 << longest) - 1)
        symbol = 0
        while symbol != _END:
            if at > end or to > count:
                return False
            window = load(data, at >> 3) >> np.uint64(at & 7)
            for _ in range(3):
                entry = np.uint64(several[window & _LOW])
                if entry & np.uint64(0xF0):
                    store(out, to, entry >> np.uint64(8))
                    to += int((entry >> np.uint64(4)) & np.uint64(15))
                    bits = entry & np.uint64(15)
                else:
                    entry = np.uint64(table[window & mask])
                    symbol = int(entry >> np.uint64(4))
                    bits = entry & np.uint64(15)
                    if symbol >= _END:
                        at += int(bits)
                        break
                    out[to] = symbol
                    to += 1
                window >>= bits
                at += int(bits)
            if symbol > _END:
                return False
    return to == count and (at + 7) >> 3 == size
