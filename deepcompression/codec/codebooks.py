"""The values of a tensor found to be shared, or on a grid: symbols and the book that they stand for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec import grids, grouping
from deepcompression.codec.book import ALL, GRID_DTYPES, MOST_DISTINCT, MOST_INTEGER, Book, Groups
from deepcompression.codec.dtypes import Bits, Writing, order
from deepcompression.codec.grouping import Candidate
from deepcompression.codec.huffman import Symbols

_MOST_GROUPED = 1 << 10
_LARGE = 1 << 16  # elements, from which a layout is not tried only to be sure
_MANY = 1 << 12  # elements, from which a grid may be nearly empty
_GROUPS = (32, 64, 128, 256)  # that may have a codebook each
_SLICE = 1 << 20
_TRIES = 3  # groups of other sizes than the cheapest
_MOST_SPARED = 16  # bits an element, by a grid in place of values as they are


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
        if self.book.negative_zero:  # what is above -0.0 makes room for the integer 0
            codes = np.arange(self.book.k)
            codes += codes > -self.book.lowest
            whole = replace(self.book, k=self.book.k + 1, skips_zero=False)
            return symbols_of(np.append(1 - self.book.lowest, codes)[None], whole.k), whole
        integers = self.book.integers(np.arange(self.book.k))
        lowest, highest = int(integers[0]), int(integers[-1])
        if some_zero:
            lowest, highest = min(lowest, 0), max(highest, 0)
        whole = Book(highest - lowest + 1, None, self.book.groups, self.book.scales, lowest)
        table = np.concatenate([np.zeros(1, np.int32), integers]) - lowest
        return symbols_of(table[None], whole.k), whole

    def _with_zero(self, values: Bits) -> tuple[Symbols, Book]:
        """The codebook with zero at its place among the others, group by group."""
        whole = np.concatenate([np.zeros((len(values), 1), values.dtype), values], axis=1)
        by_key = np.argsort(order(whole, self.dtype), axis=1, kind="stable")
        k = whole.shape[1]
        book = Book(k, np.take_along_axis(whole, by_key, axis=1), self.book.groups)
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
    gridded = how.dtype in GRID_DTYPES
    whole = _codebook(flat, how)
    if whole is not None and whole.book.k <= 2:
        return [whole]
    on_grid = _as_grid(whole) if whole is not None and gridded else None
    in_groups = _grids_of_groups(flat, how, whole, on_grid) if gridded else []
    if whole is None or whole.book.k > 256:
        in_groups += _books_of_groups(flat, how, in_groups)
    return in_groups + _of_all(whole, on_grid)


def _of_all(whole: Shared | None, on_grid: Shared | None) -> list[Shared]:
    """What is shared by the whole tensor, without the codebook where the grid is smaller beyond doubt."""
    if whole is None or on_grid is None:
        return [way for way in (whole, on_grid) if way is not None]
    if len(whole.symbols) < _LARGE:
        return [whole, on_grid]
    spared = len(whole.book.write(whole.dtype)) - len(on_grid.book.write(whole.dtype))
    # Integers that do not occur have codes too, in a table of some bits each; of 12 bits, they make others longer.
    unused = on_grid.book.k - whole.book.k
    lost = 64 + 2 * unused + len(whole.symbols) * unused * 0.18 / 4096
    return [on_grid] if spared > lost else [whole, on_grid]


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
    known = np.unique(flat[: _SLICE // 8])
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
    values, negative = _without_negative(shared.book.values)
    found = grids.recognise(values, shared.dtype)
    if found is None or int(np.abs(found[1]).max()) >= MOST_INTEGER:
        return None
    # A grid that is nearly empty would cost more in its code than the codebook that it spares.
    width, k = int(np.ptp(found[1])), shared.book.k
    many = len(shared.symbols) >= _MANY
    if width > 4 * k + 16 and not (many and len(shared.symbols) * math.log2(width / k) < 8 * k * values.itemsize):
        return None
    codes, book = _grid_codes(found[1][0], found[0], ALL, None if negative is None else negative[0])
    table = np.concatenate([np.zeros(1, codes.dtype), codes])
    return Shared(table[shared.symbols], book, shared.dtype)


def _without_negative(bits: Bits) -> tuple[Bits, NDArray[np.bool_] | None]:
    """`bits` of floats with +0.0 for -0.0, and where that is, if anywhere."""
    zero = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    negative = bits == zero
    return (np.where(negative, bits.dtype.type(0), bits), negative) if negative.any() else (bits, None)


def _grid_codes(
    integers: NDArray[np.int32], scales: NDArray[Any], groups: Groups, negative: NDArray[np.bool_] | None = None
) -> tuple[Symbols, Book]:
    """Symbols (0 for the integer 0, else code + 1) of `integers` (n,), and their book; in slices, to save memory.

    Args:
        integers: (n,).
        scales: of each group.
        groups: which element belongs to which.
        negative: (n,) which zeros are -0.0, and have a code; None where none is.
    """
    starts = range(0, len(integers), _SLICE)
    pieces = [integers[at : at + _SLICE] for at in starts]
    ends = [(int(used.min()), int(used.max())) for piece in pieces if (used := piece[piece != 0]).size]
    if negative is not None:
        ends.append((0, 0))
    lowest, highest = min((low for low, _ in ends), default=1), max((high for _, high in ends), default=1)
    gap = negative is None and lowest < 0 < highest
    k = highest - lowest + 1 - gap
    symbols: Symbols = np.empty(len(integers), symbols_of(np.empty(0), k + 1).dtype)
    for at, piece in zip(starts, pieces, strict=True):
        codes = piece - np.int32(lowest - 1) - ((piece > 0) & gap)
        out = piece == 0 if negative is None else (piece == 0) & ~negative[at : at + _SLICE]
        symbols[at : at + _SLICE] = np.where(out, 0, codes)
    return symbols, Book(k, None, groups, scales, lowest, skips_zero=True, negative_zero=negative is not None)


def _grids_of_groups(flat: Bits, how: Writing, whole: Shared | None, on_grid: Shared | None) -> list[Shared]:
    """A grid for each group, of the groups that are the cheapest so."""
    plain, negative = _without_negative(flat)
    spared = float(_MOST_SPARED)
    if whole is not None:  # its codes, and its part of the codebook
        spared = min(spared, math.log2(whole.book.k) + 8 * flat.itemsize * whole.book.k / np.count_nonzero(plain))
    for candidate in grouping.candidates(plain, how.shape, how.dtype, spared)[:_TRIES]:
        if _gains(candidate, whole, on_grid):
            found = _on_grids(flat, plain, negative, candidate.groups, how.dtype)
            if found:
                return found
    return []


def _gains(candidate: Candidate, whole: Shared | None, on_grid: Shared | None) -> bool:
    """Whether scales of groups may be worth their bytes beside what the whole tensor shares."""
    if on_grid is not None:  # whose groups are on grids too
        assert on_grid.book.scales is not None
        return candidate.scale >= 2 * float(on_grid.book.scales[0])
    if whole is None or whole.book.k > 256:
        return True
    rows = grouping.beginnings(whole.symbols, candidate.groups)
    values = max(1, *(int(np.count_nonzero(np.unique(row))) for row in rows))
    stored = np.count_nonzero(whole.symbols) / whole.symbols.size
    spared = candidate.groups.size * stored * math.log2(whole.book.k / values)
    return bool(2 * values <= whole.book.k and spared > grouping.SCALE_BITS)


def _books_of_groups(flat: Bits, how: Writing, on_grids: list[Shared]) -> list[Shared]:
    """A codebook for each row, part of it or channel, the first that fits: larger ones than those on narrow grids."""
    narrow = [way.book.groups.size for way in on_grids if way.book.k < _MOST_GROUPED]
    for groups in _grouped(how.shape):
        if max([15, *narrow]) < groups.size < flat.size and _share(flat, groups):
            shared = _group_codebooks(groups.gathered(flat), groups, how.dtype)
            if shared is not None:
                return [shared]
    return []


def _on_grids(flat: Bits, plain: Bits, negative: NDArray[np.bool_] | None, groups: Groups, dtype: str) -> list[Shared]:
    """A grid for each group; where that is two integers around a 0 that is not there, their two values too."""
    found = grids.recognise(groups.gathered(plain), dtype)
    if found is None or int(np.abs(found[1]).max()) >= MOST_INTEGER:
        return []
    symbols, book = _grid_codes(groups.scattered(found[1]), found[0], groups, negative)
    made = [Shared(symbols, book, dtype)]
    if book.k == 2 and symbols.all():
        pairs = np.stack([grids.product(book.integers(np.full(1, code)), found[0], dtype) for code in (0, 1)], axis=1)
        made.append(Shared(symbols, Book(2, pairs, groups), dtype))
    return made


def _grouped(shape: tuple[int, ...]) -> Iterator[Groups]:
    """Groups that checkpoints have: rows, parts of them, channels of the second and the last axis, parts of these."""
    row = math.prod(shape[1:])
    if len(shape) > 1:
        yield Groups(row)
    else:
        row = math.prod(shape)
    yield from (Groups(size) for size in reversed(_GROUPS) if size < row and row % size == 0)
    for axis in sorted({1, len(shape) - 1}) if len(shape) > 1 else ():
        run, channels, rounds = math.prod(shape[axis + 1 :]), shape[axis], math.prod(shape[:axis])
        if channels > 1 and rounds > 1:
            yield Groups(run, channels, rounds)
            parts = (size // run for size in reversed(_GROUPS) if size % run == 0)
            yield from (Groups(run, channels, part) for part in parts if 1 < part < rounds and rounds % part == 0)


def _share(flat: Bits, groups: Groups) -> bool:
    """Whether each of a few groups may share values, by its beginning."""
    ordered = np.sort(grouping.beginnings(flat, groups), axis=1)
    distinct = 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)
    return bool((distinct <= min(groups.size // 4, 256, ordered.shape[1] // 2)).all())


def _group_codebooks(rows: Bits, groups: Groups, dtype: str) -> Shared | None:
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
    book = Book(k, values, groups)
    return Shared(symbols_of(groups.scattered(symbols), k + 1), book, dtype)
