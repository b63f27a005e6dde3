"""The blob of one tensor, as FORMAT.md specifies it, read: its head, and its chunks to their places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from deepcompression import _numba
from deepcompression._parallel import mapped
from deepcompression.codec import arithmetic, arrays, planes, positions, streams, tiles
from deepcompression.codec.arithmetic import Model
from deepcompression.codec.bitstream import Cursor, Remote, packed_size, padding_is_zero, unpack
from deepcompression.codec.dtypes import Bits, unsigned
from deepcompression.codec.head import VERSION, Head, Sections, read_head
from deepcompression.codec.huffman import Symbols
from deepcompression.codec.positions import DENSE, FLAGS, Places
from deepcompression.codec.streams import Stream

_AT_ONCE = 16
_PIECE = 1 << 18


def decode_tensor(
    blob: bytes | memoryview | Remote,
    dtype: str,
    count: int,
    name: str,
    threads: int = 1,
    *,
    split: bool = False,
    version: int = VERSION,
) -> tuple[Bits, Sections]:
    """The element bits (count,) of the tensor `name`, and where its bytes went; every field is checked.

    Args:
        blob: as it is in the file; of a Remote, as many chunks are in memory as threads decode.
        split: of an arithmetic code, which holds flags and codes, count what the flags alone would take as positions.
        version: of the file.

    Raises:
        MalformedFile: names the tensor and what contradicts FORMAT.md.
    """
    cursor = Cursor(blob, name)
    flat: Bits = np.zeros(count, unsigned(dtype))
    if count == 0:
        cursor.end("an empty tensor")
        return flat, Sections()
    head, codebook_bytes = read_head(cursor, dtype, count, version)
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

    if head.arithmetic and not head.adaptive:
        threads = 1  # four times as much is in memory for a chunk as of any other layout
    position_bytes = sum(mapped(decode, range(0, len(starts), at_once), threads))
    table = head_bytes - codebook_bytes
    return flat, Sections(len(cursor.buffer) - head_bytes - position_bytes, position_bytes, codebook_bytes, table)


class _Filler:
    """Writes chunks to their places in a tensor."""

    def __init__(self, head: Head, flat: Bits, split: bool) -> None:
        self.head = head
        self.split = split
        self.flat = flat
        self.kept = head.kept
        whole = head.positions == DENSE and head.tiles is None and head.rows_kept is None
        self.direct = whole and bool(head.planes) and head.stored == head.dtype
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
        if self.head.book is None:
            raws = self._raw(found, cursors, starts if self.direct else None)
            for start, count, place, raw, cursor in zip(starts, counts, places, raws, cursors, strict=True):
                self._put_raw(start, count, place, raw, cursor)
        else:
            for start, count, place, codes in zip(starts, counts, places, self._codes(found, cursors), strict=True):
                self._put_codes(start, count, place, codes)
        for cursor in cursors:
            cursor.end("a chunk's last value")
        return used

    def _positions(self, counts: Sequence[int], cursors: Sequence[Cursor]) -> list[NDArray[np.int64] | None]:
        """Places of the stored elements in each chunk; None for all."""
        head = self.head
        if head.positions == DENSE:
            return [None] * len(counts)
        how = Places(head.positions, head.position_stream or Stream(1), head.escape)
        if head.tiles is not None:
            return [*tiles.read_places(counts, cursors, head.tiles, how, head.tiles.model(head.prior, head.context))]
        return [*positions.read(counts, cursors, how)]

    def _codes(self, counts: Sequence[int], cursors: Sequence[Cursor]) -> list[Symbols]:
        """So many codes of each chunk."""
        if self.head.code_stream is not None:
            made = streams.decode(cursors, counts, self.head.code_stream)
        else:
            made = self._adaptive_codes(counts, cursors)
        return [self._whole(each, cursor) for each, cursor in zip(made, cursors, strict=True)]

    def _whole(self, high: Symbols, cursor: Cursor) -> Symbols:
        """Codes (m,) with their low bits, which are at the cursor."""
        low, book = self.head.low, self.head.book
        if not low or book is None:
            return high
        packed = cursor.take(packed_size(len(high), low), "the low bits of codes")
        found: Symbols = high.astype(np.uint32) << np.uint32(low) | unpack(packed, len(high), low)
        if not padding_is_zero(packed, len(high) * low) or (len(found) and int(found.max()) >= book.k):
            raise cursor.fail(f"a code is not below {book.k}, or the padding of low bits is not zero")
        return found

    def _adaptive_codes(self, counts: Sequence[int], cursors: Sequence[Cursor]) -> list[Symbols]:
        return [self._adaptive(count, cursor) for count, cursor in zip(counts, cursors, strict=True)]

    def _adaptive(self, count: int, cursor: Cursor) -> Symbols:
        """The adaptive codes of a chunk with tiles."""
        model = Model(count, self.head.k, False, 0, 4 * self.head.code_context)
        code = cursor.take(cursor.varint("the length of the codes") if self.head.low else cursor.left, "the codes")
        if count:
            return arithmetic.decode_part(cursor, code, 1, model)
        if len(code):
            raise cursor.fail("codes of no elements have bytes")
        return np.zeros(0, np.uint8)

    def _arithmetic(self, start: int, count: int, cursor: Cursor) -> int:
        head = self.head
        flags = head.positions == FLAGS
        size = cursor.left if head.adaptive and not head.low else cursor.varint("the length of the flags")
        code = cursor.take(size, "the flags")
        found = arithmetic.decode_part(cursor, code, count // head.width, head.model)
        used = cursor.at
        if head.low:
            stored = found != 0 if flags else np.ones(count, bool)
            high = found[stored] - found.dtype.type(flags)
            found = np.zeros(count, np.uint32)
            found[stored] = self._whole(high, cursor) + np.uint32(flags)
            cursor.end("a chunk's low bits")
        if not flags:
            self._put_codes(start, count, None, found)
            return 0
        if head.adaptive:
            for at in range(0, count, _PIECE):
                part = found[at : at + _PIECE]
                place = np.flatnonzero(part)
                self._put_codes(start + at, count, place, part[place] - found.dtype.type(1))
            return self._flags_alone(found, size) if self.split else 0
        (raw,) = self._raw([int(np.count_nonzero(found))], [cursor])
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
        code = arithmetic.encode(flags, Model(head.width, 1, True, head.prior, head.context & 3), most)
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
            if head.book.groups:
                groups = head.book.groups.of(np.arange(where.start, where.stop) if isinstance(where, slice) else where)
            self.flat[where] = head.book.bits(part, head.dtype, groups)

    def _raw(self, counts: Sequence[int], cursors: Sequence[Cursor], starts: Sequence[int] | None = None) -> list[Bits]:
        """So many values of each chunk, in the tensor's type; planes are joined where they go if they have `starts`."""
        if self.head.planes:
            kind = unsigned(self.head.stored)
            small: list[Bits] = [np.empty(count, kind) for count in counts]
            if starts is not None:
                small = [self.flat[start : start + count] for start, count in zip(starts, counts, strict=True)]
            planes.read_values(cursors, small, self.head.planes)
        else:
            small = [self._plain(count, cursor) for count, cursor in zip(counts, cursors, strict=True)]
        stored, dtype = self.head.stored, self.head.dtype
        return [arrays.widened(one, stored, dtype, cursor) for one, cursor in zip(small, cursors, strict=True)]

    def _plain(self, count: int, cursor: Cursor) -> Bits:
        kind = unsigned(self.head.stored)
        if self.head.deflated:
            return arrays.inflate(cursor.take(cursor.left, "deflated values"), count, kind, cursor)
        raw = cursor.take(count * kind.itemsize, f"{count} values of type {self.head.stored}")
        return np.frombuffer(raw, kind.newbyteorder("<")).astype(kind, copy=False)

    def _put_raw(self, start: int, count: int, place: NDArray[np.int64] | None, found: Bits, cursor: Cursor) -> None:
        if self.head.sparse and not found.all():
            raise cursor.fail("a zero is stored among the non-zero values")
        if not self.direct:
            self.flat[self._where(start, count, place)] = found

    def _where(self, start: int, count: int, place: NDArray[np.int64] | None) -> slice | NDArray[np.int64]:
        """Where in the tensor the stored elements of a chunk are."""
        if self.head.tiles is not None and place is not None:
            return self.head.tiles.places(place + start)
        if self.rows is None or self.across is None:
            return slice(start, start + count) if place is None else place + start
        kept = (np.arange(count) if place is None else place) + start
        row, column = np.divmod(kept, len(self.across))
        return self.rows[row] * self.head.columns + self.across[column]
