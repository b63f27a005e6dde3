"""A matrix with zeros as entries of 16 bits: a column within its block, and above it the code of a weight."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
MOST_CODES = 256
BITS = 16
NEAR = 256  # columns of a block of a convolution, so that the inputs of a block stay in the nearest cache
BEHIND = 16  # entries that may be read behind the last


@dataclass(frozen=True)
class Entries:
    """Weight (rows, columns) = scale (rows, 1) x values by code, or by entry (``own``), at the places of ``entries``.

    ``start`` (blocks x rows + 1,): where the entries of each block of ``block`` columns, and in it of each row, begin.
    """

    shape: tuple[int, int]
    entries: NDArray[np.uint16]
    start: NDArray[np.int32]
    values: Floats
    scale: Floats
    low: int
    block: int
    own: bool

    @property
    def nbytes(self) -> int:
        """In memory."""
        return sum(one.nbytes for one in (self.entries, self.start, self.values, self.scale))

    @property
    def count(self) -> int:
        """How many weights are stored."""
        return int(self.start[-1])

    def dense(self) -> Floats:
        """The matrix."""
        rows = self.shape[0]
        made = np.zeros(self.shape, np.float32)
        for block in range((len(self.start) - 1) // rows):
            ends = self.start[block * rows : (block + 1) * rows + 1]
            some = self.entries[ends[0] : ends[-1]]
            row = np.repeat(np.arange(rows), np.diff(ends))
            value = self.values[ends[0] : ends[-1]] if self.own else self.values[some >> self.low]
            made[row, block * self.block + (some & ((1 << self.low) - 1)).astype(np.int64)] = value * self.scale[row]
        return made


def entries_of(weight: Floats, scale: Floats, book: Floats | None, near: bool) -> Entries:
    """The entries of a matrix: the value of each, but for the sign of zeros.

    Args:
        weight: (rows, columns) of ``book`` (or, for a scale that is not 1, what of it times the scale is the weight).
        scale: (rows,).
        book: the values of all that are not 0, ascending, at most 256; None: each entry keeps its own.
        near: blocks are of 256 columns, else as large as an entry can say.
    """
    columns = weight.shape[1]
    low = BITS - max(1, (len(book) - 1).bit_length()) if book is not None else BITS
    block = min(1 << low, NEAR) if near else 1 << low
    parts = [_part(weight[:, at : at + block], book, low) for at in range(0, columns, block)]
    counts = np.concatenate([np.zeros(1, np.int64), *[part[2] for part in parts]])
    entries = np.concatenate([*[part[0] for part in parts], np.zeros(BEHIND, np.uint16)])
    own = np.concatenate([*[part[1] for part in parts], np.zeros(BEHIND, np.float32)])
    values = own if book is None else _padded(book)
    return Entries(weight.shape, entries, np.cumsum(counts).astype(np.int32), values, scale, low, block, book is None)


def _part(weight: Floats, book: Floats | None, low: int) -> tuple[NDArray[np.uint16], Floats, NDArray[np.int64]]:
    """Entries of a block of columns, their values (none where there is a book), and how many each row has."""
    row, column = np.nonzero(weight)
    found = weight[row, column]
    counts = np.bincount(row, minlength=len(weight))
    if book is None:
        return column.astype(np.uint16), found, counts
    code = np.searchsorted(book, found)
    return (column | code << low).astype(np.uint16), np.zeros(0, np.float32), counts


def _padded(book: Floats) -> Floats:
    """As many places as are read at once."""
    size = next(size for size in (32, 64, MOST_CODES) if len(book) <= size)
    return np.concatenate([book, np.zeros(size - len(book), np.float32)])


def pieces(matrix: Floats, most: int = 1 << 20) -> Iterator[Floats]:
    """The matrix, some rows at a time."""
    rows = max(1, most // max(1, matrix.shape[1]))
    for at in range(0, len(matrix), rows):
        yield matrix[at : at + rows]


def book_of(weight: Floats, most: int = MOST_CODES) -> Floats | None:
    """The values of all weights that are not 0, ascending; None where they are more than ``most``."""
    found = np.zeros(0, np.float32)
    for piece in pieces(weight):
        found = np.union1d(found, np.unique(piece[piece != 0]))
        if len(found) > most:
            return None
    return found
