"""The distinct values of a tensor as a codebook or a grid (FORMAT.md, Values), and arrays of values in the file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec import grids
from deepcompression.codec.arrays import read_array, write_array
from deepcompression.codec.bitstream import Cursor, varint
from deepcompression.codec.dtypes import Bits, Writing, order, unsigned
from deepcompression.codec.huffman import Symbols

MOST_DISTINCT = 1 << 16
MOST_INTEGER = 1 << 16
GRID_DTYPES = frozenset({"float32", "float16", "bfloat16", "float64"})
_MOST_GROUPED = 1 << 10
_GROUPS = (32, 64, 128, 256)
_SLICE = 1 << 20


@dataclass(frozen=True, eq=False)
class Book:
    """What codes below `k` stand for: values, or integers times scales; of the whole tensor or group by group.

    values: (groups, k) bits, ascending; of a grid None. scales: (groups,) of a grid; lowest: its integer of code 0.
    group: elements a group; 0 is all. skips_zero: whether a grid leaves out the integer 0.
    """

    k: int
    values: Bits | None = None
    group: int = 0
    scales: NDArray[Any] | None = None
    lowest: int = 0
    skips_zero: bool = False

    def write(self, dtype: str) -> bytes:
        """The book in the head of a blob, behind the number of elements a group."""
        if self.values is not None:
            return varint(self.k - 1) + write_array(self.values.reshape(-1), dtype)
        assert self.scales is not None
        zigzag = 2 * self.lowest if self.lowest >= 0 else -2 * self.lowest - 1
        kind = "float64" if dtype == "float64" else "float32"
        scales = self.scales.astype(kind).view(unsigned(kind))
        return varint(zigzag) + varint(self.k - 1) + write_array(scales, kind)

    def integers(self, codes: NDArray[Any]) -> NDArray[np.int32]:
        """The integers of a grid that `codes` stand for."""
        found = codes.astype(np.int32) + np.int32(self.lowest)
        return found + ((found >= 0) & (self.lowest <= 0)) if self.skips_zero else found

    def bits(self, codes: Symbols, dtype: str, groups: NDArray[np.int64] | None) -> Bits:
        """The element bits (m,) of `codes` (m,), which belong to `groups` (m,), None where there is one.

        Args:
            codes: (m,), below k.
            dtype: of the tensor.
            groups: (m,) the group of each; None where there is one.
        """
        if self.values is not None:
            flat = self.values.reshape(-1)
            return flat[codes] if groups is None else flat[groups * self.k + codes]
        assert self.scales is not None
        if groups is None:
            table = grids.product(self.integers(np.arange(self.k)), self.scales, dtype)
            return table[codes]
        return grids.product(self.integers(codes), self.scales[groups], dtype)


def read_book(cursor: Cursor, dtype: str, elements: int, group: int, *, grid: bool, sparse: bool) -> Book:
    """The book in the head of the blob of so many elements; MalformedFile where it breaks FORMAT.md.

    Args:
        cursor: at the book; moves behind it.
        dtype: of the tensor.
        elements: of the tensor.
        group: elements a group; 0 is all.
        grid: whether it is a grid, not a codebook.
        sparse: whether zeros are stored as positions.

    Raises:
        MalformedFile: it breaks FORMAT.md.
    """
    groups = -(-elements // group) if group else 1
    if grid:
        return _read_grid(cursor, dtype, group, groups, sparse)
    k = cursor.varint("the size of the codebook", most=min(MOST_DISTINCT, group or elements) - 1) + 1
    values = read_array(cursor, groups * k, dtype).reshape(groups, k)
    keys = order(values, dtype)
    wrong = keys[:, 1:] < keys[:, :-1] if group else keys[:, 1:] <= keys[:, :-1]
    if wrong.any() or (sparse and not values.all()):
        raise cursor.fail("the codebook is not ascending, or has a zero where zeros are stored as positions")
    return Book(k, values, group)


def _read_grid(cursor: Cursor, dtype: str, group: int, groups: int, sparse: bool) -> Book:
    if dtype not in GRID_DTYPES:
        raise cursor.fail(f"{dtype} cannot be on a grid")
    zigzag = cursor.varint("the lowest integer of the grid", most=2 * MOST_INTEGER)
    lowest = zigzag // 2 if zigzag % 2 == 0 else -(zigzag + 1) // 2
    k = cursor.varint("the size of the grid", most=MOST_DISTINCT - 1) + 1
    kind = "float64" if dtype == "float64" else "float32"
    scales = read_array(cursor, groups, kind).view(kind)
    with np.errstate(invalid="ignore"):
        sound = bool((np.isfinite(scales) & (scales > 0)).all())
    book = Book(k, None, group, scales, lowest, skips_zero=sparse)
    highest = int(book.integers(np.array([k - 1]))[0])
    if not sound or lowest < -MOST_INTEGER or highest > MOST_INTEGER:
        raise cursor.fail(f"a grid from {lowest} to {highest} with these scales is impossible")
    if sparse and _smallest_is_zero(book, dtype):
        raise cursor.fail("the grid has a zero where zeros are stored as positions")
    return book


def _smallest_is_zero(book: Book, dtype: str) -> bool:
    """Whether some integer of a grid without 0 rounds to all bits zero with some scale."""
    assert book.scales is not None
    integers = book.integers(np.array([0, book.k - 1]))
    near = [1] if integers[0] <= 1 <= integers[1] else [int(integers[0])] if integers[0] > 0 else []
    return bool(near) and not grids.product(np.array(near, np.int32), np.array([book.scales.min()]), dtype).all()


@dataclass(frozen=True, eq=False)
class Shared:
    """A tensor as symbols (n,): 0 for the bit pattern +0.0, else the code in `book`, plus 1."""

    symbols: Symbols
    book: Book
    dtype: str

    def least(self, threads: int) -> float:
        """Bytes that no layout goes below: an ideal order-0 code of the stored values, and the book as it stands."""
        counts = histogram(self.symbols, self.book.k + 1, threads)[1:]
        used = counts[counts > 0].astype(np.float64)
        ideal = float((used * np.log2(used.sum() / used)).sum()) / 8 if used.size else 0.0
        return ideal * (1 - 1e-6) + len(self.book.write(self.dtype))

    def dense(self, some_zero: bool) -> tuple[Symbols, Book]:
        """The code of each symbol (groups or 1, k + 1) where zeros are codes too, and the book that has them.

        Without zeros the book stays as it is, and the code of symbol 0 means nothing.
        """
        if self.book.values is None:
            return self._dense_grid(some_zero)
        if some_zero:
            return self._with_zero(self.book.values)
        return symbols_of(np.maximum(np.arange(self.book.k + 1) - 1, 0)[None], self.book.k), self.book

    def _dense_grid(self, some_zero: bool) -> tuple[Symbols, Book]:
        integers = self.book.integers(np.arange(self.book.k))
        lowest, highest = int(integers[0]), int(integers[-1])
        if some_zero:
            lowest, highest = min(lowest, 0), max(highest, 0)
        whole = Book(highest - lowest + 1, None, self.book.group, self.book.scales, lowest)
        table = np.concatenate([np.zeros(1, np.int32), integers]) - lowest
        return symbols_of(table[None], whole.k), whole

    def _with_zero(self, values: Bits) -> tuple[Symbols, Book]:
        """The codebook with zero at its place among the others, group by group."""
        whole = np.concatenate([np.zeros((len(values), 1), values.dtype), values], axis=1)
        by_key = np.argsort(order(whole, self.dtype), axis=1, kind="stable")
        k = whole.shape[1]
        book = Book(k, np.take_along_axis(whole, by_key, axis=1), self.book.group)
        return symbols_of(np.argsort(by_key, axis=1), k), book


def histogram(symbols: Symbols, k: int, threads: int) -> NDArray[np.int64]:
    """How often each symbol below `k` occurs (k,); in slices, since numpy counts 8 bytes wide.

    Args:
        symbols: (n,).
        k: they are below it.
        threads: at most so many.
    """
    parts = mapped(lambda i: np.bincount(symbols[i : i + _SLICE], minlength=k), range(0, len(symbols), _SLICE), threads)
    total: NDArray[np.int64] = np.sum(parts, axis=0) if parts else np.zeros(k, np.int64)
    return total


def symbols_of(numbers: NDArray[Any], k: int) -> Symbols:
    """`numbers` below `k` in the narrowest unsigned type."""
    return numbers.astype(np.uint8 if k <= 256 else np.uint16 if k <= 65_536 else np.uint32)


def find(flat: Bits, how: Writing) -> list[Shared]:
    """The ways in which the elements `flat` (n,) share values: of the whole tensor, or group by group."""
    if not flat.any():
        return []
    found = []
    whole = _codebook(flat, how)
    if whole is not None:
        found.append(whole)
        on_grid = _as_grid(whole) if how.dtype in GRID_DTYPES and whole.book.k > 2 else None
        if on_grid is not None:
            found.append(on_grid)
    if whole is None or whole.book.k > 256:
        found = _in_groups(flat, how.dtype, how.shape) + found
    return found


def _codebook(flat: Bits, how: Writing) -> Shared | None:
    """One codebook for all; None for too many distinct values (or only zeros)."""
    distinct = _distinct(flat)
    if distinct is None or not distinct.size:
        return None
    k = distinct.size
    by_key = np.argsort(order(distinct, how.dtype))
    place = np.empty(k, np.int64)
    place[by_key] = np.arange(1, k + 1)
    table = symbols_of(place, k + 1)
    symbols: Symbols = np.zeros(flat.size, table.dtype)

    def fill(start: int) -> None:
        part = flat[start : start + _SLICE]
        where = np.flatnonzero(part)
        symbols[start : start + _SLICE][where] = table[np.searchsorted(distinct, part[where])]

    mapped(fill, range(0, flat.size, _SLICE), how.threads)
    return Shared(symbols, Book(k, distinct[by_key][None]), how.dtype)


def _distinct(flat: Bits) -> Bits | None:
    """The distinct non-zero elements, ascending as integers; None for more than a book may have."""
    known = np.unique(flat[: _SLICE // 4])
    known = known[known != 0]
    for start in range(0, flat.size, _SLICE):
        if known.size >= MOST_DISTINCT:
            return None
        part = flat[start : start + _SLICE]
        part = part[part != 0]
        if known.size:
            part = part[known[np.minimum(np.searchsorted(known, part), known.size - 1)] != part]
        known = np.union1d(known, part) if part.size else known
    return known if known.size < MOST_DISTINCT else None


def _as_grid(shared: Shared) -> Shared | None:
    """The same with a scale and integers in place of the codebook, if its values are on a grid."""
    assert shared.book.values is not None
    found = grids.recognise(shared.book.values, shared.dtype)
    # A grid that is nearly empty would cost more in its code than the codebook that it spares.
    if found is None or int(np.ptp(found[1])) > 4 * shared.book.k + 16 or int(np.abs(found[1]).max()) >= MOST_INTEGER:
        return None
    codes, book = _grid_codes(found[1][0], found[0], 0)
    table = np.concatenate([np.zeros(1, codes.dtype), codes])
    return Shared(table[shared.symbols], book, shared.dtype)


def _grid_codes(integers: NDArray[np.int32], scales: NDArray[Any], group: int) -> tuple[Symbols, Book]:
    """Symbols (0 for the integer 0, else code + 1) of `integers` (n,), and their book; in slices, to save memory."""
    starts = range(0, len(integers), _SLICE)
    pieces = [integers[at : at + _SLICE] for at in starts]
    ends = [(int(used.min()), int(used.max())) for piece in pieces if (used := piece[piece != 0]).size]
    lowest, highest = min((low for low, _ in ends), default=1), max((high for _, high in ends), default=1)
    k = highest - lowest + 1 - (lowest < 0 < highest)
    symbols: Symbols = np.empty(len(integers), symbols_of(np.empty(0), k + 1).dtype)
    for at, piece in zip(starts, pieces, strict=True):
        codes = piece - np.int32(lowest - 1) - ((piece > 0) & (lowest < 0))
        symbols[at : at + _SLICE] = np.where(piece == 0, 0, codes)
    return symbols, Book(k, None, group, scales, lowest, skips_zero=True)


def _in_groups(flat: Bits, dtype: str, shape: tuple[int, ...]) -> list[Shared]:
    """A grid or a codebook for each row, or each group within rows, whichever is found first."""
    row = flat.size // max(shape[0], 1) if len(shape) > 1 else flat.size
    sizes = [row] if len(shape) > 1 else []
    sizes += [size for size in reversed(_GROUPS) if size < row and shape[-1] % size == 0]
    for size in sizes:
        if size < 16 or size >= flat.size:
            continue
        rows = flat.reshape(-1, size)
        found = grids.recognise(rows, dtype) if dtype in GRID_DTYPES else None
        if found is not None and int(np.ptp(found[1])) < _MOST_GROUPED:
            symbols, book = _grid_codes(found[1].reshape(-1), found[0], size)
            return [Shared(symbols, book, dtype)]
        shared = _group_codebooks(rows, dtype)
        if shared is not None:
            return [shared]
    return []


def _group_codebooks(rows: Bits, dtype: str) -> Shared | None:
    """A codebook for each of `rows` (groups, g), if each has few enough distinct values to repay one."""
    size = rows.shape[1]
    most = min(size // 4, 256)
    sample = np.sort(order(rows[:: max(1, len(rows) // 64)], dtype), axis=1)
    if int((np.diff(sample, axis=1) != 0).sum(axis=1).max()) >= most:
        return None
    symbols = np.zeros(rows.shape, np.uint16)
    books: list[Bits] = []
    for i, row in enumerate(rows):
        _, first, places = np.unique(order(row, dtype), return_index=True, return_inverse=True)
        values = row[first]
        if len(values) > most:
            return None
        nonzero = values != 0
        table = np.where(nonzero, np.cumsum(nonzero), 0)
        symbols[i] = table[places]
        books.append(values[nonzero])
    k = max(1, *(len(book) for book in books))
    values = np.stack(
        [np.append(book, np.full(k - len(book), book[-1] if len(book) else 1, book.dtype)) for book in books]
    )
    book = Book(k, values, size)
    return Shared(symbols_of(symbols.reshape(-1), k + 1), book, dtype)
