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
from deepcompression.codec import apart, arithmetic, codebooks, parting, positions, streams, tiling
from deepcompression.codec import head as heads
from deepcompression.codec.apart import SAMPLE, Piece, Written, cut, deflater, fitted, plain, plan_codes
from deepcompression.codec.arithmetic import Model
from deepcompression.codec.bitstream import pack, varint, width
from deepcompression.codec.book import Book
from deepcompression.codec.codebooks import Shared
from deepcompression.codec.dtypes import DTYPES, Bits, Writing, narrow
from deepcompression.codec.head import ADAPTIVE, write_head
from deepcompression.codec.huffman import Symbols
from deepcompression.codec.masks import Masks
from deepcompression.codec.positions import DENSE, FLAGS, Places
from deepcompression.codec.streams import Stream
from deepcompression.codec.tiles import Tiles

_SMALL = 1 << 16
_FINE = 1 << 10  # codes, from which low bits may be noise
_WORTH = 1 / 1000  # of the bytes, below which a layout is not tried
_DENSE_UP_TO = 0.95  # share of zeros beyond which nothing was ever smallest as codes of all elements


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
    best: Written | None = None
    for way in codebooks.find(flat, how):
        # Contexts may gain on order 0: by half is more than any was seen to.
        if best is None or way.least(threads) < best.size * (2 if how.coder == "adaptive" else 1):
            best = _smaller(best, _encode_shared(way, how))
    if best is None or best.size > flat.nbytes // 4 or flat.size <= _SMALL:
        best = _smaller(best, _encode_raw(flat, how))
    lengths = b"".join(varint(len(chunk)) for chunk in best.chunks) if len(best.chunks) > 1 else b""
    return b"".join([best.head, lengths, *best.chunks])


# Nanoseconds an element of the slowest layout, on the machine of 2026; a table, so that no clock decides.
DECODE_COST = {"packed": 1.0, "huffman": 1.5, "adaptive": 12.0}
AUTO_LIMIT = 50_000_000


def settled(coder: str, elements: int) -> str:
    """The coder; for `auto` the smallest that decodes so many elements within AUTO_LIMIT, by DECODE_COST."""
    if coder != "auto":
        return coder
    return "adaptive" if elements * DECODE_COST["adaptive"] <= AUTO_LIMIT else "huffman"


def _smaller(one: Written | None, other: Written | None) -> Any:
    if one is None or other is None:
        return one or other
    return other if other.price < one.price else one


def _encode_shared(way: Shared, how: Writing) -> Written | None:
    """Values as codes of a book, in the smallest of all layouts."""
    masks = _masks(way.symbols, how.columns) if how.coder != "packed" else None
    best = None
    for mask in (None, masks) if masks else (None,):
        left = replace(way, symbols=mask.of(way.symbols)) if mask else way
        best = _smaller(best, _streams(left, mask, how))
        if how.coder == "adaptive":
            view = how.columns if mask is None else int(mask.columns_kept.sum())
            views = _views(left.symbols, view, way.book.k) if mask is None and not left.symbols.all() else [view]
            for view in views:
                best = _smaller(best, _arithmetic(left, mask, view, how))
    if how.coder != "packed" and way.book.k >= _FINE:
        best = _smaller(best, _lowered(way, how))
    for tiles in tiling.find(way.symbols, how):
        best = _smaller(best, _tiled(way, tiles, how))
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
        counts = codebooks.histogram(np.concatenate(high), ((book.k - 1) >> low) + 1, how.threads)
        _, stream = plan_codes(high, counts, len(counts), how, sparse=False)
        tails = [pack(part & codes.dtype.type((1 << low) - 1), low) for part in cut(codes, heads.CHUNK)]
        head = write_head(how.dtype, DENSE, None, 0, book, low) + stream.header()
        coded = mapped(functools.partial(streams.encode, stream=stream), high, how.threads)
        chunks = [one + tail for one, tail in zip(coded, tails, strict=True)]
        best = _smaller(best, Written(head, chunks))
    return best


def _tiled(way: Shared, tiles: Tiles, how: Writing) -> Written:
    """Values as codes, and where they are by tiles."""
    flags = tiles.arranged(way.symbols) != 0
    if tiles.most:
        symbols, book = way.symbols, way.book
        codes = tiles.arranged(symbols)[flags] - symbols.dtype.type(1)
    else:
        stored = np.repeat(flags.reshape(-1, tiles.size).any(axis=1), tiles.size)
        dense, book = _dense(way, bool((stored > flags).any()))
        codes = tiles.arranged(dense)[stored]
    where, kept = tiling.positions_of(flags, tiles, how)
    what = apart.codes(np.split(codes, kept), book.k, how)
    return apart.joined(lambda form: write_head(how.dtype, form, tiles, 0, book), where, what)


def _views(symbols: NDArray[Any], columns: int, k: int) -> list[int]:
    """Columns worth a try: an output channel a row; and the best part of one, e.g. a row of the pixels that it sees."""
    parts = [part for part in range(2, math.isqrt(columns) + 1) if columns % part == 0]
    narrower = sorted({part for one in parts for part in (one, columns // one) if 4 <= part <= SAMPLE})

    def size(view: int) -> float:
        sample = symbols[: max(1, SAMPLE // view) * view]
        code = arithmetic.encode(sample, Model(view, k, True, 0x66, 2), 4 * len(sample) + 64)
        return math.inf if code is None else len(code) / len(sample)

    best = min(narrower, key=size, default=columns)
    if columns > SAMPLE:
        return [best]
    return [columns] if best == columns or size(columns) <= size(best) else [columns, best]


def _masks(symbols: Symbols, columns: int) -> Masks | None:
    """What is left where all rows and columns of zeros are dropped; None where nothing is to drop, or all."""
    matrix = symbols.reshape(-1, columns)
    if 1 in matrix.shape:  # a mask would be its flags, not better coded
        return None
    rows: NDArray[np.bool_] = np.asarray(matrix.any(axis=1))
    across: NDArray[np.bool_] = np.asarray(matrix.any(axis=0))
    return None if (rows.all() and across.all()) or not rows.any() else Masks(columns, rows, across)


def _streams(way: Shared, mask: Masks | None, how: Writing) -> Written | None:
    """The smallest of dense, bitmap and gaps, each with the best streams of codes; `way` is what `mask` leaves."""
    parts = cut(way.symbols, heads.CHUNK)
    counts = codebooks.histogram(way.symbols, way.book.k + 1, how.threads)
    options: list[tuple[int, Callable[[], Written]]] = []
    # Codebooks of groups take in zero group by group, which masks tear apart.
    torn = mask is not None and bool(way.book.groups) and way.book.values is not None
    if counts[0] <= (0 if torn else _DENSE_UP_TO * len(way.symbols)):
        options.append(_dense_option(way, counts, mask, how))
    if counts[0]:
        cost, stream = plan_codes(parts, counts[1:], way.book.k, how)
        head = 2 + len(write_head(how.dtype, 0, mask, 0, way.book)) + cost
        for size, places in positions.plans(parts, how):
            begin = write_head(how.dtype, places.kind, mask, 0, way.book)
            options.append((head + size, _sparse_writer(begin, parts, places, stream, how.threads)))
    return min(options, key=lambda option: option[0])[1]()


def _dense_option(
    way: Shared, counts: NDArray[np.int64], mask: Masks | None, how: Writing
) -> tuple[int, Callable[[], Written]]:
    codes, book = _dense(way, bool(counts[0]))
    parts = cut(codes, heads.CHUNK)
    total = codebooks.histogram(codes, book.k, how.threads)
    cost, stream = plan_codes(parts, total, book.k, how, sparse=False)
    head = write_head(how.dtype, DENSE, mask, 0, book) + stream.header()

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


def _arithmetic(way: Shared, mask: Masks | None, columns: int, how: Writing) -> Written | None:
    """Flags and codes in one arithmetic code; without zeros, codes alone. None for rows that are too long."""
    if columns > arithmetic.MOST_COLUMNS:
        return None
    flags = not bool(way.symbols.all())
    symbols, book = (way.symbols, way.book) if flags else _dense(way, False)
    model = fitted(symbols, Model(columns, book.k, flags))
    parts = cut(symbols, arithmetic.rows_a_chunk(columns) * columns)
    most = symbols.nbytes + 64

    def chunk(part: Symbols) -> bytes | None:
        return arithmetic.encode(part, model, min(most, 4 * len(part) + 64))

    chunks = mapped(chunk, parts, how.threads)
    if any(made is None for made in chunks):
        return None
    form = (FLAGS if flags else DENSE) | ADAPTIVE
    head = write_head(how.dtype, form, mask, columns, book) + bytes([model.prior, model.context])
    return Written(head, [made for made in chunks if made is not None])


def _encode_raw(flat: Bits, how: Writing) -> Written | None:
    """Values as they are, in the narrowest type, deflated or as planes where that is smaller; all, or no zeros."""
    stored, small = narrow(flat, how.dtype)
    number = 0 if stored == how.dtype else DTYPES[stored].number
    parts = cut(small, heads.CHUNK)
    as_planes = parting.promising(small, stored, how)
    best = _parted(parts, number, None, how) if as_planes else None
    if best is None or best.size > small.nbytes:
        best = _smaller(best, _raw(parts, DENSE, number, b"", None, how))
    zeros = small.size - int(np.count_nonzero(small))
    if zeros * small.itemsize < best.size * _WORTH:  # all that leaving them out can save
        return best
    as_planes = parting.promising(small[small != 0], stored, how)
    for _, places in positions.plans(parts, how):
        if as_planes:
            best = _smaller(best, _parted(parts, number, places, how))
        else:
            best = _smaller(best, _raw(parts, places.kind, number, places.header(), places.write, how))
    for tiles in tiling.find(small, how):
        best = _smaller(best, _tiled_raw(small, stored, number, tiles, how))
    if how.coder == "adaptive":
        best = _smaller(best, _raw_flags(small, number, how))
    return best


def _parted(parts: list[Bits], number: int, places: Places | None, how: Writing) -> Written:
    """Values as planes; all, or those at `places`."""
    if places is None:
        where, kept = Piece([b""] * len(parts)), parts
    else:
        kept = [part[part != 0] for part in parts]
        where = Piece(mapped(places.write, parts, how.threads), places.kind, middle=places.header())
    return apart.joined(
        lambda form: write_head(how.dtype, form, None, 0, None), where, parting.parted(kept, number, how)
    )


def _tiled_raw(small: Bits, stored: str, number: int, tiles: Tiles, how: Writing) -> Written:
    """Values as they are or as planes, and where they are by tiles."""
    flags = tiles.arranged(small) != 0
    where, ends = tiling.positions_of(flags, tiles, how)
    kept = flags if tiles.most else np.repeat(flags.reshape(-1, tiles.size).any(axis=1), tiles.size)
    values = tiles.arranged(small)[kept]
    parts = np.split(values, ends)
    what = Piece([plain(part) for part in parts], 0, bytes([number]))
    if parting.promising(values, stored, how):
        what = min(what, parting.parted(parts, number, how), key=lambda piece: piece.size)
    return apart.joined(lambda form: write_head(how.dtype, form, tiles, 0, None), where, what)


def _raw_flags(small: Bits, number: int, how: Writing) -> Written | None:
    columns = how.columns
    present = (small[: max(columns, SAMPLE)] != 0).astype(np.uint8)
    columns = _views(present, columns, 1)[-1]
    if columns > arithmetic.MOST_COLUMNS:
        return None
    model = fitted(present, Model(columns, 1, True))

    def flags(part: Bits) -> bytes:
        code = arithmetic.encode((part != 0).astype(np.uint8), model, 2 * len(part) + 64)
        assert code is not None  # a flag never costs 16 bits
        return varint(len(code)) + code

    parts = cut(small, arithmetic.rows_a_chunk(columns) * columns)
    ending = bytes([model.prior, model.context])
    return _raw(parts, FLAGS, number, ending, flags, how, varint(columns))


def _raw(
    parts: list[Bits],
    kind: int,
    number: int,
    ending: bytes,
    where: Callable[[Bits], bytes] | None,
    how: Writing,
    columns: bytes = b"",
) -> Written:
    """Values of the type `number` as they are: each chunk its positions, from `where`, and the values stored."""

    def stored(part: Bits) -> Bits:
        return part if where is None else part[part != 0]

    def chunk(part: Bits) -> tuple[int, bytes]:
        """How much deflating gains, and the chunk."""
        kept = stored(part)
        code = plain(kept) if deflate is None else deflate(kept)
        return kept.nbytes - len(code), code if where is None else where(part) + code

    deflate = None if how.coder == "packed" else deflater(stored(next((p for p in parts if p.any()), parts[0])))
    chunks = mapped(chunk, parts, how.threads)
    if deflate is not None and sum(gain for gain, _ in chunks) <= 0:
        deflate = None
        chunks = mapped(chunk, parts, how.threads)
    head = bytes([kind]) + columns + bytes([number | (128 if deflate else 0)]) + ending
    return Written(head, [code for _, code in chunks])
