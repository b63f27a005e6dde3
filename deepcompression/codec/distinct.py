"""The distinct elements of a tensor, and which of them each element is: counted with tables, given up early."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from deepcompression import _numba
from deepcompression._parallel import mapped
from deepcompression.codec.book import MOST_DISTINCT
from deepcompression.codec.dtypes import Bits
from deepcompression.codec.huffman import Symbols

_SLICE = 1 << 20
_LOOKED_AT = 1 << 14  # elements of a sample
_DIFFER = 0.97  # share of a sample that differs, from which no book of a file holds all: of 65,536 it would be 0.89
_SLOTS = 1 << 18
_WORTH = 1 << 14, 1 << 20  # elements that repay a compiled call, and importing it


def distinct(flat: Bits) -> Bits | None:
    """The distinct elements but 0 of `flat` (n,), ascending as integers; None for more than a book may have."""
    if flat.itemsize <= 2:
        return _marked(flat)
    if _too_many(flat):
        return None
    compiled = _numba.kernels(flat.size, *_WORTH)
    if compiled is None:
        return _by_sorting(flat)
    values = np.zeros(MOST_DISTINCT - 1, np.uint64)
    number = compiled.find_distinct(flat, len(values), np.zeros(_SLOTS, np.uint64), values)
    return None if number < 0 else np.sort(values[:number]).astype(flat.dtype)


def _marked(flat: Bits) -> Bits | None:
    """The same of elements of few bits, by a table of all that there may be."""
    seen = np.zeros(1 << 8 * flat.itemsize, np.bool_)
    for at in range(0, flat.size, _SLICE):  # numpy widens what it looks up to 8 bytes
        seen[flat[at : at + _SLICE]] = True
    seen[0] = False
    found: Bits = np.flatnonzero(seen).astype(flat.dtype)
    return found if found.size < MOST_DISTINCT else None


def _too_many(flat: Bits) -> bool:
    """Whether so many elements of a sample differ that no book has all, or none that repays itself."""
    if flat.size < 2 * _LOOKED_AT:
        return False
    ordered = np.sort(flat[:: flat.size // _LOOKED_AT | 1])
    return bool(np.count_nonzero(ordered[1:] != ordered[:-1]) > _DIFFER * len(ordered))


def _by_sorting(flat: Bits) -> Bits | None:
    known = flat[:0]
    for at in range(0, flat.size, _SLICE):
        part = flat[at : at + _SLICE]
        part = part[part != 0]
        if known.size:
            part = part[known[np.minimum(np.searchsorted(known, part), known.size - 1)] != part]
        known = np.union1d(known, part) if part.size else known
        if known.size >= MOST_DISTINCT:
            return None
    return known


def looked_up(flat: Bits, values: Bits, codes: Symbols, threads: int) -> Symbols:
    """The code (n,) of each element of `flat` (n,), 0 of 0.

    Args:
        flat: the elements.
        values: (k,) all that occur but 0, ascending as integers.
        codes: (k,) of them.
        threads: at most so many.
    """
    out: Symbols = np.zeros(flat.size, codes.dtype)
    compiled = _numba.kernels(flat.size, *_WORTH) if flat.itemsize > 2 else None
    if compiled is not None:
        tables = np.zeros(_SLOTS, np.uint64), np.zeros(_SLOTS, np.uint16)
        compiled.fill_codes(flat, values.astype(np.uint64), codes, *tables, out)
        return out
    look_up = _by_table(values, codes) if flat.itemsize <= 2 else _by_search(values, codes)

    def fill(at: int) -> None:
        out[at : at + _SLICE] = look_up(flat[at : at + _SLICE])

    mapped(fill, range(0, flat.size, _SLICE), threads)
    return out


def _by_table(values: Bits, codes: Symbols) -> Callable[[Bits], Symbols]:
    table = np.zeros(1 << 8 * values.itemsize, codes.dtype)
    table[values] = codes
    return lambda part: table[part]


def _by_search(values: Bits, codes: Symbols) -> Callable[[Bits], Symbols]:
    behind = np.append(np.zeros(1, codes.dtype), codes)  # in front: all other than 0 occur
    return lambda part: behind[np.searchsorted(values, part, side="right")]
