"""Tensors of a ``.dcz`` in the forms that ``net.c`` walks one value after the other, with little memory."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from deepcompression.codec import apart, codebooks, head, index, positions, streams
from deepcompression.codec.bitstream import varint
from deepcompression.codec.book import Book
from deepcompression.codec.dtypes import DTYPES, Bits, RawTensor, Writing, narrow, unsigned
from deepcompression.codec.positions import BITMAP, DENSE, Places
from deepcompression.codec.shared import Shared
from deepcompression.codec.streams import Stream

MOST_SYMBOLS = 1 << 10  # of a Huffman code, whose table lies in memory


class Blob(NamedTuple):
    """The bytes of a tensor, the form that they have, and how many symbols its largest Huffman code has."""

    bytes: bytes
    form: str
    symbols: int = 0


class Placed(NamedTuple):
    """Where a tensor lies in the file."""

    at: int
    bytes: int
    elements: int


def file_of(tensors: Mapping[str, RawTensor], blobs: Mapping[str, Blob]) -> tuple[bytes, dict[str, Placed]]:
    """A ``.dcz``, and where each of its tensors lies.

    Args:
        tensors: by name.
        blobs: of each, in the same order.
    """
    pairs = zip(tensors.items(), blobs.values(), strict=True)
    entries = [
        index.Entry(name, raw.dtype, raw.bits.shape, None, 0, len(blob.bytes), zlib.crc32(blob.bytes))
        for (name, raw), blob in pairs
    ]
    header = index.write_header(entries, "huffman")
    placed, at = {}, len(header)
    for entry in entries:
        placed[entry.name] = Placed(at, entry.size, entry.elements)
        at += entry.size
    return header + b"".join(blob.bytes for blob in blobs.values()), placed


def numbers(values: Any, dtype: str) -> RawTensor:
    """Numbers as a tensor of this type."""
    return RawTensor(np.ascontiguousarray(values, dtype).view(unsigned(dtype)), dtype)


def plain(tensor: RawTensor) -> Blob:
    """Values as they are, of which any can be read alone: floats in the narrowest type that holds all."""
    flat = np.ascontiguousarray(tensor.bits).reshape(-1)
    stored, small = narrow(flat, tensor.dtype) if tensor.dtype == "float32" else (tensor.dtype, flat)
    return Blob(bytes([0, _number(stored, tensor.dtype)]) + apart.plain(small), "plain")


def smallest(tensor: RawTensor) -> Blob:
    """The smallest of all forms: values as they are, of a codebook or a grid; of all elements, of a bitmap or gaps.

    Args:
        tensor: of float32 or int8, at least one element.
    """
    flat = np.ascontiguousarray(tensor.bits).reshape(-1)
    made = [one for one in _forms(flat, Writing(tensor.dtype, tensor.bits.shape)) if one.symbols <= MOST_SYMBOLS]
    return min(made, key=lambda blob: len(blob.bytes))


def _forms(flat: Bits, how: Writing) -> Iterator[Blob]:
    stored, small = narrow(flat, how.dtype) if how.dtype == "float32" else (how.dtype, flat)
    kind, parts = bytes([_number(stored, how.dtype)]), apart.cut(small, head.CHUNK)
    yield _blob(bytes([DENSE]) + kind, [], [apart.plain(part) for part in parts], "values")
    for places in _places(parts, how):
        chunks = [places.write(part) + apart.plain(part[part != 0]) for part in parts]
        yield _blob(bytes([places.kind]) + kind + places.header(), [places.stream], chunks, f"{_told(places)}, values")
    for way in codebooks.find(flat, how):
        if way.book.groups.channels == 1 and not way.book.negative_zero:
            yield from _coded(way, how)


def _coded(way: Shared, how: Writing) -> Iterator[Blob]:
    """Codes of a book: of all elements, where one table of codes serves them; of those that are not zero."""
    parts = apart.cut(way.symbols, head.CHUNK)
    table, book = way.dense(not bool(way.symbols.all()))
    if len(table) == 1:
        cut = apart.cut(table[0][way.symbols], head.CHUNK)
        stream = _stream(cut, book.k, how, sparse=False)
        begin = _begin(DENSE, book, how.dtype) + stream.header()
        yield _blob(begin, [stream], [streams.encode(part, stream) for part in cut], _kind(book))
    for places in _places(parts, how):
        stream = _stream(parts, way.book.k, how, sparse=True)
        begin = _begin(places.kind, way.book, how.dtype) + places.header() + stream.header()
        chunks = [places.write(part) + streams.encode(part[part != 0] - part.dtype.type(1), stream) for part in parts]
        yield _blob(begin, [places.stream, stream], chunks, f"{_told(places)}, {_kind(way.book)}")


def _begin(positions_: int, book: Book, dtype: str) -> bytes:
    """The first fields of a head: as ``head.write_head`` has them, but no array is deflated."""
    form = positions_ | (head.GRID if book.values is None else head.CODEBOOK) << 2 | (head.GROUPS if book.groups else 0)
    begin = bytes([form]) + book.groups.write()
    if book.values is not None:
        return begin + varint(book.k - 1) + _array(book.values.reshape(-1), dtype)
    assert book.scales is not None
    zigzag = 2 * book.lowest if book.lowest >= 0 else -2 * book.lowest - 1
    scales = book.scales.astype(np.float32).view(np.uint32)
    return begin + varint(zigzag) + varint(book.k - 1) + _array(scales, "float32")


def _array(values: Bits, dtype: str) -> bytes:
    stored, small = narrow(values, dtype) if dtype == "float32" else (dtype, values)
    return bytes([_number(stored, dtype)]) + apart.plain(small)


def _number(stored: str, dtype: str) -> int:
    return 0 if stored == dtype else DTYPES[stored].number


def _places(parts: list[Any], how: Writing) -> list[Places]:
    """Ways to say where the elements are that are not zero; none where all are not, or none is."""
    if all(part.all() for part in parts) or not any(part.any() for part in parts):
        return []
    plans = positions.plans(parts, how) + positions.plans(parts, replace(how, coder="packed"))
    return [places for _, places in plans]


def _stream(parts: list[Any], k: int, how: Writing, *, sparse: bool) -> Stream:
    """The smallest stream of codes below k, or of symbols, which are codes plus 1, 0 for none."""
    how = how if k <= MOST_SYMBOLS else replace(how, coder="packed")
    counts = np.sum([np.bincount(part, minlength=k + sparse) for part in parts], axis=0)[int(sparse) :]
    return apart.plan_codes(parts, counts, k, how, sparse=sparse)[1]


def _blob(begin: bytes, used: Sequence[Stream], chunks: list[bytes], form: str) -> Blob:
    lengths = b"".join(varint(len(chunk)) for chunk in chunks) if len(chunks) > 1 else b""
    symbols = max((one.alphabet for one in used if one.lengths is not None), default=0)
    return Blob(b"".join([begin, lengths, *chunks]), form, symbols)


def _told(places: Places) -> str:
    return "bitmap" if places.kind == BITMAP else "gaps"


def _kind(book: Book) -> str:
    return f"{'grid' if book.values is None else 'codebook'} of {book.k}"
