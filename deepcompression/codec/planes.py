"""Floats as planes (FORMAT.md, Planes): exponents, which are few, apart from signs and mantissas, which are noise."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec import arithmetic, streams
from deepcompression.codec.arithmetic import Model
from deepcompression.codec.bitstream import Cursor
from deepcompression.codec.dtypes import DTYPES, Bits, unsigned
from deepcompression.codec.masks import read_mask, write_mask
from deepcompression.codec.streams import Stream

PLAIN, STREAM, DEFLATED, ARITHMETIC = range(4)
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Plane:
    """How one byte of all values is coded; of STREAM and ARITHMETIC, the bytes (k,) that its symbols stand for."""

    coding: int = PLAIN
    used: Bytes | None = None
    stream: Stream | None = None
    context: int = 0

    def header(self) -> bytes:
        """What the head of a blob says of it."""
        head = bytes([self.coding])
        if self.used is None:
            return head
        kept = np.zeros(256, bool)
        kept[self.used] = True
        ending = self.stream.header() if self.stream is not None else bytes([self.context])
        return head + write_mask(kept) + ending

    def read(self, cursors: Sequence[Cursor], counts: Sequence[int]) -> list[Bytes]:
        """The plane of several chunks.

        Args:
            cursors: at it, in each chunk; they move behind it.
            counts: values of each.

        Raises:
            MalformedFile: it breaks FORMAT.md.
        """
        if self.stream is not None:
            assert self.used is not None
            return [self.used[each] for each in streams.decode(cursors, counts, self.stream)]
        read = {PLAIN: _plain, DEFLATED: _inflated, ARITHMETIC: self._arithmetic}[self.coding]
        return [read(cursor, count) for cursor, count in zip(cursors, counts, strict=True)]

    def _arithmetic(self, cursor: Cursor, count: int) -> Bytes:
        assert self.used is not None
        code = cursor.take(cursor.varint("the length of a plane"), "a plane")
        if count == 0 or len(self.used) == 1:
            if len(code):
                raise cursor.fail("a plane without choices has bytes")
            return np.full(count, self.used[0])
        return self.used[arithmetic.decode_part(cursor, code, 1, self._model(count))]

    def _model(self, count: int) -> Model:
        assert self.used is not None
        return Model(count, len(self.used), False, 0, 4 * self.context)


def _plain(cursor: Cursor, count: int) -> Bytes:
    return np.frombuffer(cursor.take(count, "a plane"), np.uint8)


def _inflated(cursor: Cursor, count: int) -> Bytes:
    data = cursor.take(cursor.varint("the length of a plane"), "a plane")
    reader = zlib.decompressobj(-15)
    try:
        found = reader.decompress(data, count + 1)
    except zlib.error as error:
        raise cursor.fail(f"a deflated plane is damaged: {error}") from None
    if len(found) != count or not reader.eof or reader.unused_data:
        raise cursor.fail(f"a deflated plane is not the {count} bytes that it must be")
    return np.frombuffer(found, np.uint8)


def read_planes(cursor: Cursor, dtype: str) -> tuple[Plane, ...]:
    """How each plane of values of type `dtype` is coded, the highest first; MalformedFile where it breaks FORMAT.md."""
    if not DTYPES[dtype].floating:
        raise cursor.fail(f"values of {dtype} have no planes")
    return tuple(_read_plane(cursor) for _ in range(DTYPES[dtype].itemsize))


def _read_plane(cursor: Cursor) -> Plane:
    coding = cursor.take(1, "the coding of a plane")[0]
    if coding in (PLAIN, DEFLATED):
        return Plane(coding)
    if coding > ARITHMETIC:
        raise cursor.fail(f"a plane is coded in the unknown way {coding}")
    used = np.flatnonzero(read_mask(cursor, 256)).astype(np.uint8)
    if coding == STREAM:
        return Plane(coding, used, streams.read_stream(cursor, len(used)))
    context = cursor.take(1, "the context of a plane")[0]
    if context not in (0, 3):
        raise cursor.fail(f"the context {context} of a plane is not possible")
    return Plane(coding, used, None, context)


def rotated(bits: Bits) -> Bits:
    """The bits (m,) of floats with the sign lowest."""
    return bits << bits.dtype.type(1) | bits >> bits.dtype.type(8 * bits.itemsize - 1)


def plane_of(turned: Bits, plane: int) -> Bytes:
    """One plane (m,) of values that are rotated, the highest being 0."""
    return (turned >> turned.dtype.type(8 * (turned.itemsize - 1 - plane))).astype(np.uint8)


def joined(planes: Sequence[Bytes], dtype: str) -> Bits:
    """The values (m,) of type `dtype` whose planes these are, the highest first."""
    kind = unsigned(dtype)
    rotated: Bits = np.zeros(len(planes[0]), kind.newbyteorder("<"))
    by_byte = rotated.view(np.uint8).reshape(-1, kind.itemsize)
    for place, plane in enumerate(reversed(planes)):
        by_byte[:, place] = plane
    rotated = rotated.astype(kind, copy=False)
    top = rotated << kind.type(8 * kind.itemsize - 1)
    rotated >>= kind.type(1)
    rotated |= top
    return rotated


def read_values(cursors: Sequence[Cursor], counts: Sequence[int], planes: Sequence[Plane], dtype: str) -> list[Bits]:
    """The values of type `dtype` of several chunks.

    Args:
        cursors: at the planes of each chunk; they move behind.
        counts: values of each.
        planes: how they are coded.
        dtype: that the values are stored as.

    Raises:
        MalformedFile: they break FORMAT.md.
    """
    found = [plane.read(cursors, counts) for plane in planes]
    return [joined([plane[i] for plane in found], dtype) for i in range(len(counts))]
