"""Bytes deflated without matches (RFC 1951): blocks with a code of their own each, or as they are.

The same bytes with and without numba, and whatever zlib the machine has. What numba compiles as it stands, is plain.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression import _numba
from deepcompression.codec import bitstream, huffman

BLOCK = 1 << 15  # bytes of a block, at most
LONGEST, LONGEST_OF_LENGTHS = 14, 7  # bits of a code: RFC 1951 allows 15, but four of 14 are written at once
END, LENGTHS = 256, 258  # the symbol behind a block; lengths that its head has: of literals, and of no distance
FIELDS = 1024  # of a head, at most
_NOTHING = b"\3\0"  # the stream of no byte
_WORTH = 1 << 10, 1 << 22  # bytes that repay a compiled call, and importing it
_ORDER = np.array([16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15])
Bytes = NDArray[np.uint8]


def deflated(plane: Bytes) -> bytes:
    """The bytes `plane` (n,) as one deflate stream."""
    if not len(plane):
        return _NOTHING
    blocks = -(-len(plane) // BLOCK)
    size = -(-len(plane) // blocks)  # as even as can be
    compiled = _numba.kernels(len(plane), *_WORTH)
    if compiled is None:
        return _by_numpy(plane, size)
    out = np.empty(len(plane) + 8 * blocks + 16, np.uint8)
    return out[: compiled.deflate_literals(plane, size, _ORDER, out)].tobytes()


def _by_numpy(plane: Bytes, size: int) -> bytes:
    words: list[NDArray[Any]] = []
    bits: list[NDArray[Any]] = []
    held = 0
    for start in range(0, len(plane), size):
        made = _block(plane[start : start + size], start + size >= len(plane), held)
        words.append(made[0])
        bits.append(made[1])
        held += int(made[1].sum())
    return bitstream.concatenate(np.concatenate(words), np.concatenate(bits))


def _block(some: Bytes, last: bool, held: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Words of a block and the bits of each, behind so many bits."""
    counts = np.bincount(some, minlength=LENGTHS)
    counts[END] = 1
    if not is_noise(counts, len(some)):
        lengths = _limited(counts, LONGEST)
        fields = np.zeros((FIELDS, 2), np.int64)
        number = tokens(lengths, fields)
        few = _limited(np.bincount(fields[:number, 0], minlength=19), LONGEST_OF_LENGTHS)
        number = head(last, few, huffman.entries(few), _ORDER, fields, number)
        if int(fields[:number, 1].sum()) + int(counts @ lengths) < 8 * (len(some) + 4):
            coded = huffman.entries(lengths)[np.append(some, np.uint16(END))]
            return (
                np.concatenate([fields[:number, 0], coded >> np.uint32(5)]),
                np.concatenate([fields[:number, 1], coded & np.uint32(31)]),
            )
    plain = np.concatenate([[int(last), 0, len(some), len(some) ^ 0xFFFF], some])
    bits = np.full(len(plain), 8)
    bits[:4] = 1, 2 + -(held + 3) % 8, 16, 16
    return plain, bits


def _limited(counts: NDArray[np.int64], longest: int) -> NDArray[np.uint8]:
    """The code lengths of what occurs so often, 0 of what does not: of halved counts where one is too long."""
    lengths = np.zeros(len(counts), np.uint8)
    used = np.flatnonzero(counts)
    found = counts[used]
    lengths[used] = huffman.tree_lengths(found)
    while lengths.max() > longest:
        found = (found + 1) >> 1
        lengths[used] = huffman.tree_lengths(found)
    return lengths


def is_noise(counts: Any, total: int) -> bool:
    """Whether bytes that occur so often are surely not fewer by a code: by how often two are equal.

    In integers, which no machine rounds: 256 times the sum of squares is 2^0.02 times the square of the sum, or less.
    """
    squares = 0
    for i in range(256):
        squares += int(counts[i]) * int(counts[i])
    return squares * 256 * 1000 <= total * total * 1013


def tokens(lengths: Any, out: Any) -> int:
    """Write code lengths as RFC 1951 shortens runs of them to `out`: symbol, what follows it, bits << 8; their number.

    Args:
        lengths: (m,).
        out: (at least m, 2): of each the symbol, and extra << 8 | bits of extra.
    """
    at = number = 0
    while at < len(lengths):
        value = lengths[at]
        run = 1
        while at + run < len(lengths) and lengths[at + run] == value and run < (138 if value == 0 else 7):
            run += 1
        if value == 0 and run >= 3:
            out[number, 0] = 18 if run > 10 else 17
            out[number, 1] = (run - 11) << 8 | 7 if run > 10 else (run - 3) << 8 | 3
        else:
            out[number, 0] = value
            out[number, 1] = 0
            if run >= 4:
                number += 1
                out[number, 0] = 16
                out[number, 1] = (run - 4) << 8 | 2
            else:
                run = 1
        number += 1
        at += run
    return number


def head(last: bool, few: Any, small: Any, order: Any, fields: Any, number: int) -> int:
    """The head of a block: `fields` from tokens to values and bits of each; their number.

    Args:
        last: whether no block follows.
        few: (19,) code lengths of tokens.
        small: (19,) their `entries`.
        order: in which RFC 1951 has them.
        fields: the first `number` are of `tokens`; (FIELDS, 2), changed.
    """
    kept = 19
    while kept > 4 and few[order[kept - 1]] == 0:
        kept -= 1
    for i in range(number - 1, -1, -1):  # each token becomes two fields, behind those of the beginning
        symbol, extra, at = fields[i, 0], fields[i, 1], 1 + kept + 2 * i
        fields[at, 0], fields[at, 1] = small[symbol] >> 5, small[symbol] & 31
        fields[at + 1, 0], fields[at + 1, 1] = extra >> 8, extra & 255
    fields[0, 0], fields[0, 1] = last | 4 | (kept - 4) << 13, 17
    for i in range(kept):
        fields[1 + i, 0], fields[1 + i, 1] = few[order[i]], 3
    return 1 + kept + 2 * number
