"""Plain arrays in a blob, deflated where that is smaller."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from deepcompression.codec.bitstream import Cursor, varint
from deepcompression.codec.dtypes import DTYPES, NAMES, Bits, narrow, narrower, to_array, unsigned, widen

_DEFLATED = 128


def deflate(values: Bits, quick: bool = False, level: int = 9) -> bytes:
    """The byte planes of `values` (v,), lowest first, compressed as RFC 1951 has it; `quick` without matches.

    Args:
        level: of zlib.
    """
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    planes = np.ascontiguousarray(little.view(np.uint8).reshape(len(values), values.itemsize).T)
    return deflated(planes.data, level, zlib.Z_HUFFMAN_ONLY if quick else zlib.Z_DEFAULT_STRATEGY)


def deflated(data: memoryview, level: int, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    """Bytes as one deflate stream by zlib, with no more memory than they need, which of few takes most of the time.

    At level 9 the stream does not depend on it; below, where zlib soon ends a search, hardly.

    Args:
        data: the bytes.
        level: of zlib.
        strategy: of zlib.
    """
    window = min(15, max(9, (data.nbytes + 261).bit_length()))  # so that no match is out of reach
    memory = min(9, max(1, (data.nbytes + 1).bit_length() - 6))  # so that one block has all symbols
    made = zlib.compressobj(level, zlib.DEFLATED, -window, memory, strategy)
    return made.compress(data) + made.flush()


def inflate(data: memoryview, count: int, kind: np.dtype[Any], cursor: Cursor) -> Bits:
    """The inverse of `deflate`: (count,) of type `kind`; MalformedFile, named by `cursor`, for anything else.

    Args:
        data: the deflated bytes.
        count: elements.
        kind: their type in numpy.
        cursor: of the blob, for messages.

    Raises:
        MalformedFile: they are damaged, or of another length.
    """
    reader = zlib.decompressobj(-15)
    found: Bits = np.empty(count, kind.newbyteorder("<"))
    planes = found.view(np.uint8).reshape(count, kind.itemsize)
    size = 0
    try:
        for i in range(kind.itemsize if count else 0):
            plane = reader.decompress(reader.unconsumed_tail if i else data, count)
            size += len(plane)
            if len(plane) == count:
                planes[:, i] = np.frombuffer(plane, np.uint8)
        size += len(reader.decompress(reader.unconsumed_tail if count else data, 1))
    except zlib.error as error:
        raise cursor.fail(f"the deflated values are damaged: {error}") from None
    if size != found.nbytes or not reader.eof or reader.unused_data:
        raise cursor.fail(f"the deflated values are not the {found.nbytes} bytes that they must be")
    return found.astype(kind, copy=False)


def write_array(values: Bits, dtype: str) -> bytes:
    """`values` (v,) of type `dtype` as an Array: in the narrowest exact type, deflated where that is smaller."""
    stored, small = narrow(values, dtype)
    number = 0 if stored == dtype else DTYPES[stored].number
    raw = small.astype(small.dtype.newbyteorder("<")).tobytes()
    packed = deflate(small) if len(raw) > 32 else raw
    packed = varint(len(packed)) + packed
    return bytes([number]) + raw if len(raw) <= len(packed) else bytes([number | _DEFLATED]) + packed


def read_type(cursor: Cursor, dtype: str) -> tuple[str, bool]:
    """The type in which values of type `dtype` are stored, and whether they are deflated."""
    byte = cursor.take(1, "the type of stored values")[0]
    stored = NAMES.get(byte & 127) if byte & 127 else dtype
    if stored is None or (stored != dtype and stored not in narrower(dtype)) or byte & 127 == DTYPES[dtype].number:
        raise cursor.fail(f"values of {dtype} cannot be stored as type {byte & 127}")
    return stored, bool(byte & _DEFLATED)


def read_array(cursor: Cursor, count: int, dtype: str) -> Bits:
    """The inverse of `write_array`: bits (count,) of type `dtype`.

    Args:
        cursor: at the array; moves behind it.
        count: elements.
        dtype: of the tensor.

    Raises:
        MalformedFile: it breaks FORMAT.md.
    """
    stored, deflated = read_type(cursor, dtype)
    kind = unsigned(stored)
    if deflated:
        data = cursor.take(cursor.varint("the length of deflated values"), "deflated values")
        if count * kind.itemsize > 1100 * len(data) + 100:
            raise cursor.fail(f"{count} values cannot be in {len(data)} deflated bytes")
        return widened(inflate(data, count, kind, cursor), stored, dtype, cursor)
    raw = cursor.take(count * kind.itemsize, f"{count} values of type {stored}")
    return widened(np.frombuffer(raw, kind.newbyteorder("<")).astype(kind), stored, dtype, cursor)


def widened(small: Bits, stored: str, dtype: str, cursor: Cursor) -> Bits:
    """Bits of type `stored` as bits of type `dtype`; MalformedFile for a NaN that no writer narrows, or a bool of 2.

    Args:
        small: bits as stored.
        stored: their type.
        dtype: of the tensor.
        cursor: of the blob, for messages.

    Raises:
        MalformedFile: no writer stores such values so.
    """
    if dtype == "bool" and small.size and int(small.max()) > 1:
        raise cursor.fail("a bool is neither 0 nor 1")
    narrowed = stored != dtype and DTYPES[dtype].floating and (stored, dtype) != ("bfloat16", "float32")
    if narrowed and np.isnan(to_array(small, stored)).any():
        raise cursor.fail(f"a NaN of {dtype} is stored as {stored}")
    return widen(small, stored, dtype)
