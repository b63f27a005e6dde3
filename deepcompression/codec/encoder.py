"""Which of all layouts writes a tensor smallest, and its blob in that one: measured, not estimated."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec import arithmetic, arrays, codebooks, positions, streams
from deepcompression.codec import head as heads
from deepcompression.codec.bitstream import varint
from deepcompression.codec.codebooks import Book, Shared
from deepcompression.codec.dtypes import DTYPES, Bits, narrow
from deepcompression.codec.head import ADAPTIVE, Masks, write_head
from deepcompression.codec.huffman import Symbols
from deepcompression.codec.positions import BITMAP, DENSE, FLAGS, GAPS
from deepcompression.codec.streams import Stream

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


def encode_tensor(flat: Bits, dtype: str, shape: tuple[int, ...], coder: str, threads: int = 1) -> bytes:
    """The blob of a tensor with the element bits `flat` (n,), in the smallest layout that `coder` has."""
    if flat.size == 0:
        return b""
    coder = settled(coder, flat.size)
    ways = codebooks.find(flat, dtype, shape, threads)
    best: Written | None = None
    for way in ways:
        # Contexts may gain on order 0: by half is more than any was seen to.
        if best is None or way.least(threads) < best.size * (2 if coder == "adaptive" else 1):
            best = _smaller(best, _encode_shared(way, dtype, shape, coder, threads))
    if best is None or best.size > flat.nbytes // 4 or flat.size <= _SMALL:
        best = _smaller(best, _encode_raw(flat, dtype, shape, coder, threads))
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
    return other if other.size < one.size else one


def _encode_shared(way: Shared, dtype: str, shape: tuple[int, ...], coder: str, threads: int) -> Written | None:
    """Values as codes of a book, in the smallest of all layouts."""
    columns = _columns(shape)
    masks = _masks(way.symbols, columns) if coder != "packed" else None
    best = None
    for mask in (None, masks) if masks else (None,):
        symbols = mask.of(way.symbols) if mask else way.symbols
        found = _streams(way, symbols, mask, dtype, coder, threads)
        best = _smaller(best, found)
        if coder == "adaptive":
            view = columns if mask is None else int(mask.columns_kept.sum())
            views = _views(symbols, view, way.book.k) if mask is None and not symbols.all() else [view]
            for view in views:
                best = _smaller(best, _arithmetic(way, symbols, mask, view, dtype, threads))
    return best


def _columns(shape: tuple[int, ...]) -> int:
    """Columns of the matrix that a tensor is looked at as: a row an output channel."""
    return math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape)


def _views(symbols: NDArray[Any], columns: int, k: int) -> list[int]:
    """Columns worth a try: an output channel a row; and the best part of one, e.g. a row of the pixels that it sees."""
    parts = [part for part in range(2, math.isqrt(columns) + 1) if columns % part == 0]
    narrower = sorted({part for one in parts for part in (one, columns // one) if 4 <= part <= _SAMPLE})

    def size(view: int) -> float:
        sample = symbols[: max(1, _SAMPLE // view) * view]
        code = arithmetic.encode(sample, view, k, True, 0x66, 2, 4 * len(sample) + 64)
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


def _streams(way: Shared, symbols: Symbols, mask: Masks | None, dtype: str, coder: str, threads: int) -> Written | None:
    """The smallest of dense, bitmap and gaps, each with the best streams of codes."""
    parts = _cut(symbols, heads.CHUNK)
    counts = codebooks.histogram(symbols, way.book.k + 1, threads)
    options: list[tuple[int, Callable[[], Written]]] = []
    # Codebooks of groups take in zero group by group, which masks tear apart.
    torn = mask is not None and way.book.group > 0 and way.book.values is not None
    if counts[0] <= (0 if torn else _DENSE_UP_TO * len(symbols)):
        options.append(_dense_option(way, symbols, counts, mask, dtype, coder, threads))
    if counts[0]:
        cost, stream = _plan_codes(parts, counts[1:], way.book.k, coder, threads)
        head = 2 + len(write_head(dtype, 0, mask, 0, way.book)) + cost
        for kind, (size, escape, place) in (
            (BITMAP, positions.plan_bitmap(parts, coder, threads)),
            (GAPS, positions.plan_gaps(parts, coder, threads)),
        ):
            write = _sparse_writer(way, parts, mask, dtype, kind, escape, place, stream, threads)
            options.append((head + size, write))
    return min(options, key=lambda option: option[0])[1]()


def _dense_option(
    way: Shared,
    symbols: Symbols,
    counts: NDArray[np.int64],
    mask: Masks | None,
    dtype: str,
    coder: str,
    threads: int,
) -> tuple[int, Callable[[], Written]]:
    codes, book = _dense(way, symbols, bool(counts[0]))
    parts = _cut(codes, heads.CHUNK)
    total = codebooks.histogram(codes, book.k, threads)
    cost, stream = _plan_codes(parts, total, book.k, coder, threads, sparse=False)
    head = write_head(dtype, DENSE, mask, 0, book) + stream.header()

    def write() -> Written:
        return Written(head, mapped(lambda part: streams.encode(part, stream), parts, threads))

    return len(head) - len(stream.header()) + cost, write


def _dense(way: Shared, symbols: Symbols, some_zero: bool) -> tuple[Symbols, Book]:
    """The codes (n,) of all elements, zeros too, and the book that has them."""
    table, book = way.dense(some_zero)
    if len(table) == 1:
        return table[0][symbols], book
    return np.take_along_axis(table, symbols.reshape(len(table), -1), axis=1).reshape(-1), book


def _sparse_writer(
    way: Shared,
    parts: list[Symbols],
    mask: Masks | None,
    dtype: str,
    kind: int,
    escape: int,
    place: Stream,
    stream: Stream,
    threads: int,
) -> Callable[[], Written]:
    def chunk(part: Symbols) -> bytes:
        return positions.write(part, kind, escape, place) + streams.encode(part[part != 0] - part.dtype.type(1), stream)

    def write() -> Written:
        head = write_head(dtype, kind, mask, 0, way.book) + (varint(escape) if kind == GAPS else b"")
        return Written(head + place.header() + stream.header(), mapped(chunk, parts, threads))

    return write


def _plan_codes(
    parts: list[Symbols], counts: NDArray[np.int64], k: int, coder: str, threads: int, sparse: bool = True
) -> tuple[int, Stream]:
    """The smallest stream for the codes of all chunks (with `sparse`, of symbols above 0), and its bytes."""
    best = streams.plan(counts, k, 1, coder, len(parts))
    for size in streams.tuple_sizes(k)[1:]:

        def count(part: Symbols, size: int = size) -> NDArray[np.int64]:
            codes = part[part != 0] - part.dtype.type(1) if sparse else part
            return np.bincount(streams.tuples(codes, k, size), minlength=k**size)

        total: NDArray[np.int64] = np.sum(mapped(count, parts, threads), axis=0)
        found = streams.plan(total, k, size, coder, len(parts), best[0])
        best = min(best, found, key=lambda option: option[0])
    return best


def _arithmetic(
    way: Shared, symbols: Symbols, mask: Masks | None, columns: int, dtype: str, threads: int
) -> Written | None:
    """Flags and codes in one arithmetic code; without zeros, codes alone. None for rows that are too long."""
    if columns > arithmetic.MOST_COLUMNS:
        return None
    flags = not bool(symbols.all())
    book = way.book
    if not flags:
        symbols, book = _dense(way, symbols, False)
    prior, context = _settings(symbols, columns, book.k, flags)
    parts = _cut(symbols, arithmetic.rows_a_chunk(columns) * columns)
    most = symbols.nbytes + 64

    def chunk(part: Symbols) -> bytes | None:
        return arithmetic.encode(part, columns, book.k, flags, prior, context, min(most, 4 * len(part) + 64))

    chunks = mapped(chunk, parts, threads)
    if any(made is None for made in chunks):
        return None
    form = (FLAGS if flags else DENSE) | ADAPTIVE
    head = write_head(dtype, form, mask, columns, book) + bytes([prior, context])
    return Written(head, [made for made in chunks if made is not None])


def _settings(symbols: NDArray[Any], columns: int, k: int, flags: bool) -> tuple[int, int]:
    """The prior and the context that code the first rows of a matrix smallest, searched one after the other."""
    rows = max(1, min(len(symbols), _SAMPLE) // columns)
    sample = symbols[: rows * columns]
    known: dict[tuple[int, int], int] = {}

    def size(setting: tuple[int, int]) -> int:
        if setting not in known:
            code = arithmetic.encode(sample, columns, k, flags, *setting, 4 * len(sample) + 64)
            known[setting] = 1 << 60 if code is None else len(code)
        return known[setting]

    best = (0x66, 1 if flags else 0)
    if flags:
        best = min([(best[0] & 0xF0 | a, best[1]) for a in _PRIORS], key=size)
        best = min([(best[0] & 0x0F | b << 4, best[1]) for b in _PRIORS], key=size)
        best = min([best, (best[0], 0), (best[0], 2)], key=size)
        best = min([best, *((best[0] & 0xF0 | a, best[1]) for a in _PRIORS)], key=size)
    if k > 1:
        best = min([best, *((best[0], best[1] & 3 | v << 2) for v in ((1, 2, 3) if flags else (2, 3)))], key=size)
    return best


def _encode_raw(flat: Bits, dtype: str, shape: tuple[int, ...], coder: str, threads: int) -> Written | None:
    """Values as they are, in the narrowest exact type, deflated where that is smaller; zeros left out or not."""
    stored, small = narrow(flat, dtype)
    number = 0 if stored == dtype else DTYPES[stored].number
    parts = _cut(small, heads.CHUNK)
    best = _raw(parts, DENSE, number, b"", None, coder, threads)
    zeros = small.size - int(np.count_nonzero(small))
    if zeros * small.itemsize < best.size * _WORTH:  # all that leaving them out can save
        return best
    for kind, (_, escape, place) in (
        (BITMAP, positions.plan_bitmap(parts, coder, threads)),
        (GAPS, positions.plan_gaps(parts, coder, threads)),
    ):
        head = (varint(escape) if kind == GAPS else b"") + place.header()
        where = functools.partial(positions.write, kind=kind, escape=escape, stream=place)
        best = _smaller(best, _raw(parts, kind, number, head, where, coder, threads))
    if coder == "adaptive":
        best = _smaller(best, _raw_flags(small, number, shape, threads))
    return best


def _raw_flags(small: Bits, number: int, shape: tuple[int, ...], threads: int) -> Written | None:
    columns = _columns(shape)
    present = (small[: max(columns, _SAMPLE)] != 0).astype(np.uint8)
    columns = _views(present, columns, 1)[-1]
    if columns > arithmetic.MOST_COLUMNS:
        return None
    prior, context = _settings(present, columns, 1, True)

    def flags(part: Bits) -> bytes:
        code = arithmetic.encode((part != 0).astype(np.uint8), columns, 1, True, prior, context, 2 * len(part) + 64)
        assert code is not None  # a flag never costs 16 bits
        return varint(len(code)) + code

    parts = _cut(small, arithmetic.rows_a_chunk(columns) * columns)
    ending = bytes([prior, context])
    return _raw(parts, FLAGS, number, ending, flags, "adaptive", threads, varint(columns))


def _raw(
    parts: list[Bits],
    kind: int,
    number: int,
    ending: bytes,
    where: Callable[[Bits], bytes] | None,
    coder: str,
    threads: int,
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

    deflate = None if coder == "packed" else _deflater(stored(next((p for p in parts if p.any()), parts[0])))
    chunks = mapped(chunk, parts, threads)
    if deflate is not None and sum(gain for gain, _ in chunks) <= 0:
        deflate = None
        chunks = mapped(chunk, parts, threads)
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
