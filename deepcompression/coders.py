"""Symbols to bits and back: fixed width, or canonical Huffman codes of limited length (the paper, section 3).

A code is known by its lengths alone, one for each symbol 0 .. k-1 of the alphabet; codes of equal length
count up in the order of the symbols. Small alphabets are coded in tuples, which are symbols of a larger one. Streams
are cut into blocks of `BLOCK` tuples, coded one by one: a decoder can work on many at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression import bits
from deepcompression.bits import Cursor

BLOCK = 1 << 14
MOST_TUPLES = 1 << 12
_TUPLES_TRIED = 1 << 10
_LOCKSTEP = 48
_LARGE = 1 << 10
_STEP = re.compile(rb"((?:10)*|(?:11)*)0")

Lengths = NDArray[np.uint8]
Symbols = NDArray[np.unsignedinteger[Any]]


def limit(k: int) -> int:
    """The longest code allowed in an alphabet of `k` symbols: 12 bits up to 512 symbols, 19 for 65,536."""
    return max(12, (k - 1).bit_length() + 3)


def width(k: int) -> int:
    """Bits of a fixed-width code for `k` symbols; 0 where there is only one."""
    return (k - 1).bit_length()


# ---------------------------------------------------------------- codes


def code_lengths(counts: NDArray[np.int64]) -> Lengths:
    """Huffman code lengths (k,) of symbols that occur `counts` (k,) times, k >= 2, none longer than limit(k).

    dahuffman builds the tree. Where it is deeper than the limit, package-merge (Larmore and Hirschberg 1990)
    gives the best code within it; and at once where the alphabet is so large that dahuffman takes
    seconds. Symbols that do not occur count as occurring once: every symbol has a code.
    """
    from dahuffman import HuffmanCodec

    frequencies = np.maximum(counts, 1)
    if len(counts) > _LARGE:
        return package_merge(frequencies, limit(len(counts))).astype(np.uint8)
    # An end marker that is itself a symbol keeps dahuffman from adding one of its own.
    table = HuffmanCodec.from_frequencies(dict(enumerate(frequencies.tolist())), eof=0).get_code_table()
    lengths = np.array([table[symbol][0] for symbol in range(len(counts))])
    if lengths.max() > limit(len(counts)):
        lengths = package_merge(frequencies, limit(len(counts)))
    return lengths.astype(np.uint8)


def package_merge(frequencies: NDArray[np.int64], longest: int) -> NDArray[np.int64]:
    """Lengths (k,) of a best prefix code among those with none longer than `longest`; 2**longest >= k."""
    order = np.argsort(frequencies, kind="stable")
    leaves = frequencies[order]
    packages = leaves[:0]
    is_leaf = []
    for _ in range(longest):
        merged = np.concatenate([leaves, packages])
        by_weight = np.argsort(merged, kind="stable")
        is_leaf.append(by_weight < len(leaves))
        merged = merged[by_weight]
        packages = merged[: len(merged) // 2 * 2].reshape(-1, 2).sum(axis=1)
    lengths = np.zeros(len(leaves), np.int64)
    needed = 2 * len(leaves) - 2
    for leaf in reversed(is_leaf):
        taken = int(leaf[:needed].sum())
        lengths[order[:taken]] += 1
        needed = 2 * (needed - taken)
    return lengths


def canonical(lengths: Lengths) -> NDArray[np.uint32]:
    """The code words (k,) of a complete code, counted up by (length, symbol); a word's first bit is its lowest."""
    order = np.argsort(lengths, kind="stable")
    longest = int(lengths.max())
    share = np.uint64(1) << (longest - lengths[order]).astype(np.uint64)
    words = np.empty(len(lengths), np.uint32)
    words[order] = _reversed((np.cumsum(share) - share).astype(np.uint32), longest)
    return words


def _reversed(words: NDArray[np.uint32], count: int) -> NDArray[np.uint32]:
    """The lowest `count` bits of each word, in the opposite order."""
    turned = np.zeros_like(words)
    for i in range(count):
        turned = turned << np.uint32(1) | (words >> np.uint32(i)) & np.uint32(1)
    return turned


def lookup(lengths: Lengths) -> NDArray[np.uint32]:
    """(2**longest,) entries symbol << 8 | length: what a stream whose next bits are the index begins with."""
    order = np.argsort(lengths, kind="stable").astype(np.uint32)
    longest = int(lengths.max())
    entries = order << np.uint32(8) | lengths[order]
    by_code = np.repeat(entries, 1 << (longest - lengths[order].astype(np.int64)))
    return by_code[_reversed(np.arange(len(by_code), dtype=np.uint32), longest)]


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
def _tables(lengths: bytes) -> tuple[NDArray[np.uint32], NDArray[np.uint32] | None]:
    """lookup() of a code, and lookup_three() where its alphabet has at most 256 symbols: the same for all chunks."""
    table = lookup(np.frombuffer(lengths, np.uint8))
    return table, lookup_three(table) if len(lengths) <= 256 else None


def write_lengths(lengths: Lengths) -> bytes:
    """The table of code lengths in the file.

    The first length in 5 bits; then for every further one a step 10 (up) or 11 (down) for each bit of
    difference and a closing 0 (as bzip2 does); padded with zero bits.
    """
    steps = np.diff(lengths.astype(np.int64)).tolist()
    text = f"{lengths[0]:05b}"[::-1] + "".join(("10" * step if step > 0 else "11" * -step) + "0" for step in steps)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) & 1, bitorder="little").tobytes()


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


# ---------------------------------------------------------------- streams


@dataclass(frozen=True)
class Stream:
    """How symbols below `k` are written: `tuple_size` of them together, by a code or (None) in fixed width."""

    k: int
    tuple_size: int = 1
    lengths: Lengths | None = None

    @property
    def alphabet(self) -> int:
        """The number of tuples."""
        return int(self.k**self.tuple_size)

    def header(self) -> bytes:
        """What the head of a blob says of the stream."""
        if self.k == 1:
            return b""
        if self.lengths is None:
            return bytes([self.tuple_size])
        return bytes([self.tuple_size | 128]) + write_lengths(self.lengths)

    def size(self, counts: NDArray[np.int64], chunks: int = 1) -> int:
        """Bytes of header and stream where tuple i occurs counts[i] times in so many chunks; padding estimated."""
        if self.k == 1:
            return 0
        total = int(counts.sum())
        if self.lengths is None:
            return 1 + bits.packed_size(total, width(self.alphabet)) + chunks // 2
        coded = int(counts @ self.lengths.astype(np.int64))
        blocks = -(-total // BLOCK) + chunks - 1
        framed = len(bits.varint(coded // 8)) + 5 * (blocks - 1) // 2 if blocks > 0 else 0
        return 1 + table_bytes(self.lengths) + (coded + 7) // 8 + framed


def tuples(symbols: Symbols, k: int, size: int) -> Symbols:
    """Symbols (s,) below `k` as tuples ((s + size - 1) // size,), the first one lowest."""
    if size == 1:
        return symbols
    rows = np.zeros((-(-len(symbols) // size), size), np.uint16)
    rows.reshape(-1)[: len(symbols)] = symbols
    made: Symbols = rows[:, size - 1].copy()
    for i in range(size - 2, -1, -1):
        made = made * np.uint16(k) + rows[:, i]
    return made.astype(np.uint8) if k**size <= 256 else made


def singles(made: Symbols, k: int, size: int, count: int) -> Symbols:
    """The inverse of `tuples`: `count` symbols."""
    if size == 1:
        return made
    numbers = np.arange(k**size)
    digits = np.stack([numbers // k**i % k for i in range(size)], axis=1)
    table: Symbols = digits.astype(np.uint8 if k <= 256 else np.uint16)
    return table[made].reshape(-1)[:count]


def tuple_sizes(k: int) -> list[int]:
    """The tuples that are worth a try in an alphabet of `k`: those with at most 1,024 combinations."""
    return [size for size in range(1, 32) if size == 1 or (k > 1 and k**size <= _TUPLES_TRIED)]


def plan(
    counts: NDArray[np.int64], k: int, tuple_size: int, coder: str, chunks: int = 1, most: int = 1 << 62
) -> tuple[int, Stream]:
    """The smallest way to write a stream whose tuples occur `counts` (k**tuple_size,) times, and its bytes.

    Args:
        coder: "packed" for fixed width; else codes are weighed against it.
        most: bytes that another way takes: no code is made where none can be smaller.
    """
    packed = Stream(k, tuple_size)
    best = packed.size(counts, chunks), packed
    if coder == "packed" or k == 1 or _incompressible(counts, min(best[0], most)):
        return best
    lengths = code_lengths(counts)
    for tried in (lengths, *_smoother(counts, lengths)):
        coded = Stream(k, tuple_size, tried)
        size = coded.size(counts, chunks)
        if size < best[0]:
            best = size, coded
    return best


def _smoother(counts: NDArray[np.int64], lengths: Lengths) -> list[Lengths]:
    """Codes whose tables are smaller, of averaged counts, where the table is a part that matters."""
    total = int(counts.sum())
    if len(counts) < 16 or 400 * table_bytes(lengths) < int(counts @ lengths.astype(np.int64)) // 8:
        return []
    made = []
    for reach in (1, 2, 4, 8):
        window = np.ones(2 * reach + 1, np.int64)
        sums = np.convolve(np.pad(counts, reach, mode="edge"), window, mode="valid")
        made.append(code_lengths(np.minimum(sums, total * len(window))))
    return made


def _incompressible(counts: NDArray[np.int64], packed: int) -> bool:
    """Whether even an ideal code and the smallest table come to so many bytes: spares building a tree.

    The margin of a millionth keeps rounding, which differs between machines, from deciding anything.
    """
    used = counts[counts > 0].astype(np.float64)
    ideal = float((used * np.log2(used.sum() / used)).sum()) if used.size else 0.0
    return (ideal * (1 - 1e-6) + len(counts) + 4) / 8 >= packed


def encode(symbols: Symbols, stream: Stream) -> bytes:
    """`symbols` (s,) as one stream of a chunk."""
    if stream.k == 1:
        return b""
    made = tuples(symbols, stream.k, stream.tuple_size)
    if stream.lengths is None:
        return bits.pack(made, width(stream.alphabet))
    coded, sizes = encode_blocks(made, stream.lengths)
    return b"".join(map(bits.varint, sizes)) + coded


def encode_blocks(symbols: Symbols, lengths: Lengths) -> tuple[bytes, list[int]]:
    """The Huffman-coded blocks of `symbols` (n,), each zero padded to whole bytes, and their sizes."""
    words = canonical(lengths)
    compiled = kernels(len(symbols))
    if compiled is not None:
        sizes = np.empty(-(-len(symbols) // BLOCK), np.int64)
        most = len(symbols) * int(lengths.max()) // 8 + len(sizes) + 16
        out = np.empty(most, np.uint8)
        end = compiled.encode_blocks(symbols, words << np.uint32(5) | lengths, BLOCK, out, sizes)
        return out[:end].tobytes(), sizes.tolist()
    cut = (symbols[i : i + BLOCK] for i in range(0, len(symbols), BLOCK))
    blocks = [bits.concatenate(words[block], lengths[block]) for block in cut]
    return b"".join(blocks), [len(block) for block in blocks]


def read_stream(cursor: Cursor, k: int) -> Stream:
    """The header of a stream of symbols below `k`; MalformedFile where it is impossible."""
    if k == 1:
        return Stream(1)
    byte = cursor.take(1, "a stream's header")[0]
    size = byte & 31
    if byte & 0x60 or size == 0 or (size > 1 and k**size > MOST_TUPLES):
        raise cursor.fail(f"a stream of {k} symbols has the impossible header {byte:#04x}")
    return Stream(k, size, read_lengths(cursor, k**size) if byte & 128 else None)


def decode(cursors: Sequence[Cursor], counts: Sequence[int], stream: Stream) -> list[Symbols]:
    """The next counts[i] symbols of each of `cursors`, streams of different chunks, decoded together.

    Symbols are uint8 up to k = 256, else uint16.
    """
    if stream.k == 1:
        return [np.zeros(count, np.uint8) for count in counts]
    sizes = [-(-count // stream.tuple_size) for count in counts]
    read = _read_packed if stream.lengths is None else _read_huffman
    made = read(cursors, sizes, stream)
    for cursor, count, found in zip(cursors, counts, made, strict=True):
        spare = len(found) * stream.tuple_size - count
        if spare and int(found[-1]) >= stream.k ** (stream.tuple_size - spare):
            raise cursor.fail("the last tuple is not filled up with zeros")
    return [singles(found, stream.k, stream.tuple_size, count) for found, count in zip(made, counts, strict=True)]


def _read_packed(cursors: Sequence[Cursor], sizes: Sequence[int], stream: Stream) -> list[Symbols]:
    made: list[Symbols] = []
    each = width(stream.alphabet)
    for cursor, size in zip(cursors, sizes, strict=True):
        packed = cursor.take(bits.packed_size(size, each), "the packed stream")
        made.append(bits.unpack(packed, size, each))
        if size and (int(made[-1].max()) >= stream.alphabet or not bits.padding_is_zero(packed, size * each)):
            raise cursor.fail(f"a packed symbol is not below {stream.alphabet}, or the padding is not zero")
    return made


def _read_huffman(cursors: Sequence[Cursor], sizes: Sequence[int], stream: Stream) -> list[Symbols]:
    assert stream.lengths is not None
    most = (BLOCK * int(stream.lengths.max()) + 7) // 8
    parts: list[memoryview] = []
    blocks: list[int] = []
    counts: list[int] = []
    for cursor, size in zip(cursors, sizes, strict=True):
        if size > 8 * cursor.left:
            raise cursor.fail(f"{size} symbols cannot fit in {cursor.left} bytes")
        number = -(-size // BLOCK)
        own = [cursor.varint("a block's length", most) for _ in range(number)]
        parts.append(cursor.take(sum(own), "the coded blocks"))
        blocks += own
        counts += [BLOCK] * (number - 1) + [size - BLOCK * (number - 1)] * min(number, 1)
    data = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
    symbols, ends = decode_blocks(data, blocks, counts, stream.lengths)
    if not _end_well(data, np.cumsum(blocks, dtype=np.int64), ends):
        raise cursors[0].fail("a coded block does not end where its length says, or its padding is not zero")
    return np.split(symbols, np.cumsum(sizes)[:-1]) if len(sizes) > 1 else [symbols]


def _end_well(data: memoryview, limits: NDArray[np.int64], ends: NDArray[np.int64]) -> bool:
    """Whether each block ends in the last byte before its limit, and the rest of that byte is zero."""
    spare = 8 * limits - ends
    if ((spare < 0) | (spare > 7)).any():
        return False
    return not (np.frombuffer(data, np.uint8)[limits - 1] >> (8 - spare)).any()


def decode_blocks(
    data: memoryview | bytes, sizes: Sequence[int], counts: Sequence[int], lengths: Lengths
) -> tuple[Symbols, NDArray[np.int64]]:
    """All symbols of consecutive blocks of sizes[i] bytes and counts[i] symbols, and the bit where each ends.

    Damaged blocks give arbitrary symbols of the alphabet, and an end that is not in the block's last byte.
    """
    total, longest = int(sum(counts)), int(lengths.max())
    symbols: Symbols = np.zeros(total + 8, np.uint8 if len(lengths) <= 256 else np.uint16)
    table, threes = _tables(lengths.tobytes())
    starts = 8 * (np.cumsum(sizes, dtype=np.int64) - np.array(sizes, np.int64))
    number = np.array(counts, np.int64)
    first = np.cumsum(number) - number
    compiled = kernels(total)
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
    window = np.concatenate([bits.windows(data), np.zeros(8, np.uint32)])
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
    each = bits.windows(source)[:, None] >> np.arange(8, dtype=np.uint32)
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


def kernels(count: int, worth_calling: int = 1 << 16, worth_importing: int = 1 << 22) -> ModuleType | None:
    """The compiled coders where numba is installed and `count` symbols repay its use, else None.

    The environment variable DEEPCOMPRESSION_NO_NUMBA, if not empty, keeps to numpy. The results are the same.
    """
    worth_it = count >= (worth_calling if "numba" in sys.modules else worth_importing)
    if not worth_it or os.environ.get("DEEPCOMPRESSION_NO_NUMBA"):
        return None
    try:
        return import_module("deepcompression.kernels")
    except ImportError:
        return None
