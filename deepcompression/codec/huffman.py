"""Symbols to bits and back by canonical Huffman codes of limited length (the paper, section 3).

A code is known by its lengths alone, one for each symbol 0 .. k-1 of the alphabet; codes of equal length
count up in the order of the symbols. Symbols are coded in blocks of `BLOCK`: a decoder can work on many at once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression import _numba
from deepcompression.codec import bitstream
from deepcompression.codec.bitstream import Cursor

BLOCK = 1 << 14
_LOCKSTEP = 48
_LARGE = 1 << 10
_WORTH = 1 << 6  # symbols that repay a call of compiled code
_FOUR_AT_ONCE = 14  # bits of a code, of which four are written together
_THREES = 1 << 14  # symbols that repay a table of three at once
_MOST_COUNTED = 1 << 43  # of 1,024 symbols, so that their sum leaves room for a symbol beside it
_STEP = re.compile(rb"((?:10)*|(?:11)*)0")

Lengths = NDArray[np.uint8]
Symbols = NDArray[np.unsignedinteger[Any]]


def limit(k: int) -> int:
    """The longest code allowed in an alphabet of `k` symbols: 12 bits up to 512 symbols, 19 for 65,536."""
    return max(12, (k - 1).bit_length() + 3)


def code_lengths(counts: NDArray[np.int64]) -> Lengths:
    """Huffman code lengths (k,) of symbols that occur `counts` (k,) times, k >= 2, none longer than limit(k).

    Where Huffman's tree is deeper than the limit, package-merge (Larmore and Hirschberg 1990) gives the best code
    within it; and at once where the alphabet is so large that dahuffman takes seconds. Symbols that do not
    occur count as occurring once: every symbol has a code.
    """
    frequencies, longest = np.maximum(counts, 1), limit(len(counts))
    if len(counts) <= _LARGE:
        lengths = tree_lengths(frequencies)
        if lengths.max() <= longest:
            return lengths
    return package_merge(frequencies, longest).astype(np.uint8)


def tree_lengths(frequencies: NDArray[np.int64]) -> Lengths:
    """Bits (k,) of Huffman's code of symbols that occur so often, each at least once; k from 2 to 1,024."""
    lengths = np.empty(len(frequencies), np.uint8)
    compiled = _numba.kernels(1, 1)  # dahuffman takes long for few symbols too
    if compiled is not None and int(frequencies.max()) < _MOST_COUNTED:
        compiled.tree_lengths(frequencies, lengths)
        return lengths
    from dahuffman import HuffmanCodec

    # An end marker that is itself a symbol keeps dahuffman from adding one of its own.
    table = HuffmanCodec.from_frequencies(dict(enumerate(frequencies.tolist())), eof=0).get_code_table()
    lengths[:] = [table[symbol][0] for symbol in range(len(frequencies))]
    return lengths


def package_merge(frequencies: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    """Lengths (k,) of a best prefix code among those with none longer than `longest`; 2**longest >= k."""
    order = np.argsort(frequencies, kind="stable")
    leaves, packages = frequencies[order], frequencies[:0]
    lengths = np.zeros(len(leaves), np.int64)
    compiled = _numba.kernels(1, 1)
    if compiled is not None:
        compiled.package_merge(leaves, order, longest, lengths)
        return lengths
    is_leaf = []
    for _ in range(longest):
        merged = np.concatenate([leaves, packages])
        by_weight = np.argsort(merged, kind="stable")
        is_leaf.append(by_weight < len(leaves))
        merged = merged[by_weight]
        packages = merged[: len(merged) // 2 * 2].reshape(-1, 2).sum(axis=1)
    needed = 2 * len(leaves) - 2
    for leaf in reversed(is_leaf):
        taken = int(leaf[:needed].sum())
        lengths[order[:taken]] += 1
        needed = 2 * (needed - taken)
    return lengths


def canonical(lengths: Lengths) -> NDArray[np.uint32]:
    """The code words (k,) of a complete code, counted up by (length, symbol); a word's first bit is its lowest.

    What has no code has length 0, and 0.
    """
    order = np.argsort(lengths, kind="stable")
    longest = int(lengths.max())
    share = (np.uint64(1) << (longest - lengths[order]).astype(np.uint64)) * (lengths[order] > 0)
    words = np.empty(len(lengths), np.uint32)
    words[order] = _reversed((np.cumsum(share) - share).astype(np.uint32), longest)
    return words


def entries(lengths: Lengths) -> NDArray[np.uint32]:
    """Code word << 5 | length (k,) of each code, as `canonical`."""
    compiled = _numba.kernels(1, 1) if len(lengths) <= _LARGE else None
    if compiled is None:
        return canonical(lengths) << np.uint32(5) | lengths
    found = np.zeros(len(lengths), np.uint32)
    compiled.fill_entries(lengths, found)
    return found


def _reversed(words: NDArray[np.uint32], count: int) -> NDArray[np.uint32]:
    """The lowest `count` bits of each word, in the opposite order."""
    turned = np.zeros_like(words)
    for i in range(count):
        turned = turned << np.uint32(1) | (words >> np.uint32(i)) & np.uint32(1)
    return turned


def lookup(lengths: Lengths, values: NDArray[np.uint8] | None = None) -> NDArray[np.uint32]:
    """(2**longest,) entries symbol << 8 | length: what a stream whose next bits are the index begins with.

    With `values` (k,) there is the value of the symbol in its place.
    """
    order = np.argsort(lengths, kind="stable")
    longest = int(lengths.max())
    symbols = order if values is None else values[order]
    entries = symbols.astype(np.uint32) << np.uint32(8) | lengths[order]
    by_code = np.repeat(entries, 1 << (longest - lengths[order].astype(np.int64)))
    return by_code[_places(longest)]


@lru_cache(maxsize=24)
def _places(longest: int) -> NDArray[np.uint32]:
    """Where what begins with each index (2**longest,) is among codes in their order."""
    return _reversed(np.arange(1 << longest, dtype=np.uint32), longest)


def lookup_three(table: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """(4096,) entries bits | symbols << 6 | s0 << 8 | s1 << 16 | s2 << 24: up to three symbols below 256 at once.

    Args:
        table: lookup() of a code of at most 12 bits.
    """
    index = np.arange(4096, dtype=np.uint32)
    found, used, number = np.zeros(4096, np.uint32), np.zeros(4096, np.uint32), np.zeros(4096, np.uint32)
    open_ = np.ones(4096, bool)
    for i in range(3):
        entry = table[(index >> used) & np.uint32(len(table) - 1)]
        open_ &= used + (entry & np.uint32(255)) <= 12
        found |= np.where(open_, (entry >> np.uint32(8)) << np.uint32(8 + 8 * i), 0).astype(np.uint32)
        used += np.where(open_, entry & np.uint32(255), 0).astype(np.uint32)
        number += open_
    return found | number << np.uint32(6) | used


@lru_cache(maxsize=8)
def _tables(lengths: bytes, values: bytes, three: bool) -> tuple[NDArray[np.uint32], NDArray[np.uint32] | None]:
    """lookup() of a code and, if wanted, lookup_three(), of at most 256 symbols: the same for all chunks."""
    table = lookup(np.frombuffer(lengths, np.uint8), np.frombuffer(values, np.uint8) if values else None)
    return table, lookup_three(table) if three and len(lengths) <= 256 else None


def write_lengths(lengths: Lengths) -> bytes:
    """The table of code lengths in the file.

    The first length in 5 bits; then for every further one a step 10 (up) or 11 (down) for each bit of
    difference and a closing 0 (as bzip2 does); padded with zero bits.
    """
    steps = np.diff(lengths.astype(np.int64))
    sizes = 2 * np.abs(steps) + 1
    ends = np.cumsum(sizes)
    places = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
    spelt = (places % 2 == 0) | np.repeat(steps < 0, sizes)
    spelt[ends - 1] = False
    first = lengths[0] >> np.arange(5, dtype=np.uint8) & 1
    return np.packbits(np.concatenate([first.astype(np.bool_), spelt]), bitorder="little").tobytes()


def table_bytes(lengths: Lengths) -> int:
    """The bytes of `write_lengths(lengths)`."""
    return (5 + len(lengths) - 1 + 2 * int(np.abs(np.diff(lengths.astype(np.int64))).sum()) + 7) // 8


def read_lengths(cursor: Cursor, k: int) -> Lengths:
    """The inverse of `write_lengths` for `k` symbols; MalformedFile unless complete and within limit(k)."""
    longest = limit(k)
    most = (5 + k * (1 + 2 * longest) + 7) // 8
    source = np.frombuffer(cursor.buffer[cursor.at : cursor.at + most], np.uint8)
    text = (np.unpackbits(source, bitorder="little") + 48).tobytes()
    lengths = [int(text[:5][::-1] or b"0", 2)]
    at = 5
    while len(lengths) < k and (step := _STEP.match(text, at)):
        steps = len(step[1]) // 2
        lengths.append(lengths[-1] + (steps if step[1][1:2] == b"0" else -steps))
        at = step.end()
    if len(lengths) < k or b"1" in text[at : (at + 7) // 8 * 8]:
        raise cursor.fail(f"the table of code lengths breaks off or is misspelt after {len(lengths)} of {k} symbols")
    cursor.take((at + 7) // 8, "the table of code lengths")
    found = np.array(lengths)
    if found.min() < 1 or found.max() > longest or int((1 << (longest - found)).sum()) != 1 << longest:
        raise cursor.fail(f"the code lengths are no complete prefix code of 1 to {longest} bits")
    return found.astype(np.uint8)


def encode_blocks(
    symbols: Symbols, lengths: Lengths, values: NDArray[np.uint8] | None = None
) -> tuple[bytes, list[int]]:
    """The Huffman-coded blocks of `symbols` (n,), each zero padded to whole bytes, and their sizes.

    Args:
        symbols: (n,).
        lengths: (k,) bits of each symbol's code.
        values: (k,) bytes that stand in `symbols` in place of each symbol, if not itself; k at most 256.
    """
    if values is not None:
        lengths = _placed(lengths, values)
    compiled = _numba.kernels(len(symbols), _WORTH)
    if compiled is not None:
        sizes = np.empty(-(-len(symbols) // BLOCK), np.int64)
        longest = int(lengths.max())
        out = np.empty(len(symbols) * longest // 8 + len(sizes) + 16, np.uint8)
        four = symbols.itemsize == 1 and longest <= _FOUR_AT_ONCE
        encode = compiled.encode_bytes if four else compiled.encode_blocks
        end = encode(symbols, entries(lengths), BLOCK, out, sizes)
        return out[:end].tobytes(), sizes.tolist()
    words = canonical(lengths)
    cut = (symbols[i : i + BLOCK] for i in range(0, len(symbols), BLOCK))
    blocks = [bitstream.concatenate(words[block], lengths[block]) for block in cut]
    return b"".join(blocks), [len(block) for block in blocks]


def _placed(lengths: Lengths, values: NDArray[np.uint8]) -> Lengths:
    """Bits (256,) of the code of each byte, of the codes (k,) of `values`, 0 of all others."""
    every = np.zeros(256, np.uint8)
    every[values] = lengths
    return every


def decode_blocks(
    data: memoryview | bytes,
    sizes: Sequence[int],
    counts: Sequence[int],
    lengths: Lengths,
    values: NDArray[np.uint8] | None = None,
) -> tuple[Symbols, NDArray[np.int64]]:
    """All symbols of consecutive blocks of sizes[i] bytes and counts[i] symbols, and the bit where each ends.

    Damaged blocks give arbitrary symbols of the alphabet, and an end that is not in the block's last byte.

    Args:
        data: the blocks, one after the other.
        sizes: bytes of each.
        counts: symbols of each.
        lengths: (k,) bits of each symbol's code.
        values: (k,) what stands in place of each symbol, if not itself; k at most 256.
    """
    total, longest = int(sum(counts)), int(lengths.max())
    symbols: Symbols = np.zeros(total + 8, np.uint8 if len(lengths) <= 256 else np.uint16)
    compiled = _numba.kernels(total, _WORTH)
    three = compiled is None or total >= _THREES
    table, threes = _tables(lengths.tobytes(), b"" if values is None else values.tobytes(), three)
    starts = 8 * (np.cumsum(sizes, dtype=np.int64) - np.array(sizes, np.int64))
    number = np.array(counts, np.int64)
    first = np.cumsum(number) - number
    if compiled is not None:
        # A damaged block may run on for BLOCK codes: zeros keep that within the array.
        padded = np.zeros(len(data) + (BLOCK * longest + 7) // 8 + 16, np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        if threes is not None:
            compiled.decode_threes(padded, starts, first, number, threes, table, symbols)
        else:
            compiled.decode_blocks(padded, starts, first, number, table, symbols)
        return symbols[:total], starts
    if len(sizes) >= _LOCKSTEP:
        _decode_lockstep(np.frombuffer(data, np.uint8), starts, first, number, table, threes, symbols)
        return symbols[:total], starts
    ends = np.empty(len(sizes), np.int64)
    for i, (start, size, at) in enumerate(zip((starts // 8).tolist(), sizes, first.tolist(), strict=True)):
        block = np.frombuffer(data, np.uint8)[start : start + size]
        ends[i] = 8 * start + _decode_block(block, table, longest, symbols[at : at + counts[i]])
    return symbols[:total], ends


def _decode_lockstep(
    data: NDArray[np.uint8],
    at: NDArray[np.int64],
    to: NDArray[np.int64],
    number: NDArray[np.int64],
    table: NDArray[np.uint32],
    threes: NDArray[np.uint32] | None,
    symbols: Symbols,
) -> None:
    """Fill `symbols` from many blocks at once, a step of each at a time; `at` (blocks,) bits move to their ends."""
    window = np.concatenate([bitstream.windows(data), np.zeros(8, np.uint32)])
    beyond = 8 * len(data) + 31
    ends = to + number
    to = to.copy()
    mask = np.uint32(4095)
    while threes is not None:
        live = np.flatnonzero(to <= ends - 3)
        if 4 * len(live) < len(to) or not len(live):
            break
        p, q, last = at[live], to[live], ends[live] - 3
        # Blocks fall out of step slowly: most rounds go on with the same ones.
        for _ in range(64):
            entry = threes[(window[p >> 3] >> (p & 7).astype(np.uint32)) & mask]
            symbols[q] = entry >> np.uint32(8)
            symbols[q + 1] = entry >> np.uint32(16)
            symbols[q + 2] = entry >> np.uint32(24)
            q += (entry >> np.uint32(6)) & np.uint32(3)
            p += entry & np.uint32(63)
            np.minimum(p, beyond, out=p)
            if (q > last).any():
                break
        at[live], to[live] = p, q
    mask = np.uint32(len(table) - 1)
    while len(live := np.flatnonzero(to < ends)):
        entry = table[(window[at[live] >> 3] >> (at[live] & 7).astype(np.uint32)) & mask]
        symbols[to[live]] = entry >> np.uint32(8)
        to[live] += 1
        at[live] = np.minimum(at[live] + (entry & np.uint32(255)), beyond)


def _decode_block(source: NDArray[np.uint8], table: NDArray[np.uint32], longest: int, out: Symbols) -> int:
    """Fill `out` with the symbols that `source` begins with; the bit position behind them, or past its end.

    Every bit position is decoded as though a symbol began there. To follow the pointers from symbol to symbol
    then takes log2(n) rounds: in each, the known positions and the reach of the pointers double.
    """
    size = 8 * len(source)
    entries = np.zeros(size + 2, np.int64)
    each = bitstream.windows(source)[:, None] >> np.arange(8, dtype=np.uint32)
    entries[:size] = table[each.reshape(-1) & np.uint32(len(table) - 1)]
    jump = np.minimum(np.arange(size + 2) + (entries & 255), size + 1)
    jump[size] = size + 1
    step = jump
    at = np.zeros(len(out), np.int64)
    known = 1
    while known < len(at):
        more = min(known, len(at) - known)
        at[known : known + more] = jump[at[:more]]
        known += more
        jump = jump[jump] if known < len(at) else jump
    out[:] = entries[at] >> 8
    return int(step[at[-1]])
