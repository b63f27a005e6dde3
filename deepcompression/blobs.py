"""One tensor to one blob of a .dcz file and back, as FORMAT.md specifies it: positions, codebook, codes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression import coders
from deepcompression.bits import Cursor, varint
from deepcompression.dtypes import DTYPES, Bits, narrow, shrink, unsigned, widen

MOST_DISTINCT = 1 << 16

DENSE, BITMAP, GAP = 0, 1, 2
_CODEBOOK, _HUFFMAN_VALUES, _HUFFMAN_GAPS = 1 << 2, 1 << 5, 1 << 6
_STORED = (
    "",
    "float32",
    "float16",
    "bfloat16",
)  # bits 3 and 4 of the method byte; the first is the tensor's own


class Sections(NamedTuple):
    """Where the bytes of one blob went; `table` is everything that describes codes and choices."""

    values: int = 0
    positions: int = 0
    codebook: int = 0
    table: int = 0


# ---------------------------------------------------------------- encoding


@dataclass(frozen=True)
class _Layout:
    """How to store values: raw, or with a codebook and codes; and what that costs in bytes."""

    cost: int
    stored: str
    book: Bits | None = None
    plan: coders.Plan | None = None


@dataclass(frozen=True)
class _Positions:
    """Where the non-zero elements are: nothing (dense), a bitmap, or gaps; and what that costs in bytes."""

    kind: int
    cost: int
    payload: bytes = b""
    symbols: coders.Symbols | None = None
    escape: int = 0
    plan: coders.Plan | None = None


def encode_tensor(flat: Bits, dtype: str, coder: str) -> bytes:
    """The blob of a tensor with the element bits `flat` (n,), in the smallest layout.

    Positions are dense, a bitmap or gaps; values a codebook with codes, or raw. Of equals, the first named.
    """
    if flat.size == 0:
        return b""
    nonzero = np.flatnonzero(flat)
    values = flat[nonzero]
    zeros = flat.size - values.size
    book, codes = _distinct(values)
    stored = narrow(values if book is None else book, dtype)
    counts = np.zeros(0, np.int64) if book is None else np.bincount(codes, minlength=book.size)
    layout = _layout(values.size, book, counts, stored, coder)
    positions = _Positions(DENSE, 0)
    if zeros:
        sparse = layout
        if book is not None:
            book, counts = np.insert(book, 0, 0), np.insert(counts, 0, zeros)
        layout = _layout(flat.size, book, counts, stored, coder)
        for candidate in (_bitmap(flat), _gaps(nonzero, coder)):
            if candidate.cost + sparse.cost < positions.cost + layout.cost:
                positions, layout = candidate, sparse
    if positions.kind == DENSE:
        values, codes = flat, _scatter(codes, nonzero, flat.size, counts.size) if zeros else codes
    return _write_blob(positions, layout, values, codes, dtype)


def _layout(count: int, book: Bits | None, counts: NDArray[np.int64], stored: str, coder: str) -> _Layout:
    """The smaller way to store `count` values, whose distinct ones are `book` (k,), each counts[i] times."""
    width = DTYPES[stored].itemsize
    if book is None or not 0 < book.size <= MOST_DISTINCT:
        return _Layout(count * width, stored)
    plan = coders.plan(counts, coder)
    cost = len(varint(book.size - 1)) + book.size * width + plan.size
    return _Layout(cost, stored, book, plan) if cost <= count * width else _Layout(count * width, stored)


def _scatter(codes: coders.Symbols, nonzero: NDArray[np.int64], size: int, k: int) -> coders.Symbols:
    """Codes (size,) of all elements, in the codebook that begins with zero, from those of the others."""
    dense: coders.Symbols = np.zeros(size, _symbol_type(k))
    if codes.size:
        dense[nonzero] = codes.astype(np.int64) + 1
    return dense


def _distinct(values: Bits) -> tuple[Bits | None, coders.Symbols]:
    """The distinct `values` (n,), ascending as integers, and the place of each there; None if too many."""
    book = values[:0]
    rest = values
    while rest.size:
        # A head is enough to find nearly all of a shared layer's values, and to give up early on others.
        book = np.union1d(book, rest[: 4 * MOST_DISTINCT])
        if book.size > MOST_DISTINCT:
            return None, np.zeros(0, np.uint8)
        rest = rest[4 * MOST_DISTINCT :]
        if rest.size:
            rest = rest[book[np.minimum(np.searchsorted(book, rest), book.size - 1)] != rest]
    return book, np.searchsorted(book, values).astype(_symbol_type(book.size))


def _symbol_type(k: int) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if k <= 256 else np.uint16


def _bitmap(flat: Bits) -> _Positions:
    payload = np.packbits(flat != 0).tobytes()
    return _Positions(BITMAP, len(payload), payload)


def _gaps(nonzero: NDArray[np.int64], coder: str) -> _Positions:
    """Gap coding with the escape value that costs least; `nonzero` (m,) ascending."""
    gaps = np.diff(nonzero, prepend=-1) - 1
    distinct, counts = np.unique(gaps, return_counts=True) if gaps.size else (gaps, gaps)
    best: tuple[int, int, coders.Plan] | None = None
    for escape in _escapes(int(distinct[-1]) if gaps.size else 0, coder):
        chosen = coders.plan(_gap_counts(distinct, counts, escape), coder)
        if best is None or chosen.size < best[0]:
            best = chosen.size, escape, chosen
    assert best is not None
    cost, escape, chosen = best
    symbols = _gap_symbols(gaps, escape)
    cost += len(varint(escape)) + len(varint(symbols.size))
    return _Positions(GAP, cost, symbols=symbols, escape=escape, plan=chosen)


def _escapes(longest: int, coder: str) -> list[int]:
    """The escape values to try where the longest gap is `longest`: 1, 3, 7 ... and one never needed."""
    most = 16 if coder == "packed" else 12
    escapes = [2**bits - 1 for bits in range(1, min(most, (longest + 1).bit_length()) + 1)]
    return escapes + [longest + 1] * (longest + 1 < 2**most)


def _gap_counts(distinct: NDArray[np.int64], counts: NDArray[np.int64], escape: int) -> NDArray[np.int64]:
    histogram = np.zeros(escape + 1, np.int64)
    np.add.at(histogram, distinct % escape, counts)
    histogram[escape] = counts @ (distinct // escape)
    return histogram


def _gap_symbols(gaps: NDArray[np.int64], escape: int) -> coders.Symbols:
    """Each gap as gap // escape times the symbol `escape`, then gap % escape."""
    ends = np.cumsum(gaps // escape + 1)
    symbols = np.full(int(ends[-1]) if gaps.size else 0, escape, _symbol_type(escape + 1))
    symbols[ends - 1] = gaps % escape
    return symbols


def _write_blob(positions: _Positions, layout: _Layout, values: Bits, codes: coders.Symbols, dtype: str) -> bytes:
    method = positions.kind | (_STORED.index(layout.stored) << 3 if layout.stored != dtype else 0)
    parts = [positions.payload]
    if positions.symbols is not None and positions.plan is not None:
        k, lengths = positions.escape + 1, positions.plan.lengths
        method |= _HUFFMAN_GAPS if lengths is not None else 0
        parts += [varint(positions.escape), varint(positions.symbols.size)]
        parts += coders.encode(positions.symbols, k, lengths)
    if layout.book is None or layout.plan is None:
        parts.append(_stored_bytes(values, dtype, layout.stored))
    else:
        lengths = layout.plan.lengths
        method |= _CODEBOOK | (_HUFFMAN_VALUES if lengths is not None else 0)
        parts += [varint(layout.book.size - 1), _stored_bytes(layout.book, dtype, layout.stored)]
        parts += coders.encode(codes, layout.book.size, lengths)
    return b"".join([bytes([method]), *parts])


def _stored_bytes(values: Bits, dtype: str, stored: str) -> bytes:
    small = shrink(values, dtype, stored)
    assert small is not None
    return small.astype(small.dtype.newbyteorder("<"), copy=False).tobytes()


# ---------------------------------------------------------------- decoding


def decode_tensor(blob: bytes, dtype: str, count: int, coder: str, where: str) -> tuple[Bits, Sections]:
    """The element bits (count,) of a tensor from its blob, and where the blob's bytes went.

    Args:
        where: names the tensor in errors.

    Raises:
        MalformedFile: the blob contradicts FORMAT.md.
    """
    cursor = Cursor(blob, where)
    if count == 0:
        cursor.end("a tensor without elements")
        return np.zeros(0, unsigned(dtype)), Sections()
    method = cursor.take(1, "the method")[0]
    _check_method(method, dtype, coder, cursor)
    where_nonzero, position_bytes, position_table = _read_positions(cursor, method, count)
    start = cursor.at
    m = count if where_nonzero is None else int(where_nonzero.size)
    values, codebook_bytes, table = _read_values(cursor, method, dtype, m, sparse=where_nonzero is not None)
    cursor.end("the last value")
    if dtype == "bool" and values.size and int(values.max()) > 1:
        raise cursor.fail("a bool is neither 0 nor 1")
    sections = Sections(
        cursor.at - start - codebook_bytes - table, position_bytes, codebook_bytes, 1 + position_table + table
    )
    if where_nonzero is None:
        return values, sections
    flat = np.zeros(count, values.dtype)
    flat[where_nonzero] = values
    return flat, sections


def method_names(blob: bytes) -> tuple[str, str]:
    """How a blob that decodes stores positions ("dense", "bitmap", "gap") and values ("codebook", "raw")."""
    if not blob:
        return "dense", "raw"
    return ("dense", "bitmap", "gap")[blob[0] & 3], "codebook" if blob[0] & _CODEBOOK else "raw"


def _check_method(method: int, dtype: str, coder: str, cursor: Cursor) -> None:
    stored = _STORED[method >> 3 & 3]
    stray = (method & _HUFFMAN_VALUES and not method & _CODEBOOK) or (method & _HUFFMAN_GAPS and method & 3 != GAP)
    unfit = stored and (dtype not in {"float32", "float64"} or DTYPES[stored].itemsize >= DTYPES[dtype].itemsize)
    packed = coder == "packed" and method & (_HUFFMAN_VALUES | _HUFFMAN_GAPS)
    if method & 3 == 3 or method > 127 or stray or unfit or packed:
        raise cursor.fail(f"the method {method:#04x} is not possible for {dtype} and coder {coder}")


def _read_positions(cursor: Cursor, method: int, count: int) -> tuple[NDArray[np.int64] | None, int, int]:
    """Places of the non-zero elements (None: all), the bytes they took, those that described their code."""
    start = cursor.at
    if method & 3 == DENSE:
        return None, 0, 0
    if method & 3 == BITMAP:
        payload = cursor.take((count + 7) // 8, "the bitmap")
        spare = -count % 8
        if payload[-1] & ((1 << spare) - 1):
            raise cursor.fail("the padding of the bitmap is not zero")
        return np.flatnonzero(np.unpackbits(np.frombuffer(payload, np.uint8), count=count)), len(payload), 0
    escape = cursor.varint("the escape value", most=MOST_DISTINCT - 1)
    if escape == 0:
        raise cursor.fail("the escape value is 0")
    size = cursor.varint("the number of gaps", most=count)
    head = cursor.at - start
    symbols, table = coders.decode(cursor, size, escape + 1, bool(method & _HUFFMAN_GAPS))
    is_weight = symbols != escape
    ends = np.cumsum(symbols.astype(np.int64) + is_weight)
    if size and (int(ends[-1]) > count or not is_weight[-1]):
        raise cursor.fail(f"the gaps lead to element {int(ends[-1])} of {count}, or end in an escape")
    return ends[is_weight] - 1, cursor.at - start - table - head, table + head


def _read_values(cursor: Cursor, method: int, dtype: str, m: int, *, sparse: bool) -> tuple[Bits, int, int]:
    """Bits (m,) of the stored elements, the bytes of their codebook, those that described their code."""
    stored = _STORED[method >> 3 & 3] or dtype
    if not method & _CODEBOOK:
        values = _read_stored(cursor, stored, dtype, m)
        if sparse and not values.all():
            raise cursor.fail("a zero is stored among the non-zero values")
        return values, 0, 0
    start = cursor.at
    k = cursor.varint("the size of the codebook", most=MOST_DISTINCT - 1) + 1
    head = cursor.at - start
    book = _read_stored(cursor, stored, dtype, k)
    if (sparse and book[0] == 0) or bool((book[1:] <= book[:-1]).any()):
        raise cursor.fail("the codebook is not ascending, or has a zero where zeros are stored as positions")
    codes, table = coders.decode(cursor, m, k, bool(method & _HUFFMAN_VALUES))
    return book[codes], k * DTYPES[stored].itemsize, head + table


def _read_stored(cursor: Cursor, stored: str, dtype: str, count: int) -> Bits:
    kind: np.dtype[Any] = unsigned(stored)
    raw = cursor.take(count * kind.itemsize, f"{count} values of type {stored}")
    return widen(np.frombuffer(raw, kind.newbyteorder("<")).astype(kind), stored, dtype)
