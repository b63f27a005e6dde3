"""Streams of symbols in a chunk: in fixed width or Huffman-coded, whichever is smaller.

Small alphabets are coded in tuples, which are symbols of a larger one. Coded streams are cut into blocks of
`coders.BLOCK` tuples, coded one by one: a decoder can work on many at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec import bitstream, huffman
from deepcompression.codec.bitstream import Cursor
from deepcompression.codec.huffman import Lengths, Symbols

MOST_TUPLES = 1 << 12
_TUPLES_TRIED = 1 << 10
_REACHES = (1, 2, 4, 8)  # to either side, of averages


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
        return bytes([self.tuple_size | 128]) + huffman.write_lengths(self.lengths)

    def size(self, counts: NDArray[np.int64], chunks: int = 1) -> int:
        """Bytes of header and stream where tuple i occurs counts[i] times in so many chunks; padding estimated."""
        if self.k == 1:
            return 0
        total = int(counts.sum())
        if self.lengths is None:
            return 1 + bitstream.packed_size(total, bitstream.width(self.alphabet)) + chunks // 2
        coded = int(counts @ self.lengths.astype(np.int64))
        blocks = -(-total // huffman.BLOCK) + chunks - 1
        framed = len(bitstream.varint(coded // 8)) + 5 * (blocks - 1) // 2 if blocks > 0 else 0
        return 1 + huffman.table_bytes(self.lengths) + (coded + 7) // 8 + framed


def tuples(symbols: Symbols, k: int, size: int) -> Symbols:
    """Symbols (s,) below `k` as tuples ((s + size - 1) // size,), the first one lowest.

    Args:
        symbols: (s,).
        k: they are below it.
        size: symbols a tuple.
    """
    if size == 1:
        return symbols
    rows = np.zeros((-(-len(symbols) // size), size), np.uint16)
    rows.reshape(-1)[: len(symbols)] = symbols
    made: Symbols = rows[:, size - 1].copy()
    for i in range(size - 2, -1, -1):
        made = made * np.uint16(k) + rows[:, i]
    return made.astype(np.uint8) if k**size <= 256 else made


def singles(made: Symbols, k: int, size: int, count: int) -> Symbols:
    """The inverse of `tuples`: `count` symbols.

    Args:
        made: of `tuples`.
        k: symbols are below it.
        size: symbols a tuple.
        count: symbols.
    """
    if size == 1:
        return made
    return _digits(k, size)[made].reshape(-1)[:count]


@lru_cache(maxsize=32)
def _digits(k: int, size: int) -> Symbols:
    """The symbols (k**size, size) of each tuple."""
    numbers = np.arange(k**size)
    digits = np.stack([numbers // k**i % k for i in range(size)], axis=1)
    return digits.astype(np.uint8 if k <= 256 else np.uint16)


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
    lengths = huffman.code_lengths(counts)
    for tried in (lengths, *_smoother(counts, lengths)):
        coded = Stream(k, tuple_size, tried)
        size = coded.size(counts, chunks)
        if size < best[0]:
            best = size, coded
    return best


def _smoother(counts: NDArray[np.int64], lengths: Lengths) -> list[Lengths]:
    """Codes whose tables are smaller, of averaged counts, where the table is a part that matters."""
    total = int(counts.sum())
    if len(counts) < 16 or 400 * huffman.table_bytes(lengths) < int(counts @ lengths.astype(np.int64)) // 8:
        return []
    made = []
    most = _REACHES[-1]
    ends = np.repeat(counts[[0, -1]], most)
    sums = np.cumsum(np.concatenate([[0], ends[:most], counts, ends[most:]]))
    for reach in _REACHES:
        begin, width = most - reach, 2 * reach + 1
        windows = sums[begin + width : begin + width + len(counts)] - sums[begin : begin + len(counts)]
        made.append(huffman.code_lengths(np.minimum(windows, total * width)))
    return made


def _incompressible(counts: NDArray[np.int64], packed: int) -> bool:
    """Whether even an ideal code and the smallest table come to so many bytes: spares building a tree.

    The margin of a millionth keeps rounding, which differs between machines, from deciding anything.
    """
    used = counts[counts > 0].astype(np.float64)
    ideal = float((used * np.log2(used.sum() / used)).sum()) if used.size else 0.0
    return (ideal * (1 - 1e-6) + len(counts) + 4) / 8 >= packed


def encode(symbols: Symbols, stream: Stream, values: NDArray[np.uint8] | None = None) -> bytes:
    """`symbols` (s,) as one stream of a chunk.

    Args:
        symbols: (s,).
        stream: how they are written.
        values: (k,) bytes that stand in `symbols` in place of each symbol, if not itself; k at most 256.
    """
    if stream.k == 1:
        return b""
    if values is not None and (stream.lengths is None or stream.tuple_size > 1):
        symbols, values = translated(symbols, values), None
    made = tuples(symbols, stream.k, stream.tuple_size)
    if stream.lengths is None:
        return bitstream.pack(made, bitstream.width(stream.alphabet))
    coded, sizes = huffman.encode_blocks(made, stream.lengths, values)
    return b"".join(map(bitstream.varint, sizes)) + coded


def translated(plane: NDArray[np.uint8], values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The symbols (m,) of bytes: faster than numpy, which widens an index to 8 bytes.

    Args:
        plane: (m,) of `values`.
        values: (k,) the bytes that are the symbols.
    """
    table = np.zeros(256, np.uint8)
    table[values] = np.arange(len(values))
    return np.frombuffer(bytearray(plane).translate(table.tobytes()), np.uint8)


def read_stream(cursor: Cursor, k: int) -> Stream:
    """The header of a stream of symbols below `k`; MalformedFile where it is impossible."""
    if k == 1:
        return Stream(1)
    byte = cursor.take(1, "a stream's header")[0]
    size = byte & 31
    if byte & 0x60 or size == 0 or (size > 1 and k**size > MOST_TUPLES):
        raise cursor.fail(f"a stream of {k} symbols has the impossible header {byte:#04x}")
    return Stream(k, size, huffman.read_lengths(cursor, k**size) if byte & 128 else None)


def decode(
    cursors: Sequence[Cursor], counts: Sequence[int], stream: Stream, values: NDArray[np.uint8] | None = None
) -> list[Symbols]:
    """The next counts[i] symbols of each of `cursors`, streams of different chunks, decoded together.

    Symbols are uint8 up to k = 256, else uint16.

    Args:
        cursors: at the stream of each chunk; they move behind it.
        counts: symbols of each.
        stream: how they are written.
        values: (k,) what comes in place of each symbol, if not itself; k at most 256.

    Raises:
        MalformedFile: a stream breaks FORMAT.md.
    """
    if stream.k > 1 and stream.lengths is not None and stream.tuple_size == 1:
        return _read_huffman(cursors, list(counts), stream, values)
    found = _singles(cursors, counts, stream)
    return found if values is None else [values[symbols] for symbols in found]


def _singles(cursors: Sequence[Cursor], counts: Sequence[int], stream: Stream) -> list[Symbols]:
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
    each = bitstream.width(stream.alphabet)
    for cursor, size in zip(cursors, sizes, strict=True):
        packed = cursor.take(bitstream.packed_size(size, each), "the packed stream")
        made.append(bitstream.unpack(packed, size, each))
        if size and (int(made[-1].max()) >= stream.alphabet or not bitstream.padding_is_zero(packed, size * each)):
            raise cursor.fail(f"a packed symbol is not below {stream.alphabet}, or the padding is not zero")
    return made


def _read_huffman(
    cursors: Sequence[Cursor], sizes: Sequence[int], stream: Stream, values: NDArray[np.uint8] | None = None
) -> list[Symbols]:
    assert stream.lengths is not None
    most = (huffman.BLOCK * int(stream.lengths.max()) + 7) // 8
    parts: list[memoryview] = []
    blocks: list[int] = []
    counts: list[int] = []
    for cursor, size in zip(cursors, sizes, strict=True):
        if size > 8 * cursor.left:
            raise cursor.fail(f"{size} symbols cannot fit in {cursor.left} bytes")
        number = -(-size // huffman.BLOCK)
        own = [cursor.varint("a block's length", most) for _ in range(number)]
        parts.append(cursor.take(sum(own), "the coded blocks"))
        blocks += own
        counts += [huffman.BLOCK] * (number - 1) + [size - huffman.BLOCK * (number - 1)] * min(number, 1)
    data = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
    symbols, ends = huffman.decode_blocks(data, blocks, counts, stream.lengths, values)
    if not _end_well(data, np.cumsum(blocks, dtype=np.int64), ends):
        raise cursors[0].fail("a coded block does not end where its length says, or its padding is not zero")
    return np.split(symbols, np.cumsum(sizes)[:-1]) if len(sizes) > 1 else [symbols]


def _end_well(data: memoryview, limits: NDArray[np.int64], ends: NDArray[np.int64]) -> bool:
    """Whether each block ends in the last byte before its limit, and the rest of that byte is zero."""
    spare = 8 * limits - ends
    if ((spare < 0) | (spare > 7)).any():
        return False
    return not (np.frombuffer(data, np.uint8)[limits - 1] >> (8 - spare)).any()
