"""Which of all layouts writes a tensor smallest, and its blob in that one: measured, not estimated."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec import arithmetic, arrays, codebooks, positions, streams
from deepcompression.codec import head as heads
from deepcompression.codec.arithmetic import Model
from deepcompression.codec.bitstream import varint
from deepcompression.codec.book import Book
from deepcompression.codec.codebooks import Shared
from deepcompression.codec.dtypes import DTYPES, Bits, Writing, narrow
from deepcompression.codec.head import ADAPTIVE, version_of, write_head
from deepcompression.codec.huffman import Symbols
from deepcompression.codec.masks import Masks
from deepcompression.codec.positions import DENSE, FLAGS, Places
from deepcompression.codec.streams import Stream

_NEWER = 16  # bytes that a form of version 2 has to save
_SAMPLE = 1 << 18
_SMALL = 1 << 16
_PRIORS = (6, 2, 3, 4, 5, 7, 8, 15)
_WORTH = 1 / 1000  # of the bytes, below which a layout is not tried
_DENSE_UP_TO = 0.95  # share of zeros beyond which nothing was ever smallest as codes of all elements


class Written(NamedTuple):
    """A blob's head and chunks; `size` counts both."""

    head: bytes
    chunks: list[bytes]

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        return len(self.head) + sum(map(len, self.chunks))

    @property
    def price(self) -> int:
        """Bytes, and some for what readers of version 1 cannot read."""
        return self.size + _NEWER * (version_of(self.head) - 1)


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
    return best


def _views(symbols: NDArray[Any], columns: int, k: int) -> list[int]:
    """Columns worth a try: an output channel a row; and the best part of one, e.g. a row of the pixels that it sees."""
    parts = [part for part in range(2, math.isqrt(columns) + 1) if columns % part == 0]
    narrower = sorted({part for one in parts for part in (one, columns // one) if 4 <= part <= _SAMPLE})

    def size(view: int) -> float:
        sample = symbols[: max(1, _SAMPLE // view) * view]
        code = arithmetic.encode(sample, Model(view, k, True, 0x66, 2), 4 * len(sample) + 64)
        return math.inf if code is None else len(code) / len(sample)

    best = min(narrower, key=size, default=columns)
    if columns > _SAMPLE:
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


def _cut(symbols: NDArray[Any], chunk: int) -> list[NDArray[Any]]:
    return [symbols[i : i + chunk] for i in range(0, len(symbols), chunk)]


def _streams(way: Shared, mask: Masks | None, how: Writing) -> Written | None:
    """The smallest of dense, bitmap and gaps, each with the best streams of codes; `way` is what `mask` leaves."""
    parts = _cut(way.symbols, heads.CHUNK)
    counts = codebooks.histogram(way.symbols, way.book.k + 1, how.threads)
    options: list[tuple[int, Callable[[], Written]]] = []
    # Codebooks of groups take in zero group by group, which masks tear apart.
    torn = mask is not None and bool(way.book.groups) and way.book.values is not None
    if counts[0] <= (0 if torn else _DENSE_UP_TO * len(way.symbols)):
        options.append(_dense_option(way, counts, mask, how))
    if counts[0]:
        cost, stream = _plan_codes(parts, counts[1:], way.book.k, how)
        head = 2 + len(write_head(how.dtype, 0, mask, 0, way.book)) + cost
        for size, places in positions.plans(parts, how):
            begin = write_head(how.dtype, places.kind, mask, 0, way.book)
            options.append((head + size, _sparse_writer(begin, parts, places, stream, how.threads)))
    return min(options, key=lambda option: option[0])[1]()


def _dense_option(
    way: Shared, counts: NDArray[np.int64], mask: Masks | None, how: Writing
) -> tuple[int, Callable[[], Written]]:
    codes, book = _dense(way, bool(counts[0]))
    parts = _cut(codes, heads.CHUNK)
    total = codebooks.histogram(codes, book.k, how.threads)
    cost, stream = _plan_codes(parts, total, book.k, how, sparse=False)
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


def _plan_codes(
    parts: list[Symbols], counts: NDArray[np.int64], k: int, how: Writing, *, sparse: bool = True
) -> tuple[int, Stream]:
    """The smallest stream for the codes of all chunks (with `sparse`, of symbols above 0), and its bytes."""
    best = streams.plan(counts, k, 1, how.coder, len(parts))
    for size in streams.tuple_sizes(k)[1:]:

        def count(part: Symbols, size: int = size) -> NDArray[np.int64]:
            codes = part[part != 0] - part.dtype.type(1) if sparse else part
            return np.bincount(streams.tuples(codes, k, size), minlength=k**size)

        total: NDArray[np.int64] = np.sum(mapped(count, parts, how.threads), axis=0)
        found = streams.plan(total, k, size, how.coder, len(parts), best[0])
        best = min(best, found, key=lambda option: option[0])
    return best


def _arithmetic(way: Shared, mask: Masks | None, columns: int, how: Writing) -> Written | None:
    """Flags and codes in one arithmetic code; without zeros, codes alone. None for rows that are too long."""
    if columns > arithmetic.MOST_COLUMNS:
        return None
    flags = not bool(way.symbols.all())
    symbols, book = (way.symbols, way.book) if flags else _dense(way, False)
    model = _fitted(symbols, Model(columns, book.k, flags))
    parts = _cut(symbols, arithmetic.rows_a_chunk(columns) * columns)
    most = symbols.nbytes + 64

    def chunk(part: Symbols) -> bytes | None:
        return arithmetic.encode(part, model, min(most, 4 * len(part) + 64))

    chunks = mapped(chunk, parts, how.threads)
    if any(made is None for made in chunks):
        return None
    form = (FLAGS if flags else DENSE) | ADAPTIVE
    head = write_head(how.dtype, form, mask, columns, book) + bytes([model.prior, model.context])
    return Written(head, [made for made in chunks if made is not None])


def _fitted(symbols: NDArray[Any], model: Model) -> Model:
    """With the prior and the context that code the first rows of a matrix smallest, searched one after the other."""
    flags, rows = model.flags, max(1, min(len(symbols), _SAMPLE) // model.columns)
    sample = symbols[: rows * model.columns]
    known: dict[tuple[int, int], int] = {}

    def size(setting: tuple[int, int]) -> int:
        if setting not in known:
            tried = replace(model, prior=setting[0], context=setting[1])
            code = arithmetic.encode(sample, tried, 4 * len(sample) + 64)
            known[setting] = 1 << 60 if code is None else len(code)
        return known[setting]

    best = (0x66, 1 if flags else 0)
    if flags:
        best = min([(best[0] & 0xF0 | a, best[1]) for a in _PRIORS], key=size)
        best = min([(best[0] & 0x0F | b << 4, best[1]) for b in _PRIORS], key=size)
        best = min([best, (best[0], 0), (best[0], 2)], key=size)
        best = min([best, *((best[0] & 0xF0 | a, best[1]) for a in _PRIORS)], key=size)
    if model.k > 1:
        best = min([best, *((best[0], best[1] & 3 | v << 2) for v in ((1, 2, 3) if flags else (2, 3)))], key=size)
    return replace(model, prior=best[0], context=best[1])


def _encode_raw(flat: Bits, how: Writing) -> Written | None:
    """Values as they are, in the narrowest exact type, deflated where that is smaller; zeros left out or not."""
    stored, small = narrow(flat, how.dtype)
    number = 0 if stored == how.dtype else DTYPES[stored].number
    parts = _cut(small, heads.CHUNK)
    best = _raw(parts, DENSE, number, b"", None, how)
    zeros = small.size - int(np.count_nonzero(small))
    if zeros * small.itemsize < best.size * _WORTH:  # all that leaving them out can save
        return best
    for _, places in positions.plans(parts, how):
        best = _smaller(best, _raw(parts, places.kind, number, places.header(), places.write, how))
    if how.coder == "adaptive":
        best = _smaller(best, _raw_flags(small, number, how))
    return best


def _raw_flags(small: Bits, number: int, how: Writing) -> Written | None:
    columns = how.columns
    present = (small[: max(columns, _SAMPLE)] != 0).astype(np.uint8)
    columns = _views(present, columns, 1)[-1]
    if columns > arithmetic.MOST_COLUMNS:
        return None
    model = _fitted(present, Model(columns, 1, True))

    def flags(part: Bits) -> bytes:
        code = arithmetic.encode((part != 0).astype(np.uint8), model, 2 * len(part) + 64)
        assert code is not None  # a flag never costs 16 bits
        return varint(len(code)) + code

    parts = _cut(small, arithmetic.rows_a_chunk(columns) * columns)
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
        code = _plain(kept) if deflate is None else deflate(kept)
        return kept.nbytes - len(code), code if where is None else where(part) + code

    deflate = None if how.coder == "packed" else _deflater(stored(next((p for p in parts if p.any()), parts[0])))
    chunks = mapped(chunk, parts, how.threads)
    if deflate is not None and sum(gain for gain, _ in chunks) <= 0:
        deflate = None
        chunks = mapped(chunk, parts, how.threads)
    head = bytes([kind]) + columns + bytes([number | (128 if deflate else 0)]) + ending
    return Written(head, [code for _, code in chunks])


def _plain(stored: Bits) -> bytes:
    return stored.astype(stored.dtype.newbyteorder("<"), copy=False).tobytes()


def _deflater(stored: Bits) -> Callable[[Bits], bytes] | None:
    """The way to deflate that makes the beginning of `stored` smallest; None where it gains nothing."""
    sample = stored[: 1 << 16]
    if not sample.size:
        return None
    whole, quick = len(arrays.deflate(sample)), len(arrays.deflate(sample, quick=True))
    if min(whole, quick) >= sample.nbytes:
        return None
    hasty = quick < whole or (quick <= whole * 1.02 and sample.size == 1 << 16)
    return functools.partial(arrays.deflate, quick=hasty)
