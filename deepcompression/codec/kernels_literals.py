"""Compiled: bytes by codes of their own, four at once; deflate streams without matches; Huffman's tree.

The same bytes as `literals` and `huffman` in numpy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression._numba import compiled
from deepcompression.codec import literals
from deepcompression.codec.kernels_bits import store_eight

_BYTE, _LENGTH, _FIVE, _THREE, _WHOLE = np.uint64(7), np.uint64(31), np.uint64(5), np.uint64(3), np.uint64(56)
_END, _LENGTHS, _FIELDS = literals.END, literals.LENGTHS, literals.FIELDS
_LONGEST, _LONGEST_OF_LENGTHS = literals.LONGEST, literals.LONGEST_OF_LENGTHS
_SHIFT, _LOW = 10, 1023  # of a key: the first symbol below a count

_is_noise, _tokens = compiled(literals.is_noise), compiled(literals.tokens)
_head = compiled(literals.head)


@compiled
def _sink(heap: NDArray[np.int64], at: int, size: int) -> None:
    """Move a key down the first `size` of a heap to where none below it is less."""
    key = heap[at]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        child += child + 1 < size and heap[child + 1] < heap[child]
        if heap[child] >= key:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = key


@compiled
def tree_lengths(frequencies: NDArray[np.int64], lengths: NDArray[Any]) -> None:
    """Fill `lengths` (k,) with those of Huffman's code of symbols that occur so often, k from 2 to 1,024.

    Of nodes that occur equally often, those with the lower first symbol are merged first, as by dahuffman.
    """
    count = len(frequencies)
    above = np.zeros(2 * count - 1, np.int64)
    nodes, heap = np.empty(count, np.int64), np.empty(count, np.int64)  # the node whose first symbol this is
    for symbol in range(count):
        nodes[symbol] = symbol
        heap[symbol] = frequencies[symbol] << _SHIFT | symbol
    for at in range(count // 2 - 1, -1, -1):
        _sink(heap, at, count)
    for node in range(count, 2 * count - 1):
        size = 2 * count - 1 - node
        one, heap[0] = heap[0], heap[size]
        _sink(heap, 0, size)
        other = heap[0]
        above[nodes[one & _LOW]] = node
        above[nodes[other & _LOW]] = node
        nodes[one & _LOW] = node
        heap[0] = ((one >> _SHIFT) + (other >> _SHIFT)) << _SHIFT | (one & _LOW)
        _sink(heap, 0, size)
    for node in range(2 * count - 3, -1, -1):  # from here on, how far above it the root is
        above[node] = above[above[node]] + 1 if above[node] < 2 * count - 2 else 1
    for symbol in range(count):
        lengths[symbol] = above[symbol]


@compiled
def package_merge(
    leaves: NDArray[np.int64], order: NDArray[np.int64], longest: int, lengths: NDArray[np.int64]
) -> None:
    """Fill the lengths of a limited code, as `huffman.package_merge`.

    Args:
        leaves: (k,) how often symbols occur, ascending.
        order: (k,) which symbols these are.
        longest: of all codes.
        lengths: (k,) zeros; filled.
    """
    count = len(leaves)
    is_leaf = np.zeros((longest, 2 * count), np.bool_)
    packages, merged = np.empty(count, np.int64), np.empty(2 * count, np.int64)
    made = 0
    for row in range(longest):
        leaf = package = 0
        for at in range(count + made):
            if package == made or (leaf < count and leaves[leaf] <= packages[package]):
                merged[at] = leaves[leaf]
                is_leaf[row, at] = True
                leaf += 1
            else:
                merged[at] = packages[package]
                package += 1
        made = (count + made) // 2
        for i in range(made):
            packages[i] = merged[2 * i] + merged[2 * i + 1]
    needed = 2 * count - 2
    for row in range(longest - 1, -1, -1):
        taken = 0
        for at in range(needed):
            taken += is_leaf[row, at]
        for i in range(taken):
            lengths[order[i]] += 1
        needed = 2 * (needed - taken)


@compiled
def _limited(counts: NDArray[np.int64], longest: int, lengths: NDArray[np.int64]) -> None:
    """As `literals._limited`: fill `lengths` (k,), zeros."""
    used = np.empty(len(counts), np.int64)
    number = 0
    for symbol in range(len(counts)):
        if counts[symbol]:
            used[number] = symbol
            number += 1
    found, short = np.empty(number, np.int64), np.empty(number, np.int64)
    for i in range(number):
        found[i] = counts[used[i]]
    deepest = longest + 1
    while deepest > longest:
        tree_lengths(found, short)
        deepest = 0
        for i in range(number):
            deepest = max(deepest, short[i])
            found[i] = (found[i] + 1) >> 1
    for i in range(number):
        lengths[used[i]] = short[i]


@compiled
def fill_entries(lengths: NDArray[Any], out: NDArray[Any]) -> None:
    """Fill `out` (k,) with `huffman.entries` of the lengths (k,), of at most 15 bits."""
    code = 0
    for length in range(1, 16):
        code <<= 1
        for symbol in range(len(lengths)):
            if lengths[symbol] == length:
                turned = 0
                for bit in range(length):
                    turned |= ((code >> bit) & 1) << (length - 1 - bit)
                out[symbol] = turned << 5 | length
                code += 1


@compiled
def _count_bytes(plane: NDArray[np.uint8], counts: NDArray[np.int64]) -> None:
    """Add to `counts` (256 or more,) how often each byte occurs in `plane` (n,)."""
    own = np.zeros((4, 256), np.uint32)
    whole = len(plane) // 4 * 4
    for i in range(0, whole, 4):  # four tables: equal neighbours do not wait for each other
        own[0, plane[i]] += np.uint32(1)
        own[1, plane[i + 1]] += np.uint32(1)
        own[2, plane[i + 2]] += np.uint32(1)
        own[3, plane[i + 3]] += np.uint32(1)
    for i in range(whole, len(plane)):
        own[0, plane[i]] += np.uint32(1)
    for j in range(256):
        counts[j] += np.int64(own[0, j]) + own[1, j] + own[2, j] + own[3, j]


@compiled
def count_runs(plane: NDArray[np.uint8], run: int, counts: NDArray[np.int64]) -> None:
    """Add to `counts` (runs, 256) how often each byte occurs in each run.

    Args:
        plane: (n,) the bytes.
        run: bytes of a run; the last may be shorter.
        counts: added to.
    """
    for i in range(len(counts)):
        _count_bytes(plane[i * run : (i + 1) * run], counts[i])


@compiled
def _put_bytes(
    plane: NDArray[np.uint8],
    table: NDArray[np.uint32],
    out: NDArray[np.uint8],
    at: int,
    pending: np.uint64,
    held: np.uint64,
) -> tuple[int, np.uint64, np.uint64]:
    """Write codes of bytes to `out` from byte `at` on, where `held` bits, up to 7, are `pending`; what follows alike.

    Args:
        plane: (n,) the bytes.
        table: (256 or more,) code word << 5 | length, of at most 14 bits.
        out: at least 8 bytes longer than what is written.
    """
    whole = len(plane) // 4 * 4
    for i in range(0, whole, 4):
        a, b = np.uint64(table[plane[i]]), np.uint64(table[plane[i + 1]])
        c, d = np.uint64(table[plane[i + 2]]), np.uint64(table[plane[i + 3]])
        two = (a >> _FIVE) | (b >> _FIVE) << (a & _LENGTH)
        more = (c >> _FIVE) | (d >> _FIVE) << (c & _LENGTH)
        bits = (a & _LENGTH) + (b & _LENGTH)
        pending |= (two | more << bits) << held
        held += bits + (c & _LENGTH) + (d & _LENGTH)
        store_eight(out, at, pending)
        at += int(held >> _THREE)
        pending >>= held & _WHOLE
        held &= _BYTE
    for i in range(whole, len(plane)):
        at, pending, held = _put(np.int64(table[plane[i]] >> 5), np.int64(table[plane[i]] & 31), out, at, pending, held)
    return at, pending, held


@compiled
def _put(
    value: int, bits: int, out: NDArray[np.uint8], at: int, pending: np.uint64, held: np.uint64
) -> tuple[int, np.uint64, np.uint64]:
    """As `_put_bytes`, of one value of up to 56 bits."""
    pending |= np.uint64(value) << held
    held += np.uint64(bits)
    store_eight(out, at, pending)
    return at + int(held >> _THREE), pending >> (held & _WHOLE), held & _BYTE


@compiled
def encode_bytes(
    plane: NDArray[np.uint8], table: NDArray[np.uint32], block: int, out: NDArray[np.uint8], sizes: NDArray[np.int64]
) -> int:
    """As `encode_blocks`, of bytes whose codes have at most 14 bits.

    Args:
        plane: (n,) the bytes.
        table: (256,) code word << 5 | length.
        block: bytes a block.
        out: at least 8 bytes longer than the coded blocks.
        sizes: (blocks,) filled.
    """
    at = 0
    for i in range(len(sizes)):
        some = plane[i * block : (i + 1) * block]
        end, _, held = _put_bytes(some, table, out, at, np.uint64(0), np.uint64(0))
        sizes[i] = end + (held > 0) - at
        at = end + (held > 0)
    return at


@compiled
def _plan(
    counts: NDArray[np.int64], total: int, last: bool, order: NDArray[np.int64], fields: NDArray[np.int64]
) -> tuple[int, NDArray[np.int64]]:
    """The fields of the head of a block with a code of its own, and the lengths; 0 where it is stored."""
    lengths = np.zeros(_LENGTHS, np.int64)
    _limited(counts, _LONGEST, lengths)
    number = _tokens(lengths, fields)
    found, few, small = np.zeros(19, np.int64), np.zeros(19, np.int64), np.zeros(19, np.int64)
    for i in range(number):
        found[fields[i, 0]] += 1
    _limited(found, _LONGEST_OF_LENGTHS, few)
    fill_entries(few, small)
    number = _head(last, few, small, order, fields, number)
    coded = 0
    for symbol in range(_LENGTHS):
        coded += counts[symbol] * lengths[symbol]
    for i in range(number):
        coded += fields[i, 1]
    return (number if coded < 8 * (total + 4) else 0), lengths


@compiled
def deflate_literals(plane: NDArray[np.uint8], size: int, order: NDArray[np.int64], out: NDArray[np.uint8]) -> int:
    """Write the bytes `plane` (n,) as one deflate stream to `out`; its bytes.

    Args:
        size: bytes of a block.
        order: literals._ORDER.
        out: longer than `plane` by 8 bytes for each block, and 16.
    """
    at, pending, held = 0, np.uint64(0), np.uint64(0)
    fields, table = np.zeros((_FIELDS, 2), np.int64), np.zeros(_LENGTHS, np.uint32)
    for start in range(0, len(plane), size):
        some, last = plane[start : start + size], start + size >= len(plane)
        counts = np.zeros(_LENGTHS, np.int64)
        _count_bytes(some, counts)
        counts[_END] = 1
        number, lengths = 0, counts
        if not _is_noise(counts, len(some)):
            number, lengths = _plan(counts, len(some), last, order, fields)
        for i in range(number):
            at, pending, held = _put(fields[i, 0], fields[i, 1], out, at, pending, held)
        if number:
            fill_entries(lengths, table)
            at, pending, held = _put_bytes(some, table, out, at, pending, held)
            at, pending, held = _put(np.int64(table[_END] >> 5), np.int64(table[_END] & 31), out, at, pending, held)
            continue
        at, pending, held = _put(np.int64(last), 3, out, at, pending, held)
        at += int(held > 0)
        at, pending, held = _put(len(some) | (len(some) ^ 0xFFFF) << 16, 32, out, at, np.uint64(0), np.uint64(0))
        out[at : at + len(some)] = some
        at += len(some)
    return at + int(held > 0)
