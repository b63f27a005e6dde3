"""The values of a tensor found to be shared, or on a grid: symbols and the book that they stand for."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec import grids, group_books, grouping
from deepcompression.codec.book import ALL, GRID_DTYPES, MOST_INTEGER, Book, Groups
from deepcompression.codec.distinct import distinct, looked_up
from deepcompression.codec.dtypes import DTYPES, Bits, Writing, narrow, order, to_array
from deepcompression.codec.grouping import Spared, without_negative
from deepcompression.codec.huffman import Symbols
from deepcompression.codec.sampling import Samples
from deepcompression.codec.shared import Shared, entropy, histogram, symbols_of

_LARGE = 1 << 16  # elements, from which a layout is not tried only to be sure
_MANY = 1 << 12  # elements, from which a grid may be nearly empty
_SAMPLED = 1 << 14  # elements that tell how wide all are
_SLICE = 1 << 20
_TOGETHER = 1 << 10  # elements that stand together
_FEWEST = 64  # of them that tell
_DIFFER = 0.3  # share of different ones, from which they may be smallest as they are: 256 values are a quarter
_COUNTED = 1 << 15  # elements that tell how often each value of two bytes occurs
_RUNS = (
    (2048, 32),
    (64, 32),
)  # groups, and elements of each, that tell whether they share: of wide values, of short ones
_BY_CHANCE = 3  # wide values that are there twice
_DEARER = 0.985  # of the bytes of planes, from which a code of thousands of values does not repay its time
_ALONE = 0.75  # share of the elements of a vector that differ, from which no codebook repays itself
_OWN = 0.6  # share of the values that a group has, above which groups seem to share them
_SHARED = 4  # bits of a codebook for each element, from which its values are hardly shared
_TRIES = 3  # groups of other sizes than the cheapest
_MOST_SPARED = 16  # bits an element, by a grid in place of values as they are


def differ(flat: Bits, how: Writing) -> bool:
    """Whether elements are floats of which most differ even where they stand together: hardly any are shared."""
    if flat.size < _FEWEST or not DTYPES[how.dtype].floating or flat.itemsize == 1:
        return False
    runs = grouping.spread(flat, 4, _TOGETHER)
    return _equal(runs) < (1 - _DIFFER) * runs.size - len(runs)


def find(flat: Bits, how: Writing, most: int | None = None) -> list[Shared]:
    """The ways in which the elements `flat` (n,) share values: of the whole tensor, or group by group.

    Args:
        flat: (n,) elements.
        how: they are written.
        most: bytes that they take as they are, as far as is known, where most differ; 0 or None says nothing.
    """
    if not (flat[:_TOGETHER].any() or flat.any()):
        return []
    gridded = how.dtype in GRID_DTYPES
    if _alone(flat, how) and (not gridded or grids.recognise(without_negative(flat[None])[0], how.dtype) is None):
        return []
    whole = None if most and _dearer(flat, how, most) else _codebook(flat, how)
    if whole is not None and whole.book.k <= 2:
        return [whole]
    if most and whole is None and (flat.itemsize == 2 or flat.size >= _LARGE) and not _alike(flat, how.shape):
        return []
    on_grid = _as_grid(whole) if whole is not None and gridded else None
    samples = _samples(flat, whole, how)
    on_grids = _grids_of_groups(flat, samples, how, whole, on_grid) if gridded else []
    books = _books_of_groups(samples, how, whole, on_grids)
    return on_grids + books + _of_all(whole, on_grid)


def _alone(flat: Bits, how: Writing) -> bool:
    """Whether most elements of a vector that is not laid in groups differ: no codebook is smaller than they are."""
    if len(how.shape) > 1 or flat.size >= grouping.FEWEST_LAID or how.coder == "packed":
        return False
    ordered = np.sort(flat)
    return bool(np.count_nonzero(ordered[1:] != ordered[:-1]) > _ALONE * flat.size)


def _alike(flat: Bits, shape: tuple[int, ...]) -> bool:
    """Whether elements that may be of one group are equal more often than those far apart are."""
    if len(shape) < 2:
        return False
    runs, length = _RUNS[flat.itemsize == 2]
    far = flat[:: flat.size // (runs * length) | 1][: runs * length]
    far = far[_shuffled(len(far))]  # at equal distances they may be of one channel too
    for channel in grouping.channels(shape):
        count = min(runs, flat.size // channel.size)  # of few channels more elements are looked at
        begun = grouping.beginnings(flat, channel, count, len(far) // count)
        across = _equal(far[: begun.size].reshape(begun.shape))
        chance = 1.5 * across + 4 * math.sqrt(across + 9) if flat.itemsize == 2 else across + _BY_CHANCE
        if _equal(begun) > chance:
            return True
    return False


@lru_cache(maxsize=8)
def _shuffled(count: int) -> NDArray[np.int64]:
    """The numbers below `count` in disorder, always the same."""
    return np.random.default_rng(0).permutation(count)


def _equal(rows: Bits) -> int:
    """How many elements of each row are equal to another."""
    ordered = np.sort(rows, axis=1)
    return int(np.count_nonzero(ordered[:, 1:] == ordered[:, :-1]))


def _dearer(flat: Bits, how: Writing, most: int) -> bool:
    """Whether codes of values of two bytes take more than `most` bytes, or hardly fewer: by a sample."""
    if flat.itemsize != 2:
        return False
    every = max(1, flat.size // _COUNTED)
    counts = np.bincount(flat[::every])
    counts = counts[counts > 0]
    used = len(counts)
    # Few samples of many values seem more alike than they are (Miller, Madow).
    chance = (used - 1) / (16 * math.log(2)) if every > 1 else 0.0
    share = 1.0 if how.coder == "adaptive" else _DEARER
    return bool(every * (entropy(counts) + chance) + 2 * used > share * most)


def _samples(flat: Bits, whole: Shared | None, how: Writing) -> Samples:
    """What a few groups have, and what it takes where the whole has one codebook, or none."""
    if whole is None:
        return Samples(flat, np.array(_narrowed(flat[:_SAMPLED], how.dtype)))
    counts = histogram(whole.symbols, whole.book.k + 1, how.threads)
    stored = int(counts[1:].sum())
    return Samples(
        whole.symbols, 8 * len(whole.book.write(how.dtype)) / stored - np.log2(np.maximum(counts, 1) / stored)
    )


def _narrowed(values: Bits, dtype: str) -> float:
    """Bits of each of `values` in a codebook."""
    return 8.0 * DTYPES[narrow(values, dtype)[0]].itemsize


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
    values = distinct(flat)
    if values is None or not values.size:
        return None
    k = values.size
    by_key = np.argsort(order(values, how.dtype))
    place = np.empty(k, np.int64)
    place[by_key] = np.arange(1, k + 1)
    symbols = looked_up(flat, values, symbols_of(place, k + 1), how.threads)
    return Shared(symbols, Book(k, values[by_key][None]), how.dtype)


def _as_grid(shared: Shared) -> Shared | None:
    """The same with a scale and integers in place of the codebook, if its values are on a grid."""
    assert shared.book.values is not None
    values, negative = without_negative(shared.book.values)
    found = grids.recognise(values, shared.dtype, _least_scale(shared))
    if found is None or int(np.abs(found[1]).max()) >= MOST_INTEGER:
        return None
    width, k = int(np.ptp(found[1])), shared.book.k
    if _nearly_empty(width, k) and not _repaid(width, k, shared):
        return None
    codes, book = _grid_codes(found[1][0], found[0], ALL, None if negative is None else negative[0])
    table = np.concatenate([np.zeros(1, codes.dtype), codes])
    return Shared(table[shared.symbols], book, shared.dtype)


def _least_scale(shared: Shared) -> float:
    """The scale below which a grid for few elements surely has too many integers, `_nearly_empty`."""
    assert shared.book.values is not None
    if len(shared.symbols) >= _MANY:
        return 0.0
    low, high = to_array(shared.book.values[0, [0, -1]], shared.dtype).tolist()
    rounded = (abs(low) + abs(high)) * 2.0 ** (1 - grids.SIGNIFICAND[shared.dtype])
    least = (high - low - rounded) / (4 * shared.book.k + 17)
    return least if 0 < least < math.inf else 0.0


def _nearly_empty(width: int, used: int) -> bool:
    """Whether a grid of so many integers costs more in its code than the codebook of `used` values that it spares."""
    return width > 4 * used + 16


def _repaid(width: int, used: int, whole: Shared) -> bool:
    """Whether a codebook of `used` values, which a grid of so many integers spares, takes more than longer codes do."""
    assert whole.book.values is not None
    spared = 8 * used * whole.book.values.itemsize
    return len(whole.symbols) >= _MANY and len(whole.symbols) * math.log2(width / used) < spared


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


def _grids_of_groups(
    flat: Bits, samples: Samples, how: Writing, whole: Shared | None, on_grid: Shared | None
) -> list[Shared]:
    """A grid for each group, of the groups that are the cheapest so."""
    scale = None if on_grid is None else on_grid.book.scales
    for candidate in grouping.candidates(flat, how.shape, how.dtype, _spared(samples, whole))[:_TRIES]:
        # Where the whole is on a grid, its groups are too.
        if scale is None or candidate.scale >= 2 * float(scale[0]):
            found = _on_grids(*without_negative(flat), candidate.groups, how.dtype)
            if not found:
                continue
            width = found[0].book.k
            if whole is None or not _nearly_empty(width, whole.book.k) or _repaid(width, whole.book.k, whole):
                return found
    return []


def _spared(samples: Samples, whole: Shared | None) -> Spared:
    """What grids of groups may spare."""
    if whole is None or whole.book.values is None:
        return Spared(_MOST_SPARED)
    book = whole.book.k * _narrowed(whole.book.values[0], whole.dtype) / np.count_nonzero(samples.flat)

    def by(groups: Groups) -> float:
        runs = samples.runs(groups)
        # Groups on grids of their own have values of their own.
        return samples.whole(groups) - runs.alone() if runs.most <= _OWN * runs.distinct else 0.0

    return Spared(min(_MOST_SPARED, math.log2(whole.book.k) + book), by if book < _SHARED else None)


def _books_of_groups(samples: Samples, how: Writing, whole: Shared | None, on_grids: list[Shared]) -> list[Shared]:
    """A codebook for each group, of the groups that take the fewest bytes so, where others seem to take more."""
    stored = int(np.count_nonzero(samples.flat)) if on_grids else 0
    others = min((8 * way.least(how.threads) / stored for way in on_grids), default=math.inf)
    values = None if whole is None else whole.book.values
    each = _narrowed(samples.flat[:_SAMPLED] if values is None else values.reshape(-1), how.dtype)
    for groups in group_books.candidates(samples, how.shape, each, others):
        made = group_books.made(samples.flat, groups, how.dtype if values is None else "uint32")  # symbols ascend
        if made is not None:
            symbols, books = made
            books = books if values is None else values[0][books - 1]
            return [Shared(symbols, Book(books.shape[1], books, groups), how.dtype)]
    return []


def _on_grids(plain: Bits, negative: NDArray[np.bool_] | None, groups: Groups, dtype: str) -> list[Shared]:
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
