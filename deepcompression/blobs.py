"""One tensor to one blob of a .dcz file and back, as FORMAT.md specifies it: positions, values, chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression import arithmetic, coders, values
from deepcompression.bits import Cursor, varint
from deepcompression.coders import Stream, Symbols
from deepcompression.dtypes import DTYPES, Bits, narrow, unsigned
from deepcompression.errors import MalformedFile
from deepcompression.parallel import mapped
from deepcompression.values import Book, Shared

CHUNK = 1 << 20
MOST_ESCAPE = (1 << 16) - 1
DENSE, BITMAP, GAPS, FLAGS = range(4)
RAW, CODEBOOK, GRID = range(3)
_ADAPTIVE, _MASKS, _GROUPS = 1 << 4, 1 << 5, 1 << 6
_BITMAP_TUPLE = 8
_AT_ONCE = 16
_SAMPLE = 1 << 18
_SMALL = 1 << 16
_PIECE = 1 << 18
_PRIORS = (6, 2, 3, 4, 5, 7, 8, 15)
_DENSE_UP_TO = 0.95  # share of zeros beyond which nothing was ever smallest as codes of all elements


class Sections(NamedTuple):
    """Where the bytes of one blob went; `table` is everything that describes codes and choices."""

    values: int = 0
    positions: int = 0
    codebook: int = 0
    table: int = 0


@dataclass(frozen=True)
class Head:
    """What the head of a blob says: how its chunks are to be read."""

    elements: int
    dtype: str
    positions: int
    values: int
    adaptive: bool = False
    columns: int = 0
    rows_kept: NDArray[np.bool_] | None = None
    columns_kept: NDArray[np.bool_] | None = None
    book: Book | None = None
    stored: str = ""
    deflated: bool = False
    escape: int = 0
    position_stream: Stream | None = None
    code_stream: Stream | None = None
    prior: int = 0
    context: int = 0

    @property
    def arithmetic(self) -> bool:
        """Whether chunks are matrices of whole rows, coded arithmetically."""
        return self.adaptive or self.positions == FLAGS

    @property
    def kept(self) -> int:
        """Elements that are left where masks took some rows and columns away."""
        if self.rows_kept is None or self.columns_kept is None:
            return self.elements
        return int(self.rows_kept.sum()) * int(self.columns_kept.sum())

    @property
    def width(self) -> int:
        """Columns that are left."""
        return self.columns if self.columns_kept is None else int(self.columns_kept.sum())

    @property
    def chunk(self) -> int:
        """Elements a chunk."""
        return arithmetic.rows_a_chunk(self.width) * self.width if self.arithmetic else CHUNK

    @property
    def k(self) -> int:
        """Codes are below it; 1 where values are raw."""
        return self.book.k if self.book else 1


# ---------------------------------------------------------------- encoding


class Written(NamedTuple):
    """A blob's head and chunks; `size` counts both."""

    head: bytes
    chunks: list[bytes]

    @property
    def size(self) -> int:
        """Bytes of the blob."""
        return len(self.head) + sum(map(len, self.chunks))


@dataclass(frozen=True)
class Masks:
    """The rows and columns of a matrix that are not wholly zero."""

    columns: int
    rows_kept: NDArray[np.bool_]
    columns_kept: NDArray[np.bool_]

    def of(self, flat: NDArray[Any]) -> NDArray[Any]:
        """The elements that are kept, of all `flat` (n,)."""
        return flat.reshape(-1, self.columns)[self.rows_kept][:, self.columns_kept].reshape(-1)


def encode_tensor(flat: Bits, dtype: str, shape: tuple[int, ...], coder: str, threads: int = 1) -> bytes:
    """The blob of a tensor with the element bits `flat` (n,), in the smallest layout that `coder` has."""
    if flat.size == 0:
        return b""
    coder = _auto(flat.size) if coder == "auto" else coder
    ways = values.find(flat, dtype, shape, threads)
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


def _auto(elements: int) -> str:
    """The smallest coder that decodes so many elements within AUTO_LIMIT nanoseconds, by DECODE_COST."""
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


def _head(dtype: str, form: int, mask: Masks | None, columns: int, book: Book | None) -> bytes:
    """The first fields of a head: form, columns, masks, group and book."""
    parts = []
    if mask is not None:
        form |= _MASKS
        parts.append(varint(mask.columns) + _write_mask(mask.rows_kept) + _write_mask(mask.columns_kept))
    elif form & _ADAPTIVE or form & 3 == FLAGS:
        parts.append(varint(columns))
    if book is not None:
        form |= (CODEBOOK if book.values is not None else GRID) << 2
        if book.group:
            form |= _GROUPS
            parts.append(varint(book.group))
        parts.append(book.write(dtype))
    return b"".join([bytes([form]), *parts])


def _write_mask(kept: NDArray[np.bool_]) -> bytes:
    if kept.all():
        return b"\0"
    plain = b"\1" + np.packbits(kept, bitorder="little").tobytes()
    if len(kept) > arithmetic.MOST_COLUMNS:
        return plain
    code = arithmetic.encode(kept.astype(np.uint8), len(kept), 1, True, 0, 1, len(plain))
    coded = plain if code is None else b"\2" + varint(len(code)) + code
    return coded if len(coded) < len(plain) else plain


def _cut(symbols: NDArray[Any], chunk: int) -> list[NDArray[Any]]:
    return [symbols[i : i + chunk] for i in range(0, len(symbols), chunk)]


# ---- streams: dense, bitmap or gaps, and codes


def _streams(way: Shared, symbols: Symbols, mask: Masks | None, dtype: str, coder: str, threads: int) -> Written | None:
    """The smallest of dense, bitmap and gaps, each with the best streams of codes."""
    parts = _cut(symbols, CHUNK)
    counts = values.histogram(symbols, way.book.k + 1, threads)
    options: list[tuple[int, Callable[[], Written]]] = []
    # Codebooks of groups take in zero group by group, which masks tear apart.
    torn = mask is not None and way.book.group > 0 and way.book.values is not None
    if counts[0] <= (0 if torn else _DENSE_UP_TO * len(symbols)):
        options.append(_dense_option(way, symbols, counts, mask, dtype, coder, threads))
    if counts[0]:
        cost, stream = _plan_codes(parts, counts[1:], way.book.k, coder, threads)
        head = 2 + len(_head(dtype, 0, mask, 0, way.book)) + cost
        for kind, (size, escape, place) in (
            (BITMAP, _plan_bitmap(parts, coder, threads)),
            (GAPS, _plan_gaps(parts, coder, threads)),
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
    parts = _cut(codes, CHUNK)
    total = values.histogram(codes, book.k, threads)
    cost, stream = _plan_codes(parts, total, book.k, coder, threads, sparse=False)
    head = _head(dtype, DENSE, mask, 0, book) + stream.header()

    def write() -> Written:
        return Written(head, mapped(lambda part: coders.encode(part, stream), parts, threads))

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
        return _write_positions(part, kind, escape, place) + coders.encode(part[part != 0] - part.dtype.type(1), stream)

    def write() -> Written:
        head = _head(dtype, kind, mask, 0, way.book) + (varint(escape) if kind == GAPS else b"")
        return Written(head + place.header() + stream.header(), mapped(chunk, parts, threads))

    return write


def _write_positions(part: NDArray[Any], kind: int, escape: int, stream: Stream) -> bytes:
    """The positions of the elements of a chunk that are not 0."""
    if kind == BITMAP:
        return coders.encode((part != 0).astype(np.uint8), stream)
    symbols = _gap_symbols(np.diff(np.flatnonzero(part), prepend=-1) - 1, escape)
    return varint(len(symbols)) + coders.encode(symbols, stream)


def _plan_codes(
    parts: list[Symbols], counts: NDArray[np.int64], k: int, coder: str, threads: int, sparse: bool = True
) -> tuple[int, Stream]:
    """The smallest stream for the codes of all chunks (with `sparse`, of symbols above 0), and its bytes."""
    best = coders.plan(counts, k, 1, coder, len(parts))
    for size in coders.tuple_sizes(k)[1:]:

        def count(part: Symbols, size: int = size) -> NDArray[np.int64]:
            codes = part[part != 0] - part.dtype.type(1) if sparse else part
            return np.bincount(coders.tuples(codes, k, size), minlength=k**size)

        total: NDArray[np.int64] = np.sum(mapped(count, parts, threads), axis=0)
        found = coders.plan(total, k, size, coder, len(parts), best[0])
        best = min(best, found, key=lambda option: option[0])
    return best


def _plan_bitmap(parts: list[NDArray[Any]], coder: str, threads: int) -> tuple[int, int, Stream]:
    def count(part: NDArray[Any]) -> NDArray[np.int64]:
        return np.bincount(np.packbits(part != 0, bitorder="little"), minlength=256)

    counts = np.sum(mapped(count, parts, threads), axis=0)
    size, stream = coders.plan(counts, 2, _BITMAP_TUPLE, coder, len(parts))
    return size, 0, stream


def _plan_gaps(parts: list[NDArray[Any]], coder: str, threads: int) -> tuple[int, int, Stream]:
    """Gap coding with the escape value that costs least."""

    def gaps(part: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.unique(np.diff(np.flatnonzero(part), prepend=-1) - 1, return_counts=True)

    pairs = mapped(gaps, parts, threads)
    distinct, place = np.unique(np.concatenate([pair[0] for pair in pairs]), return_inverse=True)
    counts = np.bincount(place, np.concatenate([pair[1] for pair in pairs]), len(distinct)).astype(np.int64)
    frames = sum(len(varint(int(pair[1].sum()))) for pair in pairs)
    best: tuple[int, int, Stream] | None = None
    for escape in _escapes(int(distinct[-1]) if distinct.size else 0, coder):
        each = _gap_counts(distinct, counts, escape)
        size, stream = coders.plan(each, escape + 1, 1, coder, len(parts), best[0] if best else 1 << 62)
        size += frames + len(varint(escape))
        if best is None or size < best[0]:
            best = size, escape, stream
    assert best is not None
    return best


def _escapes(longest: int, coder: str) -> list[int]:
    """Escape values worth a try: powers of two less one (of which fixed-width codes use every bit), and longest + 1."""
    tried = [(1 << bits) - 1 for bits in range(1, 17) if bits == 1 or (1 << (bits - 1)) <= longest + 1]
    if coder != "packed" and longest + 1 <= min(MOST_ESCAPE, 1 << 12):
        tried.append(longest + 1)
    return sorted(set(tried))


def _gap_counts(distinct: NDArray[np.int64], counts: NDArray[np.int64], escape: int) -> NDArray[np.int64]:
    """How often each symbol (escape + 1,) occurs where gaps `distinct` occur `counts` times."""
    found = np.bincount(distinct % escape, counts, escape + 1).astype(np.int64)
    found[escape] = int(counts @ (distinct // escape))
    return found


def _gap_symbols(gaps: NDArray[np.int64], escape: int) -> Symbols:
    """Each of `gaps` (m,) as gap // escape times the escape symbol, and the rest."""
    escapes = gaps // escape
    ends = np.cumsum(escapes + 1) - 1
    symbols: Symbols = np.full(int(ends[-1]) + 1 if gaps.size else 0, escape, np.uint8 if escape < 256 else np.uint16)
    symbols[ends] = gaps % escape
    return symbols


# ---- arithmetic coding: flags, codes, or both


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
    form = (FLAGS if flags else DENSE) | _ADAPTIVE
    head = _head(dtype, form, mask, columns, book) + bytes([prior, context])
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


# ---- raw values


def _encode_raw(flat: Bits, dtype: str, shape: tuple[int, ...], coder: str, threads: int) -> Written | None:
    """Values as they are, in the narrowest exact type, deflated where that is smaller; zeros left out or not."""
    stored, small = narrow(flat, dtype)
    dense = _raw(small, stored, dtype, DENSE, b"", [], _cut(small, CHUNK), coder, threads)
    zeros = small.size - int(np.count_nonzero(small))
    if not zeros:
        return dense
    best = dense
    parts = _cut((flat != 0).astype(np.uint8), CHUNK)
    kept = [part[part != 0] for part in _cut(small, CHUNK)]
    for kind, (_, escape, place) in (
        (BITMAP, _plan_bitmap(parts, coder, threads)),
        (GAPS, _plan_gaps(parts, coder, threads)),
    ):
        head = (varint(escape) if kind == GAPS else b"") + place.header()
        where = [_write_positions(part, kind, escape, place) for part in parts]
        best = _smaller(best, _raw(small, stored, dtype, kind, head, where, kept, coder, threads))
    if coder == "adaptive":
        best = _smaller(best, _raw_flags(flat, small, stored, dtype, shape, threads))
    return best


def _raw_flags(
    flat: Bits, small: Bits, stored: str, dtype: str, shape: tuple[int, ...], threads: int
) -> Written | None:
    present = (flat != 0).astype(np.uint8)
    columns = _views(present, _columns(shape), 1)[-1]
    if columns > arithmetic.MOST_COLUMNS:
        return None
    prior, context = _settings(present, columns, 1, True)
    chunk = arithmetic.rows_a_chunk(columns) * columns

    def code(part: Symbols) -> bytes | None:
        return arithmetic.encode(part, columns, 1, True, prior, context, 2 * len(part) + 64)

    codes = mapped(code, _cut(present, chunk), threads)
    if any(made is None for made in codes):
        return None
    where = [varint(len(made)) + made for made in codes if made is not None]
    kept = [part[part != 0] for part in _cut(small, chunk)]
    ending = bytes([prior, context])
    return _raw(small, stored, dtype, FLAGS, ending, where, kept, "adaptive", threads, varint(columns))


def _raw(
    small: Bits,
    stored: str,
    dtype: str,
    kind: int,
    ending: bytes,
    where: list[bytes],
    kept: list[Bits],
    coder: str,
    threads: int,
    columns: bytes = b"",
) -> Written:
    """A blob of raw values, each chunk its positions `where` and the values `kept`."""
    number = 0 if stored == dtype else DTYPES[stored].number
    deflated = None if coder == "packed" else _deflated(kept, threads)
    if deflated is not None:
        number |= 128
    raw = deflated or [part.astype(part.dtype.newbyteorder("<"), copy=False).tobytes() for part in kept]
    head = bytes([kind]) + columns + bytes([number]) + ending
    return Written(head, [a + b for a, b in zip(where, raw, strict=True)] if where else raw)


def _deflated(parts: list[Bits], threads: int) -> list[bytes] | None:
    """Deflated planes of each of `parts`, in the way that makes the first smallest; None where it gains nothing."""
    sample = next((part for part in parts if part.size), parts[0])[: 1 << 16]
    if not sample.size:
        return None
    whole, quick = len(values.deflate(sample)), len(values.deflate(sample, quick=True))
    if min(whole, quick) >= sample.nbytes:
        return None
    hasty = quick < whole or (quick <= whole * 1.02 and sample.size == 1 << 16)
    made = mapped(lambda part: values.deflate(part, hasty), parts, threads)
    return made if sum(map(len, made)) < sum(part.nbytes for part in parts) else None


# ---------------------------------------------------------------- decoding


def decode_tensor(
    blob: bytes | memoryview, dtype: str, count: int, name: str, threads: int = 1, *, split: bool = False
) -> tuple[Bits, Sections]:
    """The element bits (count,) of the tensor `name`, and where its bytes went; every field is checked.

    Args:
        split: of an arithmetic code, which holds flags and codes, count what the flags alone would take as positions.

    Raises:
        MalformedFile: names the tensor and what contradicts FORMAT.md.
    """
    cursor = Cursor(blob, name)
    flat: Bits = np.zeros(count, unsigned(dtype))
    if count == 0:
        cursor.end("an empty tensor")
        return flat, Sections()
    head, codebook_bytes = read_head(cursor, dtype, count)
    starts = list(range(0, head.kept, head.chunk))
    if len(starts) > 1 and len(starts) > cursor.left:
        raise cursor.fail(f"{len(starts)} chunks cannot be in {cursor.left} bytes")
    sizes = [cursor.varint("a chunk's length") for _ in starts] if len(starts) > 1 else [cursor.left]
    head_bytes = cursor.at
    parts = [Cursor(cursor.take(size, "a chunk"), name) for size in sizes]
    cursor.end("the last chunk")
    fill = _Filler(head, flat, split)
    compiled = coders.kernels(head.chunk * len(starts)) is not None or head.arithmetic
    at_once = 1 if compiled else _AT_ONCE
    batches = [(starts[i : i + at_once], parts[i : i + at_once]) for i in range(0, len(starts), at_once)]
    position_bytes = sum(mapped(lambda batch: fill(*batch), batches, threads))
    table = head_bytes - codebook_bytes
    return flat, Sections(len(cursor.buffer) - head_bytes - position_bytes, position_bytes, codebook_bytes, table)


def read_head(cursor: Cursor, dtype: str, count: int) -> tuple[Head, int]:
    """The head of the blob of so many elements, and how many of its bytes are the book."""
    form = cursor.take(1, "the form")[0]
    positions, kind, adaptive = form & 3, form >> 2 & 3, bool(form & _ADAPTIVE)
    raw_codes = kind == RAW and (adaptive or form & _GROUPS)
    mixed = (adaptive and positions in (BITMAP, GAPS)) or (positions == FLAGS and kind != RAW and not adaptive)
    if form & 128 or kind == 3 or raw_codes or mixed:
        raise cursor.fail(f"the form {form:#04x} is not possible")
    columns, rows_kept, columns_kept = 0, None, None
    if adaptive or positions == FLAGS or form & _MASKS:
        columns = cursor.varint("the columns", most=count)
        if columns == 0 or count % columns:
            raise cursor.fail(f"{count} elements have no {columns} columns")
    if form & _MASKS:
        rows_kept, columns_kept = _read_mask(cursor, count // columns), _read_mask(cursor, columns)
    group = cursor.varint("the elements a group", most=count - 1) if form & _GROUPS else 0
    if form & _GROUPS and group == 0:
        raise cursor.fail("a group of no elements")
    found: dict[str, Any] = {}
    codebook = 0
    if kind == RAW:
        found["stored"], found["deflated"] = values.read_type(cursor, dtype)
    else:
        start = cursor.at
        sparse = positions != DENSE
        found["book"] = values.read_book(cursor, dtype, count, group, grid=kind == GRID, sparse=sparse)
        codebook = cursor.at - start
    if positions == GAPS:
        found["escape"] = cursor.varint("the escape value", most=MOST_ESCAPE)
        if found["escape"] == 0:
            raise cursor.fail("the escape value is 0")
        found["position_stream"] = coders.read_stream(cursor, found["escape"] + 1)
    if positions == BITMAP:
        found["position_stream"] = coders.read_stream(cursor, 2)
    if kind != RAW and not adaptive:
        found["code_stream"] = coders.read_stream(cursor, found["book"].k)
    if adaptive or positions == FLAGS:
        found["prior"], found["context"] = cursor.take(2, "prior and context")
        n, v = found["context"] & 3, found["context"] >> 2
        if n > 2 or v > 3 or (n and positions != FLAGS) or (v and not adaptive) or (v == 1 and positions != FLAGS):
            raise cursor.fail(f"the context {found['context']} is not possible")
    head = Head(count, dtype, positions, kind, adaptive, columns, rows_kept, columns_kept, **found)
    if head.arithmetic and head.width > arithmetic.MOST_COLUMNS:
        raise cursor.fail(f"arithmetic code has {head.width} columns, at most {arithmetic.MOST_COLUMNS} are allowed")
    return head, codebook


def _read_mask(cursor: Cursor, count: int) -> NDArray[np.bool_]:
    kind = cursor.take(1, "a mask")[0]
    if kind == 0:
        return np.ones(count, bool)
    if kind == 1:
        packed = cursor.take((count + 7) // 8, "a mask")
        unpacked = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
        if unpacked[count:].any():
            raise cursor.fail("the padding of a mask is not zero")
        kept: NDArray[np.bool_] = unpacked[:count].astype(bool)
    elif kind == 2 and count <= arithmetic.MOST_COLUMNS:
        code = cursor.take(cursor.varint("the length of a mask"), "a mask")
        kept = _decode_chunk(cursor, code, 1, count, 1, True, 0, 1) != 0
    else:
        raise cursor.fail(f"a mask of kind {kind} for {count} flags")
    if not kept.any():
        raise cursor.fail("a mask keeps nothing")
    return kept


def _decode_chunk(
    cursor: Cursor, code: memoryview, rows: int, columns: int, k: int, flags: bool, prior: int, context: int
) -> Symbols:
    try:
        return arithmetic.decode(code, rows, columns, k, flags, prior, context)
    except MalformedFile as error:
        raise cursor.fail(str(error)) from None


class _Filler:
    """Writes chunks to their places in a tensor."""

    def __init__(self, head: Head, flat: Bits, split: bool) -> None:
        self.head = head
        self.split = split
        self.flat = flat
        self.kept = head.kept
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
        if self.head.code_stream is not None:
            codes = coders.decode(cursors, found, self.head.code_stream)
            for start, count, place, each in zip(starts, counts, places, codes, strict=True):
                self._put_codes(start, count, place, each)
        else:
            for start, count, place, cursor in zip(starts, counts, places, cursors, strict=True):
                self._put_raw(start, count, place, cursor)
        for cursor in cursors:
            cursor.end("a chunk's last value")
        return used

    def _positions(self, counts: Sequence[int], cursors: Sequence[Cursor]) -> list[NDArray[np.int64] | None]:
        """Places of the stored elements in each chunk; None for all."""
        head = self.head
        if head.positions == DENSE:
            return [None] * len(counts)
        assert head.position_stream is not None
        if head.positions == BITMAP:
            stored = coders.decode(cursors, counts, head.position_stream)
            return [np.flatnonzero(each) for each in stored]
        sizes = [cursor.varint("the number of gaps", most=count) for count, cursor in zip(counts, cursors, strict=True)]
        symbols = coders.decode(cursors, sizes, head.position_stream)
        return [self._gaps(*chunk) for chunk in zip(symbols, counts, cursors, strict=True)]

    def _gaps(self, symbols: Symbols, count: int, cursor: Cursor) -> NDArray[np.int64]:
        is_weight = symbols != self.head.escape
        ends = np.cumsum(symbols.astype(np.int64) + is_weight)
        if symbols.size and (int(ends[-1]) > count or not is_weight[-1]):
            raise cursor.fail(f"the gaps lead to element {int(ends[-1])} of {count}, or end in an escape")
        places: NDArray[np.int64] = ends[is_weight] - 1
        return places

    def _arithmetic(self, start: int, count: int, cursor: Cursor) -> int:
        head = self.head
        flags = head.positions == FLAGS
        size = cursor.left if head.adaptive else cursor.varint("the length of the flags")
        code = cursor.take(size, "the flags")
        found = _decode_chunk(cursor, code, count // head.width, head.width, head.k, flags, head.prior, head.context)
        used = cursor.at
        if not flags:
            self._put_codes(start, count, None, found)
            return 0
        if head.adaptive:
            for at in range(0, count, _PIECE):
                part = found[at : at + _PIECE]
                place = np.flatnonzero(part)
                self._put_codes(start + at, count, place, part[place] - found.dtype.type(1))
            return self._flags_alone(found, size) if self.split else 0
        self._put_raw(start, count, np.flatnonzero(found), cursor)
        cursor.end("a chunk's last value")
        return used

    def _flags_alone(self, symbols: Symbols, most: int) -> int:
        head = self.head
        flags = (symbols != 0).astype(np.uint8)
        code = arithmetic.encode(flags, head.width, 1, True, head.prior, head.context & 3, most)
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
            if head.book.group:
                elements = np.arange(where.start, where.stop) if isinstance(where, slice) else where
                groups = elements // head.book.group
            self.flat[where] = head.book.bits(part, head.dtype, groups)

    def _put_raw(self, start: int, count: int, place: NDArray[np.int64] | None, cursor: Cursor) -> None:
        head = self.head
        kind = unsigned(head.stored)
        m = count if place is None else len(place)
        if head.deflated:
            small = values.inflate(cursor.take(cursor.left, "deflated values"), m, kind, cursor)
        else:
            raw = cursor.take(m * kind.itemsize, f"{m} values of type {head.stored}")
            small = np.frombuffer(raw, kind.newbyteorder("<")).astype(kind)
        found = values.widened(small, head.stored, head.dtype, cursor)
        if place is not None and not found.all():
            raise cursor.fail("a zero is stored among the non-zero values")
        self.flat[self._where(start, count, place)] = found

    def _where(self, start: int, count: int, place: NDArray[np.int64] | None) -> slice | NDArray[np.int64]:
        """Where in the tensor the stored elements of a chunk are."""
        if self.rows is None or self.across is None:
            return slice(start, start + count) if place is None else place + start
        kept = (np.arange(count) if place is None else place) + start
        row, column = np.divmod(kept, len(self.across))
        return self.rows[row] * self.head.columns + self.across[column]


def layout(blob: bytes | memoryview, dtype: str, count: int) -> tuple[str, str]:
    """How a blob that decodes is written, e.g. ("gaps+codebook", "huffman"): layout and coder."""
    if not count:
        return "empty", "packed"
    head, _ = read_head(Cursor(blob, "layout"), dtype, count)
    place = ("dense", "bitmap", "gaps", "flags")[head.positions]
    kind = ("raw", "codebook", "grid")[head.values] if not head.deflated else "deflated"
    grouped = "s" if head.book and head.book.group else ""
    coded = any(s is not None and s.lengths is not None for s in (head.position_stream, head.code_stream))
    coder = "adaptive" if head.arithmetic else "huffman" if coded else "packed"
    return f"{place}+{kind}{grouped}" + ("+masks" if head.rows_kept is not None else ""), coder
