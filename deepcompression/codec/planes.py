"""Floats as planes (FORMAT.md, Planes): exponents, which are few, apart from signs and mantissas, which are noise."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from deepcompression import _numba
from deepcompression.codec import arithmetic, streams
from deepcompression.codec.arithmetic import Model
from deepcompression.codec.bitstream import Cursor
from deepcompression.codec.dtypes import DTYPES, Bits
from deepcompression.codec.masks import read_mask, write_mask
from deepcompression.codec.streams import Stream

PLAIN, STREAM, DEFLATED, ARITHMETIC = range(4)
Bytes = NDArray[np.uint8]
_WORTH = 1 << 12, 1 << 22  # values that repay a compiled call, and importing it
_WORTH_COMPILING = 1 << 18, 1 << 22  # bytes that repay a call of what takes seconds to compile, once
_COMPILED = (2, 4)  # bytes of values for which there is a compiled way


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
        ending = self.stream.header() if self.stream is not None else bytes([self.context])
        return head + _mask(self.used.tobytes()) + ending

    def read(self, cursors: Sequence[Cursor], counts: Sequence[int]) -> list[Bytes]:
        """The plane of several chunks, which have so many values each.

        Raises:
            MalformedFile: it breaks FORMAT.md.
        """
        if self.stream is not None:
            return streams.decode(cursors, counts, self.stream, self.used)
        read = {PLAIN: _plain, DEFLATED: _inflated, ARITHMETIC: self._arithmetic}[self.coding]
        return [read(cursor, count) for cursor, count in zip(cursors, counts, strict=True)]

    def write(self, plane: Bytes) -> bytes:
        """The plane (m,), of PLAIN or STREAM, in a chunk."""
        return plane.tobytes() if self.stream is None else streams.encode(plane, self.stream, self.used)

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


@lru_cache(maxsize=64)
def _mask(used: bytes) -> bytes:
    """The mask of the bytes that occur: many tensors have the same."""
    kept = np.zeros(256, bool)
    kept[np.frombuffer(used, np.uint8)] = True
    return write_mask(kept)


def _plain(cursor: Cursor, count: int) -> Bytes:
    return np.frombuffer(cursor.take(count, "a plane"), np.uint8).copy()  # compiled code tells what is read-only apart


def _inflated(cursor: Cursor, count: int) -> Bytes:
    data = cursor.take(cursor.varint("the length of a plane"), "a plane")
    compiled = _numba.kernels(count, *_WORTH_COMPILING)
    if compiled is not None:
        padded, plane = np.zeros(len(data) + 24, np.uint8), np.empty(count + 16, np.uint8)
        padded[: len(data)] = np.frombuffer(data, np.uint8)
        if compiled.inflate_literals(padded, len(data), plane):
            return plane[:count]
    reader = zlib.decompressobj(-15)
    try:
        found = reader.decompress(data, count + 1)
    except zlib.error as error:
        raise cursor.fail(f"a deflated plane is damaged: {error}") from None
    if len(found) != count or not reader.eof or reader.unused_data:
        raise cursor.fail(f"a deflated plane is not the {count} bytes that it must be")
    return np.frombuffer(found, np.uint8).copy()


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


def counted(plane: Bytes) -> NDArray[np.int64]:
    """How often each byte (256,) occurs in a plane (m,)."""
    if not len(plane):
        return np.zeros(256, np.int64)
    counts: NDArray[np.int64] = counted_runs(plane, len(plane))[0]
    return counts


def counted_runs(plane: Bytes, run: int) -> NDArray[np.int64]:
    """How often each byte occurs in each run (runs, 256) of a plane (m,)."""
    compiled = _numba.kernels(len(plane), *_WORTH)
    starts = range(0, len(plane), run)
    counts = np.zeros((len(starts), 256), np.int64)
    for i, start in enumerate(starts) if compiled is None else ():
        counts[i] = np.bincount(plane[start : start + run], minlength=256)
    if compiled is not None:
        compiled.count_runs(plane, run, counts)
    return counts


def plane_of(bits: Bits, place: int) -> Bytes:
    """One plane (m,) of floats with the bits (m,), the highest being 0."""
    plane = np.empty(len(bits), np.uint8)
    take(bits, place, plane)
    return plane


def take(bits: Bits, place: int, plane: Bytes) -> None:
    """Fill `plane` (m,) with one plane of floats with the bits (m,).

    Args:
        bits: of the floats.
        place: of the plane, 0 the highest.
        plane: filled.
    """
    compiled = _numba.kernels(len(bits), *_WORTH) if bits.itemsize in _COMPILED else None
    if compiled is not None:
        compiled.take_plane(bits, bits.itemsize, place, plane)
        return
    down = 8 * (bits.itemsize - 1 - place) - 1
    if down < 0:
        bits = bits << bits.dtype.type(1) | bits >> bits.dtype.type(8 * bits.itemsize - 1)
    else:
        bits = bits >> bits.dtype.type(down)
    plane[:] = bits.astype(np.uint8)


def parted(bits: Bits) -> list[Bytes]:
    """The planes (m,) of floats with the bits (m,), the highest first."""
    return [plane_of(bits, place) for place in range(bits.itemsize)]


def joined(planes: Sequence[Bytes], out: Bits) -> None:
    """Fill `out` (m,) with the values whose planes (m,) these are, the highest first."""
    compiled = _numba.kernels(len(out), *_WORTH) if out.itemsize in _COMPILED else None
    if compiled is not None:
        (compiled.join_two if out.itemsize == 2 else compiled.join_four)(*planes, out)
        return
    rotated: Bits = np.zeros(len(out), out.dtype.newbyteorder("<"))
    each = rotated.view(np.uint8).reshape(-1, out.itemsize)
    for place, plane in enumerate(reversed(planes)):
        each[:, place] = plane
    one, top = out.dtype.type(1), out.dtype.type(8 * out.itemsize - 1)
    np.bitwise_or(rotated >> one, rotated << top, out=out)


def read_values(cursors: Sequence[Cursor], outs: Sequence[Bits], planes: Sequence[Plane]) -> None:
    """Fill `outs` with the values of several chunks.

    Args:
        cursors: at the planes of each chunk; they move behind.
        outs: (values,) of each, as wide as the type that they are stored as.
        planes: how they are coded.

    Raises:
        MalformedFile: they break FORMAT.md.
    """
    counts = list(map(len, outs))
    made = [plane.read(cursors, counts) for plane in planes]
    for out, *each in zip(outs, *made, strict=True):
        joined(each, out)
