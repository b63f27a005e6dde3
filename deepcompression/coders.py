"""Symbols to bits and back: fixed width, or canonical Huffman codes of limited length (the paper, section 3).

A code is known by its lengths alone, one for each symbol 0 .. k-1 of the alphabet; codes of equal length
count up in the order of the symbols. Streams are cut into blocks of `BLOCK` symbols, coded one by one: a
decoder can work on several at once.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression import bits
from deepcompression.bits import Cursor

BLOCK = 1 << 14
CODERS = ("packed", "huffman")
WORTH_CALLING = 1 << 16
WORTH_IMPORTING = 1 << 22
_STEP = re.compile(rb"((?:10)*|(?:11)*)0")

Lengths = NDArray[np.uint8]
Symbols = NDArray[np.unsignedinteger[Any]]


def limit(k: int) -> int:
    """The longest code allowed in an alphabet of `k` symbols: 12 bits up to 512 symbols, 19 for 65,536."""
    return max(12, (k - 1).bit_length() + 3)


def width(k: int) -> int:
    """Bits of a fixed-width code for `k` symbols; 0 where there is only one."""
    return (k - 1).bit_length()


def code_lengths(counts: NDArray[np.int64]) -> Lengths:
    """Huffman code lengths (k,) of symbols that occur `counts` (k,) times, k >= 2, none longer than limit(k).

    dahuffman builds the tree. Where it is deeper than the limit, package-merge (Larmore and Hirschberg 1990)
    gives the best code within it. Symbols that do not occur count as occurring once: every symbol has a code.
    """
    from dahuffman import HuffmanCodec

    frequencies = np.maximum(counts, 1)
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
    """The code words (k,) of a complete code, in their lengths' low bits: counted up by (length, symbol)."""
    order = np.argsort(lengths, kind="stable")
    longest = int(lengths.max())
    share = np.uint64(1) << (longest - lengths[order]).astype(np.uint64)
    words = np.empty(len(lengths), np.uint32)
    words[order] = (np.cumsum(share) - share) >> (longest - lengths[order]).astype(np.uint64)
    return words


def lookup(lengths: Lengths) -> NDArray[np.uint32]:
    """(2**longest,) entries symbol << 8 | length: what the next `longest` bits of a stream begin with."""
    order = np.argsort(lengths, kind="stable").astype(np.uint32)
    entries = order << np.uint32(8) | lengths[order]
    return np.repeat(entries, 1 << (int(lengths.max()) - lengths[order].astype(np.int64)))


def write_lengths(lengths: Lengths) -> bytes:
    """The table of code lengths in the file.

    The first length in 5 bits; then for every further one a step 10 (up) or 11 (down) for each bit of
    difference and a closing 0 (as bzip2 does); padded with zero bits.
    """
    steps = np.diff(lengths.astype(np.int64)).tolist()
    text = f"{lengths[0]:05b}" + "".join(("10" * step if step > 0 else "11" * -step) + "0" for step in steps)
    return np.packbits(np.frombuffer(text.encode(), np.uint8) & 1).tobytes()


def read_lengths(cursor: Cursor, k: int) -> Lengths:
    """The inverse of `write_lengths` for `k` symbols; MalformedFile unless complete and within limit(k)."""
    longest = limit(k)
    most = (5 + k * (1 + 2 * longest) + 7) // 8
    text = (np.unpackbits(np.frombuffer(cursor.buffer[cursor.at : cursor.at + most], np.uint8)) + 48).tobytes()
    lengths = [int(text[:5] or b"0", 2)]
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


@dataclass(frozen=True)
class Plan:
    """How to write a stream: a code, or none for fixed width; and its bytes (block padding estimated)."""

    size: int
    lengths: Lengths | None


def plan(counts: NDArray[np.int64], coder: str) -> Plan:
    """The smaller way to write a stream where symbol i occurs counts[i] times; `coder` is one of CODERS."""
    total, k = int(counts.sum()), len(counts)
    packed = Plan(bits.packed_size(total, width(k)), None)
    if coder == "packed" or k == 1 or _incompressible(counts, packed.size):
        return packed
    lengths = code_lengths(counts)
    size = (int(counts @ lengths.astype(np.int64)) + 7) // 8 + 3 * (-(-total // BLOCK)) + len(write_lengths(lengths))
    return Plan(size, lengths) if size < packed.size else packed


def _incompressible(counts: NDArray[np.int64], packed: int) -> bool:
    """Whether even an ideal code and the smallest table come to `packed` bytes: spares building a tree.

    The margin of a millionth keeps rounding, which differs between machines, from deciding anything.
    """
    used = counts[counts > 0].astype(np.float64)
    ideal = float((used * np.log2(used.sum() / used)).sum()) if used.size else 0.0
    return (ideal * (1 - 1e-6) + len(counts) + 4) / 8 >= packed


def encode(symbols: Symbols, k: int, lengths: Lengths | None) -> tuple[bytes, bytes]:
    """`symbols` (n,) below `k` as (description of the code, coded symbols); fixed width without `lengths`."""
    if lengths is None:
        return b"", bits.pack(symbols, width(k)) if k > 1 else b""
    coded, sizes = encode_blocks(symbols, lengths)
    return write_lengths(lengths) + b"".join(map(bits.varint, sizes)), coded


def encode_blocks(symbols: Symbols, lengths: Lengths) -> tuple[bytes, list[int]]:
    """The Huffman-coded blocks of `symbols` (n,), each zero padded to whole bytes, and their sizes."""
    words = canonical(lengths)
    compiled = kernels(len(symbols))
    if compiled is not None:
        sizes = np.empty(-(-len(symbols) // BLOCK), np.int64)
        most = len(symbols) * int(lengths.max()) // 8 + len(sizes) + 8
        out = np.empty(most, np.uint8)
        end = compiled.encode_blocks(symbols, words << np.uint32(5) | lengths, BLOCK, out, sizes)
        return out[:end].tobytes(), sizes.tolist()
    cut = (symbols[i : i + BLOCK] for i in range(0, len(symbols), BLOCK))
    blocks = [bits.concatenate(words[block], lengths[block]) for block in cut]
    return b"".join(blocks), [len(block) for block in blocks]


def decode(cursor: Cursor, count: int, k: int, huffman: bool) -> tuple[Symbols, int]:
    """The next `count` symbols below `k` (uint8 up to k = 256, else uint16), and the bytes of the table."""
    if k == 1:
        return np.zeros(count, np.uint8), 0
    if count > 8 * cursor.left:
        raise cursor.fail(f"{count} symbols cannot fit in {cursor.left} bytes")
    if huffman:
        return _decode_huffman(cursor, count, k)
    packed = cursor.take(bits.packed_size(count, width(k)), "the packed stream")
    symbols = bits.unpack(packed, count, width(k))
    spare = 8 * len(packed) - count * width(k)
    if (count and int(symbols.max()) >= k) or (spare and packed[-1] & ((1 << spare) - 1)):
        raise cursor.fail(f"a packed symbol is not below {k}, or the padding is not zero")
    return symbols, 0


def _decode_huffman(cursor: Cursor, count: int, k: int) -> tuple[Symbols, int]:
    start = cursor.at
    lengths = read_lengths(cursor, k)
    most = (BLOCK * int(lengths.max()) + 7) // 8
    sizes = [cursor.varint("a block's length", most) for _ in range(-(-count // BLOCK))]
    described = cursor.at - start
    stream = cursor.take(sum(sizes), "the coded blocks")
    symbols, ends = decode_blocks(stream, sizes, count, lengths)
    if not _end_well(stream, np.cumsum(sizes, dtype=np.int64), ends):
        raise cursor.fail("a coded block does not end where its length says, or its padding is not zero")
    return symbols, described


def _end_well(stream: memoryview, limits: NDArray[np.int64], ends: NDArray[np.int64]) -> bool:
    """Whether each block ends in the last byte before its limit, and the rest of that byte is zero."""
    spare = 8 * limits - ends
    if ((spare < 0) | (spare > 7)).any():
        return False
    return not (np.frombuffer(stream, np.uint8)[limits - 1] & ((1 << spare) - 1)).any()


def decode_blocks(
    stream: memoryview | bytes, sizes: list[int], count: int, lengths: Lengths
) -> tuple[Symbols, NDArray[np.int64]]:
    """The inverse of `encode_blocks`: `count` symbols from blocks of `sizes` bytes that fill `stream`.

    The second part is the bit position behind the last symbol of each block. Where the bytes are no such
    blocks, it lies outside the block's last byte, or the symbols are arbitrary ones of the alphabet.
    """
    symbols: Symbols = np.empty(count, np.uint8 if len(lengths) <= 256 else np.uint16)
    table, longest = lookup(lengths), int(lengths.max())
    starts = 8 * (np.cumsum(sizes, dtype=np.int64) - np.array(sizes, np.int64))
    compiled = kernels(count)
    if compiled is not None:
        # A damaged block may run on for BLOCK codes: zeros keep that within the array.
        spare = -len(stream) % 8 + BLOCK * longest // 8 // 8 * 8 + 24
        words = np.frombuffer(b"".join([stream, bytes(spare)]), ">u8").astype(np.uint64)
        at = starts.astype(np.uint64)
        compiled.decode_blocks(words, at, table, longest, BLOCK, symbols)
        return symbols, at.astype(np.int64)
    ends = np.empty(len(sizes), np.int64)
    for i, (start, size) in enumerate(zip(starts.tolist(), sizes, strict=True)):
        block = stream[start // 8 : start // 8 + size]
        ends[i] = start + _decode_block(block, table, longest, symbols[i * BLOCK : (i + 1) * BLOCK])
    return symbols, ends


def _decode_block(stream: memoryview | bytes, table: NDArray[np.uint32], longest: int, out: Symbols) -> int:
    """Fill `out` with the symbols that `stream` begins with; the bit position behind them, or past its end.

    Every bit position is decoded as though a symbol began there. To follow the pointers from symbol to symbol
    then takes log2(n) rounds: in each, the known positions and the reach of the pointers double.
    """
    size = 8 * len(stream)
    entries = np.zeros(size + 2, np.int64)
    entries[:size] = table[bits.windows(stream, longest)]
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


def kernels(count: int) -> ModuleType | None:
    """The compiled coders where numba is installed and `count` symbols repay its use, else None.

    The environment variable DEEPCOMPRESSION_NO_NUMBA, if not empty, keeps to numpy. The results are the same.
    """
    worth_it = count >= (WORTH_CALLING if "numba" in sys.modules else WORTH_IMPORTING)
    if not worth_it or os.environ.get("DEEPCOMPRESSION_NO_NUMBA"):
        return None
    try:
        return import_module("deepcompression.kernels")
    except ImportError:
        return None
