"""The blob of one tensor, as FORMAT.md specifies it, read: its head, and its chunks to their places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression import _numba, arithmetic, positions, streams, values
from deepcompression.bits import Cursor, Remote
from deepcompression.coders import Symbols
from deepcompression.dtypes import Bits, unsigned
from deepcompression.errors import MalformedFile
from deepcompression.parallel import mapped
from deepcompression.positions import BITMAP, DENSE, FLAGS, GAPS, MOST_ESCAPE
from deepcompression.streams import Stream
from deepcompression.values import Book

CHUNK = 1 << 20
RAW, CODEBOOK, GRID = range(3)
ADAPTIVE, MASKS, GROUPS = 1 << 4, 1 << 5, 1 << 6
_AT_ONCE = 16
_PIECE = 1 << 18


class Sections(NamedTuple):
    """Where the bytes of one blob went; `table` is everything that describes codes and choices."""

    values: int = 0
    positions: int = 0
    codebook: int = 0
    table: int = 0


@dataclass(frozen=True)
class Head:
    """What the head of a blob says: how its chunks are to be read."""

    elements: int
    dtype: str
    positions: int
    values: int
    adaptive: bool = False
    columns: int = 0
    rows_kept: NDArray[np.bool_] | None = None
    columns_kept: NDArray[np.bool_] | None = None
    book: Book | None = None
    stored: str = ""
    deflated: bool = False
    escape: int = 0
    position_stream: Stream | None = None
    code_stream: Stream | None = None
    prior: int = 0
    context: int = 0

    @property
    def arithmetic(self) -> bool:
        """Whether chunks are matrices of whole rows, coded arithmetically."""
        return self.adaptive or self.positions == FLAGS

    @property
    def kept(self) -> int:
        """Elements that are left where masks took some rows and columns away."""
        if self.rows_kept is None or self.columns_kept is None:
            return self.elements
        return int(self.rows_kept.sum()) * int(self.columns_kept.sum())

    @property
    def width(self) -> int:
        """Columns that are left."""
        return self.columns if self.columns_kept is None else int(self.columns_kept.sum())

    @property
    def chunk(self) -> int:
        """Elements a chunk."""
        return arithmetic.rows_a_chunk(self.width) * self.width if self.arithmetic else CHUNK

    @property
    def k(self) -> int:
        """Codes are below it; 1 where values are raw."""
        return self.book.k if self.book else 1


def decode_tensor(
    blob: bytes | memoryview | Remote, dtype: str, count: int, name: str, threads: int = 1, *, split: bool = False
) -> tuple[Bits, Sections]:
    """The element bits (count,) of the tensor `name`, and where its bytes went; every field is checked.

    Args:
        blob: as it is in the file; of a Remote, as many chunks are in memory as threads decode.
        split: of an arithmetic code, which holds flags and codes, count what the flags alone would take as positions.

    Raises:
        MalformedFile: names the tensor and what contradicts FORMAT.md.
    """
    cursor = Cursor(blob, name)
    flat: Bits = np.zeros(count, unsigned(dtype))
    if count == 0:
        cursor.end("an empty tensor")
        return flat, Sections()
    head, codebook_bytes = read_head(cursor, dtype, count)
    starts = list(range(0, head.kept, head.chunk))
    if len(starts) > 1 and len(starts) > cursor.left:
        raise cursor.fail(f"{len(starts)} chunks cannot be in {cursor.left} bytes")
    sizes = [cursor.varint("a chunk's length") for _ in starts] if len(starts) > 1 else [cursor.left]
    head_bytes = cursor.at
    places = [cursor.skip(size, "a chunk") for size in sizes]
    cursor.end("the last chunk")
    fill = _Filler(head, flat, split)
    compiled = _numba.kernels(head.chunk * len(starts)) is not None or head.arithmetic
    at_once = 1 if compiled else _AT_ONCE

    def decode(i: int) -> int:
        parts = [Cursor(cursor.buffer[place], name) for place in places[i : i + at_once]]
        return fill(starts[i : i + at_once], parts)

    if head.positions == FLAGS and head.values == RAW:
        threads = 1  # four times as much is in memory for a chunk as of any other layout
    position_bytes = sum(mapped(decode, range(0, len(starts), at_once), threads))
    table = head_bytes - codebook_bytes
    return flat, Sections(len(cursor.buffer) - head_bytes - position_bytes, position_bytes, codebook_bytes, table)


def read_head(cursor: Cursor, dtype: str, count: int) -> tuple[Head, int]:
    """The head of the blob of so many elements, and how many of its bytes are the book."""
    form = cursor.take(1, "the form")[0]
    place, kind, adaptive = form & 3, form >> 2 & 3, bool(form & ADAPTIVE)
    raw_codes = kind == RAW and (adaptive or form & GROUPS)
    mixed = (adaptive and place in (BITMAP, GAPS)) or (place == FLAGS and kind != RAW and not adaptive)
    if form & 128 or kind == 3 or raw_codes or mixed:
        raise cursor.fail(f"the form {form:#04x} is not possible")
    columns, rows_kept, columns_kept = 0, None, None
    if adaptive or place == FLAGS or form & MASKS:
        columns = cursor.varint("the columns", most=count)
        if columns == 0 or count % columns:
            raise cursor.fail(f"{count} elements have no {columns} columns")
    if form & MASKS:
        rows_kept, columns_kept = _read_mask(cursor, count // columns), _read_mask(cursor, columns)
    group = cursor.varint("the elements a group", most=count - 1) if form & GROUPS else 0
    if form & GROUPS and group == 0:
        raise cursor.fail("a group of no elements")
    found: dict[str, Any] = {}
    codebook = 0
    if kind == RAW:
        found["stored"], found["deflated"] = values.read_type(cursor, dtype)
    else:
        start = cursor.at
        sparse = place != DENSE
        found["book"] = values.read_book(cursor, dtype, count, group, grid=kind == GRID, sparse=sparse)
        codebook = cursor.at - start
    if place == GAPS:
        found["escape"] = cursor.varint("the escape value", most=MOST_ESCAPE)
        if found["escape"] == 0:
            raise cursor.fail("the escape value is 0")
        found["position_stream"] = streams.read_stream(cursor, found["escape"] + 1)
    if place == BITMAP:
        found["position_stream"] = streams.read_stream(cursor, 2)
    if kind != RAW and not adaptive:
        found["code_stream"] = streams.read_stream(cursor, found["book"].k)
    if adaptive or place == FLAGS:
        found["prior"], found["context"] = cursor.take(2, "prior and context")
        n, v = found["context"] & 3, found["context"] >> 2
        if n > 2 or v > 3 or (n and place != FLAGS) or (v and not adaptive) or (v == 1 and place != FLAGS):
            raise cursor.fail(f"the context {found['context']} is not possible")
    head = Head(count, dtype, place, kind, adaptive, columns, rows_kept, columns_kept, **found)
    if head.arithmetic and head.width > arithmetic.MOST_COLUMNS:
        raise cursor.fail(f"arithmetic code has {head.width} columns, at most {arithmetic.MOST_COLUMNS} are allowed")
    return head, codebook


def _read_mask(cursor: Cursor, count: int) -> NDArray[np.bool_]:
    kind = cursor.take(1, "a mask")[0]
    if kind == 0:
        return np.ones(count, bool)
    if kind == 1:
        packed = cursor.take((count + 7) // 8, "a mask")
        unpacked = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
        if unpacked[count:].any():
            raise cursor.fail("the padding of a mask is not zero")
        kept: NDArray[np.bool_] = unpacked[:count].astype(bool)
    elif kind == 2 and count <= arithmetic.MOST_COLUMNS:
        code = cursor.take(cursor.varint("the length of a mask"), "a mask")
        kept = _decode_chunk(cursor, code, 1, count, 1, True, 0, 1) != 0
    else:
        raise cursor.fail(f"a mask of kind {kind} for {count} flags")
    if not kept.any():
        raise cursor.fail("a mask keeps nothing")
    return kept


def _decode_chunk(
    cursor: Cursor, code: memoryview, rows: int, columns: int, k: int, flags: bool, prior: int, context: int
) -> Symbols:
    try:
        return arithmetic.decode(code, rows, columns, k, flags, prior, context)
    except MalformedFile as error:
        raise cursor.fail(str(error)) from None


class _Filler:
    """Writes chunks to their places in a tensor."""

    def __init__(self, head: Head, flat: Bits, split: bool) -> None:
        self.head = head
        self.split = split
        self.flat = flat
        self.kept = head.kept
        self.rows = self.across = None
        if head.rows_kept is not None and head.columns_kept is not None:
            self.rows, self.across = np.flatnonzero(head.rows_kept), np.flatnonzero(head.columns_kept)

    def __call__(self, starts: Sequence[int], cursors: Sequence[Cursor]) -> int:
        """Decode the chunks that begin at the kept elements `starts`; the bytes of their positions."""
        counts = [min(self.head.chunk, self.kept - start) for start in starts]
        if self.head.arithmetic:
            return sum(map(self._arithmetic, starts, counts, cursors))
        places = self._positions(counts, cursors)
        used = sum(cursor.at for cursor in cursors)
        found = [count if place is None else len(place) for count, place in zip(counts, places, strict=True)]
        if self.head.code_stream is not None:
            codes = streams.decode(cursors, found, self.head.code_stream)
            for start, count, place, each in zip(starts, counts, places, codes, strict=True):
                self._put_codes(start, count, place, each)
        else:
            for start, count, place, cursor in zip(starts, counts, places, cursors, strict=True):
                raw = self._raw(count if place is None else len(place), cursor)
                self._put_raw(start, count, place, raw, cursor)
        for cursor in cursors:
            cursor.end("a chunk's last value")
        return used

    def _positions(self, counts: Sequence[int], cursors: Sequence[Cursor]) -> list[NDArray[np.int64] | None]:
        """Places of the stored elements in each chunk; None for all."""
        head = self.head
        if head.positions == DENSE:
            return [None] * len(counts)
        assert head.position_stream is not None
        return [*positions.read(counts, cursors, head.positions, head.escape, head.position_stream)]

    def _arithmetic(self, start: int, count: int, cursor: Cursor) -> int:
        head = self.head
        flags = head.positions == FLAGS
        size = cursor.left if head.adaptive else cursor.varint("the length of the flags")
        code = cursor.take(size, "the flags")
        found = _decode_chunk(cursor, code, count // head.width, head.width, head.k, flags, head.prior, head.context)
        used = cursor.at
        if not flags:
            self._put_codes(start, count, None, found)
            return 0
        if head.adaptive:
            for at in range(0, count, _PIECE):
                part = found[at : at + _PIECE]
                place = np.flatnonzero(part)
                self._put_codes(start + at, count, place, part[place] - found.dtype.type(1))
            return self._flags_alone(found, size) if self.split else 0
        raw = self._raw(int(np.count_nonzero(found)), cursor)
        first = 0
        for at in range(0, count, _PIECE):
            place = np.flatnonzero(found[at : at + _PIECE])
            self._put_raw(start + at, count, place, raw[first : first + len(place)], cursor)
            first += len(place)
        cursor.end("a chunk's last value")
        return used

    def _flags_alone(self, symbols: Symbols, most: int) -> int:
        head = self.head
        flags = (symbols != 0).astype(np.uint8)
        code = arithmetic.encode(flags, head.width, 1, True, head.prior, head.context & 3, most)
        return most if code is None else min(most, len(code))

    def _put_codes(self, start: int, count: int, place: NDArray[np.int64] | None, codes: Symbols) -> None:
        head = self.head
        assert head.book is not None
        for at in range(0, len(codes), _PIECE):
            part = codes[at : at + _PIECE]
            if place is None:
                where = self._where(start + at, len(part), None)
            else:
                where = self._where(start, count, place[at : at + _PIECE])
            groups = None
            if head.book.group:
                elements = np.arange(where.start, where.stop) if isinstance(where, slice) else where
                groups = elements // head.book.group
            self.flat[where] = head.book.bits(part, head.dtype, groups)

    def _raw(self, count: int, cursor: Cursor) -> Bits:
        """So many values of a chunk, in the tensor's type."""
        kind = unsigned(self.head.stored)
        if self.head.deflated:
            small = values.inflate(cursor.take(cursor.left, "deflated values"), count, kind, cursor)
        else:
            raw = cursor.take(count * kind.itemsize, f"{count} values of type {self.head.stored}")
            small = np.frombuffer(raw, kind.newbyteorder("<")).astype(kind, copy=False)
        return values.widened(small, self.head.stored, self.head.dtype, cursor)

    def _put_raw(self, start: int, count: int, place: NDArray[np.int64] | None, found: Bits, cursor: Cursor) -> None:
        if place is not None and not found.all():
            raise cursor.fail("a zero is stored among the non-zero values")
        self.flat[self._where(start, count, place)] = found

    def _where(self, start: int, count: int, place: NDArray[np.int64] | None) -> slice | NDArray[np.int64]:
        """Where in the tensor the stored elements of a chunk are."""
        if self.rows is None or self.across is None:
            return slice(start, start + count) if place is None else place + start
        kept = (np.arange(count) if place is None else place) + start
        row, column = np.divmod(kept, len(self.across))
        return self.rows[row] * self.head.columns + self.across[column]


def layout(blob: bytes | memoryview | Remote, dtype: str, count: int) -> tuple[str, str]:
    """How a blob that decodes is written, e.g. ("gaps+codebook", "huffman"): layout and coder."""
    if not count:
        return "empty", "packed"
    head, _ = read_head(Cursor(blob, "layout"), dtype, count)
    place = ("dense", "bitmap", "gaps", "flags")[head.positions]
    kind = ("raw", "codebook", "grid")[head.values] if not head.deflated else "deflated"
    grouped = "s" if head.book and head.book.group else ""
    coded = any(s is not None and s.lengths is not None for s in (head.position_stream, head.code_stream))
    coder = "adaptive" if head.arithmetic else "huffman" if coded else "packed"
    return f"{place}+{kind}{grouped}" + ("+masks" if head.rows_kept is not None else ""), coder
