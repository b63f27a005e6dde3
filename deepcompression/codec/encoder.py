"""Which of all layouts writes a tensor smallest, and its blob in that one: measured, not estimated."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec import apart, arithmetic, codebooks, parting, streams
from deepcompression.codec import head as heads
from deepcompression.codec.apart import (
    FEW,
    SAMPLE,
    Piece,
    Written,
    cut,
    first_rows,
    fitted_flags,
    plain,
    plan_codes,
    with_context,
)
from deepcompression.codec.arithmetic import Model
from deepcompression.codec.bitstream import pack, varint, width
from deepcompression.codec.book import Book
from deepcompression.codec.dtypes import DTYPES, Bits, Writing, narrow
from deepcompression.codec.head import ADAPTIVE, write_head
from deepcompression.codec.huffman import Symbols
from deepcompression.codec.masks import Masks
from deepcompression.codec.positions import DENSE, FLAGS, Places
from deepcompression.codec.shared import Shared, entropy, histogram
from deepcompression.codec.streams import Stream
from deepcompression.codec.tiles import Tiles
from deepcompression.codec.zeros import Tiled, Zeros

_FINE = 1 << 10  # codes, from which low bits may be noise
_WORTH = 1 / 1000  # of the bytes, below which a layout is not tried
_TOLD = 1.05  # times what a sample says, values as they are surely do not take more
_NEAR = 1.02  # times the smallest, as plans and samples say: what is larger is not written
_HEAD = 4  # bytes at most before values that are stored as they are
_DENSE_UP_TO = 0.95  # share of zeros beyond which nothing was ever smallest as codes of all elements

Option = tuple[int, Callable[[], Written | None]]  # bytes, as far as they are known before it is written


def encode_tensor(flat: Bits, dtype: str, shape: tuple[int, ...], coder: str, threads: int = 1) -> bytes:
    """The blob of a tensor with the element bits `flat` (n,), in the smallest layout that `coder` has.

    Args:
        flat: (n,) unsigned integers as wide as an element.
        dtype: its name.
        shape: of the tensor, of n elements.
        coder: as of `encode`.
        threads: at most so many; the bytes do not depend on it.
    """
    if flat.size == 0:
        return b""
    how = Writing(dtype, shape, settled(coder, flat.size), threads)
    told = parting.Guess()
    if how.coder != "packed" and flat.size >= parting.LEAST:
        told = parting.guess(flat, dtype)
    raw = told.size
    differ = codebooks.differ(flat, how)
    soon = replace(how, coder="huffman") if coder == "auto" and differ else how
    ways = codebooks.find(flat, soon, raw if differ else None)
    if not any(way.least(threads) < raw for way in ways):  # of floats that differ, contexts save a thousandth
        how = soon
    zeros = Zeros(flat, how)
    # Contexts may gain on order 0: by half is more than any was seen to.
    gain = 2.0 if how.coder == "adaptive" else 1.0
    best: Written | None = None
    most = min(flat.nbytes + _HEAD, _TOLD * raw if differ and raw else math.inf)
    for way in ways:
        known = best.size if best else most
        if way.least(threads) < gain * known:
            best = _encode_shared(way, zeros, how, best)
    if best is None or raw < parting.CONTEXTS * best.size:
        best = _smaller(best, _encode_raw(zeros, how, best.size if best else flat.nbytes, told.share))
    assert best is not None
    lengths = b"".join(varint(len(chunk)) for chunk in best.chunks) if len(best.chunks) > 1 else b""
    return b"".join([best.head, lengths, *best.chunks])


# Nanoseconds an element of the slowest layout, on the machine of 2026; a table, so that no clock decides.
DECODE_COST = {"packed": 1.0, "huffman": 1.5, "adaptive": 12.0}
ENCODE_COST = {"packed": 300.0, "huffman": 500.0, "adaptive": 1000.0}
AUTO_LIMIT, AUTO_ENCODE_LIMIT = 50_000_000, 2_000_000_000


def settled(coder: str, elements: int) -> str:
    """The coder; for `auto` the smallest that decodes and encodes so many elements within the limits, by the tables."""
    if coder != "auto":
        return coder
    decoded, encoded = (elements * cost["adaptive"] for cost in (DECODE_COST, ENCODE_COST))
    return "adaptive" if decoded <= AUTO_LIMIT and encoded <= AUTO_ENCODE_LIMIT else "huffman"


def _smaller(one: Written | None, other: Written | None) -> Any:
    if one is None or other is None:
        return one or other
    return other if other.price < one.price else one


def _encode_shared(way: Shared, zeros: Zeros, how: Writing, best: Written | None) -> Written | None:
    """Values as codes of a book, in the smallest of all layouts; or `best`, what is known already."""
    options: list[Option] = []
    most = best.size if best else len(way.symbols) * DTYPES[how.dtype].itemsize + _HEAD
    for mask in (None, zeros.masks) if how.coder != "packed" and zeros.masks else (None,):
        left = replace(way, symbols=mask.of(way.symbols)) if mask else way
        coded = _arithmetics(left, mask, zeros, how) if how.coder == "adaptive" else []
        if not (coded and _ahead(min(size for size, _ in coded), left, how)):
            options.append(_streams(left, mask, zeros, how, most))
        options += coded
    best = _smallest(options, best)
    if how.coder != "packed" and way.book.k >= _FINE:
        best = _smaller(best, _lowered(way, how))
    for tiled in zeros.tiled:
        best = _smaller(best, _tiled(way, tiled, how))
    return best


def _ahead(told: int, way: Shared, how: Writing) -> bool:
    """Whether so many bytes of arithmetic code are fewer than streams may take, of many elements."""
    return len(way.symbols) > FEW and told < entropy(histogram(way.symbols, way.book.k + 1, how.threads))


def _smallest(options: list[Option], best: Written | None) -> Written | None:
    """The smallest of `best` and some layouts; those that are not, as they or a sample say, are not written."""
    for size, write in sorted(options, key=lambda option: option[0]):
        if best is None or size <= _NEAR * best.size:
            best = _smaller(best, write())
    return best


def _low_bits(k: int) -> range:
    """How many low bits of codes may be noise: few codes are left to learn."""
    return range(max(1, width(k) - 9), width(k) - 6)


def _lowered(way: Shared, how: Writing) -> Written | None:
    """Codes of all elements, of which the low bits are noise that is stored as it is; None for few codes."""
    codes, book = _dense(way, not bool(way.symbols.all()))
    if book.k < _FINE:
        return None
    best = None
    for low in _low_bits(book.k):
        high = cut((codes >> codes.dtype.type(low)).astype(np.uint16), heads.CHUNK)
        counts = histogram(np.concatenate(high), ((book.k - 1) >> low) + 1, how.threads)
        _, stream = plan_codes(high, counts, len(counts), how, sparse=False)
        tails = [pack(part & codes.dtype.type((1 << low) - 1), low) for part in cut(codes, heads.CHUNK)]
        head = write_head(how.dtype, DENSE, None, 0, book, low) + stream.header()
        coded = mapped(functools.partial(streams.encode, stream=stream), high, how.threads)
        chunks = [one + tail for one, tail in zip(coded, tails, strict=True)]
        best = _smaller(best, Written(head, chunks))
    return best


def _tiled(way: Shared, tiled: Tiled, how: Writing) -> Written:
    """Values as codes, and where they are by tiles."""
    tiles = tiled.tiles
    flags = tiles.arranged(way.symbols) != 0
    if tiles.most:
        symbols, book = way.symbols, way.book
        codes = tiles.arranged(symbols)[flags] - symbols.dtype.type(1)
    else:
        stored = np.repeat(flags.reshape(-1, tiles.size).any(axis=1), tiles.size)
        dense, book = _dense(way, bool((stored > flags).any()))
        codes = tiles.arranged(dense)[stored]
    what = apart.codes(np.split(codes, tiled.ends), book.k, how)
    return apart.joined(lambda form: write_head(how.dtype, form, tiles, 0, book), tiled.positions, what)


def _streams(way: Shared, mask: Masks | None, zeros: Zeros, how: Writing, most: int) -> Option:
    """The smallest of dense, bitmap and gaps, each with the best streams of codes; `way` is what `mask` leaves.

    No code is made for what takes more than `most` bytes with any.
    """
    parts = cut(way.symbols, heads.CHUNK)
    counts = histogram(way.symbols, way.book.k + 1, how.threads)
    options: list[Option] = []
    # Codebooks of groups take in zero group by group, which masks tear apart.
    torn = mask is not None and bool(way.book.groups) and way.book.values is not None
    if counts[0] <= (0 if torn else _DENSE_UP_TO * len(way.symbols)):
        options.append(_dense_option(way, counts, mask, how, most))
    if counts[0]:
        cost, stream = plan_codes(parts, counts[1:], way.book.k, how, most=most)
        head = 2 + len(write_head(how.dtype, 0, mask, 0, way.book)) + cost
        for size, places in zeros.plans(mask):
            begin = write_head(how.dtype, places.kind, mask, 0, way.book)
            options.append((head + size, _sparse_writer(begin, parts, places, stream, how.threads)))
    return min(options, key=lambda option: option[0])


def _dense_option(way: Shared, counts: NDArray[np.int64], mask: Masks | None, how: Writing, most: int) -> Option:
    codes, book = _dense(way, bool(counts[0]))
    parts = cut(codes, heads.CHUNK)
    total = histogram(codes, book.k, how.threads)
    begin = write_head(how.dtype, DENSE, mask, 0, book)
    cost, stream = plan_codes(parts, total, book.k, how, sparse=False, most=most - len(begin))
    head = begin + stream.header()

    def write() -> Written:
        return Written(head, mapped(lambda part: streams.encode(part, stream), parts, how.threads))

    return len(head) - len(stream.header()) + cost, write


def _dense(way: Shared, some_zero: bool) -> tuple[Symbols, Book]:
    """The codes (n,) of all elements, zeros too, and the book that has them."""
    table, book = way.dense(some_zero)
    if len(table) == 1:
        return table[0][way.symbols], book
    rows = book.groups.gathered(way.symbols)
    return book.groups.scattered(np.take_along_axis(table, rows, axis=1)), book


def _sparse_writer(
    begin: bytes, parts: list[Symbols], places: Places, stream: Stream, threads: int
) -> Callable[[], Written]:
    def chunk(part: Symbols) -> bytes:
        return places.write(part) + streams.encode(part[part != 0] - part.dtype.type(1), stream)

    def write() -> Written:
        return Written(begin + places.header() + stream.header(), mapped(chunk, parts, threads))

    return write


def _arithmetics(way: Shared, mask: Masks | None, zeros: Zeros, how: Writing) -> list[Option]:
    """Flags and codes in one arithmetic code, in rows as are worth a try; without zeros, codes alone."""
    if not way.symbols.all():
        models = [replace(model, k=way.book.k) for model in zeros.predicted(mask)]
        return [_arithmetic(way.symbols, way.book, mask, model, how) for model in models]
    columns = how.columns if mask is None else int(mask.columns_kept.sum())
    codes, book = _dense(way, False)
    model = fitted_flags(codes, Model(columns, book.k, False))
    return [_arithmetic(codes, book, mask, model, how)] if columns <= arithmetic.MOST_COLUMNS else []


def _arithmetic(symbols: Symbols, book: Book, mask: Masks | None, model: Model, how: Writing) -> Option:
    """One arithmetic code, its context of codes chosen by a sample, and its bytes by another."""
    if len(symbols) <= FEW:
        model = fitted_flags(symbols, model)
    model = with_context(symbols, model) if model.k > 1 else model
    form = (FLAGS if model.flags else DENSE) | ADAPTIVE
    head = write_head(how.dtype, form, mask, model.columns, book) + bytes([model.prior, model.context])
    sample = first_rows(symbols, model.columns, SAMPLE)
    begun = arithmetic.encode(sample, model, 4 * len(sample) + 64)

    def write() -> Written | None:
        parts = cut(symbols, arithmetic.rows_a_chunk(model.columns) * model.columns)
        if len(parts) == 1 and len(sample) == len(symbols):
            return None if begun is None else Written(head, [begun])
        coded = mapped(lambda part: arithmetic.encode(part, model, 4 * len(part) + 64), parts, how.threads)
        made = [one for one in coded if one is not None]
        return Written(head, made) if len(made) == len(parts) else None

    told = 4 * len(sample) if begun is None else len(begun)
    return len(head) + told * len(symbols) // len(sample), write


def _encode_raw(zeros: Zeros, how: Writing, most: int, share: float | None) -> Written:
    """Values as they are, in the narrowest type, deflated or as planes where that is smaller; all, or no zeros.

    As planes only where that may be smaller than `most` bytes; a guess may know the `share` of bytes that these take.
    """
    stored, small = narrow(zeros.flat, how.dtype)
    number = 0 if stored == how.dtype else DTYPES[stored].number
    parts = cut(small, heads.CHUNK)
    best: Written = _raw(
        Piece([b""] * len(parts)), _values(parts, stored, number, how, most, share if not number else None), how
    )
    if zeros.number * small.itemsize < best.size * _WORTH:  # all that leaving them out can save
        return best
    values = _values([part[part != 0] for part in parts], stored, number, how, most - zeros.places.size)
    best = _smaller(best, _raw(zeros.places, values, how))
    for tiled in zeros.tiled:
        best = _smaller(best, _tiled_raw(small, stored, number, tiled, how, most))
    if how.coder == "adaptive":
        best = _smaller(best, _raw_flags(small, number, zeros, how))
    return best


def _raw(where: Piece, what: Piece, how: Writing, columns: int = 0, tiles: Tiles | None = None) -> Written:
    return apart.joined(lambda form: write_head(how.dtype, form, tiles, columns, None), where, what)


def _values(parts: list[Bits], stored: str, number: int, how: Writing, most: int, share: float | None = None) -> Piece:
    """The values of each chunk as planes, where that may be smaller than `most` bytes, or as they are."""
    if parting.promising(parts, stored, how, most, share):
        planes = parting.parted(parts, number, how)
        if planes.size <= sum(part.nbytes for part in parts):
            return planes
    return _as_they_are(parts, number, how)


def _as_they_are(parts: list[Bits], number: int, how: Writing) -> Piece:
    """The values of each chunk, deflated where that is smaller."""
    chunks = None if how.coder == "packed" else apart.deflated(parts, how.threads)
    if chunks is not None and sum(map(len, chunks)) < sum(part.nbytes for part in parts):
        return Piece(chunks, 0, bytes([number | 128]))
    return Piece([plain(part) for part in parts], 0, bytes([number]))


def _tiled_raw(small: Bits, stored: str, number: int, tiled: Tiled, how: Writing, most: int) -> Written:
    """Values as they are or, where that may be smaller than `most` bytes, as planes, and where they are by tiles."""
    tiles = tiled.tiles
    flags = tiles.arranged(small) != 0
    kept = flags if tiles.most else np.repeat(flags.reshape(-1, tiles.size).any(axis=1), tiles.size)
    parts = np.split(tiles.arranged(small)[kept], tiled.ends)
    what = Piece([plain(part) for part in parts], 0, bytes([number]))
    if parting.promising(parts, stored, how, most - tiled.positions.size):
        what = min(what, parting.parted(parts, number, how), key=lambda piece: piece.size)
    return _raw(tiled.positions, what, how, tiles=tiles)


def _raw_flags(small: Bits, number: int, zeros: Zeros, how: Writing) -> Written | None:
    """Values as they are, and where they are in arithmetic code."""
    models = zeros.predicted(None)
    if not models:
        return None
    model = models[-1]

    def flags(part: Bits) -> bytes:
        code = arithmetic.encode((part != 0).astype(np.uint8), model, 2 * len(part) + 64)
        assert code is not None  # a flag never costs 16 bits
        return varint(len(code)) + code

    parts = cut(small, arithmetic.rows_a_chunk(model.columns) * model.columns)
    where = Piece(mapped(flags, parts, how.threads), FLAGS, last=bytes([model.prior, model.context]))
    return _raw(where, _as_they_are([part[part != 0] for part in parts], number, how), how, model.columns)
