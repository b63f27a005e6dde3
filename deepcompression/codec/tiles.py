"""Tiles of a matrix (FORMAT.md, Tiles): zeros by whole blocks, or so many of every M elements, wherever they lie."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec import arithmetic, positions, streams
from deepcompression.codec.arithmetic import Model
from deepcompression.codec.bitstream import Cursor, varint
from deepcompression.codec.positions import BITMAP, GAPS, Places

BLOCKS, PATTERNS = 1, 2
MOST_IN_BLOCK, MOST_IN_PATTERN, MOST_IN_ROW = 1 << 16, 16, 1 << 22


class Tiles(NamedTuple):
    """Tiles of `height` x `width` in a matrix of so many columns; `most` of each are stored, 0 is all or none."""

    columns: int
    height: int
    width: int
    most: int = 0

    @property
    def size(self) -> int:
        """Elements of a tile."""
        return self.height * self.width

    @property
    def across(self) -> int:
        """Tiles in a row of them."""
        return self.columns // self.width

    @property
    def kind(self) -> int:
        """BLOCKS or PATTERNS."""
        return PATTERNS if self.most else BLOCKS

    @property
    def alphabet(self) -> int:
        """What says which elements of a tile are stored is below it."""
        return len(patterns(self.size, self.most)) if self.most else 2

    def chunk(self, most: int) -> int:
        """Elements a chunk: whole rows of tiles, some `most` elements in all."""
        row = self.height * self.columns
        return max(1, most // row) * row

    def model(self, prior: int, context: int) -> Model:
        """What predicts blocks or patterns in arithmetic code."""
        return Model(self.across, self.alphabet if self.most else 1, not self.most, prior, context)

    def places(self, elements: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in the tensor the `elements` (m,) are, counted tile by tile."""
        if self.height == 1:
            return elements
        tile, inner = np.divmod(elements, self.size)
        down, along = np.divmod(tile, self.across)
        row, column = np.divmod(inner, self.width)
        found: NDArray[np.int64] = (down * self.height + row) * self.columns + along * self.width + column
        return found

    def arranged(self, flat: NDArray[Any]) -> NDArray[Any]:
        """`flat` (n,), tile by tile."""
        if self.height == 1:
            return flat
        grid = flat.reshape(-1, self.height, self.across, self.width)
        return np.ascontiguousarray(grid.transpose(0, 2, 1, 3)).reshape(-1)

    def write(self) -> bytes:
        """What the head of a blob says of them, behind the columns."""
        return varint(self.height) + varint(self.width) + (varint(self.most) if self.most else b"")


def read_tiles(cursor: Cursor, kind: int, columns: int, elements: int) -> Tiles:
    """Tiles in the head of the blob of so many elements.

    Args:
        cursor: behind the columns.
        kind: BLOCKS or PATTERNS.
        columns: of the matrix.
        elements: of the tensor.

    Raises:
        MalformedFile: they break FORMAT.md.
    """
    height, width = cursor.varint("the rows of a tile", most=elements), cursor.varint("the columns of a tile", elements)
    rows = elements // columns
    most = MOST_IN_PATTERN if kind == PATTERNS else MOST_IN_BLOCK
    fits = height and width and not rows % height and not columns % width
    if not fits or not 2 <= height * width <= most or height * columns > MOST_IN_ROW:
        raise cursor.fail(f"{rows} rows and {columns} columns have no tiles of {height} x {width}")
    stored = cursor.varint("the most elements of a tile", most=height * width - 1) if kind == PATTERNS else 0
    if kind == PATTERNS and stored == 0:
        raise cursor.fail("no element of a tile is stored")
    return Tiles(columns, height, width, stored)


@lru_cache(maxsize=16)
def patterns(size: int, most: int) -> NDArray[np.bool_]:
    """Which elements (K, size) of a tile are stored, by its symbol, as FORMAT.md counts them.

    Args:
        size: elements of a tile, at most 16.
        most: of which are stored.
    """
    numbers = np.arange(1 << size, dtype="<u2")
    bits = np.unpackbits(numbers.view(np.uint8).reshape(-1, 2), axis=1, bitorder="little")[:, :size].astype(bool)
    kept: NDArray[np.bool_] = bits[bits.sum(axis=1) <= most]
    return kept


def read_places(
    counts: Sequence[int], cursors: Sequence[Cursor], tiles: Tiles, how: Places, model: Model
) -> list[NDArray[np.int64]]:
    """The stored elements of chunks of so many, counted tile by tile.

    Args:
        counts: elements of each chunk.
        cursors: at the positions of each; they move behind.
        tiles: in which they are.
        how: the positions are written.
        model: of FLAGS.

    Raises:
        MalformedFile: positions break FORMAT.md.
    """
    sizes = [count // tiles.size for count in counts]
    if how.kind == GAPS:
        return [_blocks(found, tiles) for found in positions.read(sizes, cursors, how)]
    if how.kind == BITMAP:
        symbols = streams.decode(cursors, sizes, how.stream)
    else:
        symbols = [_read_flags(cursor, size, model) for cursor, size in zip(cursors, sizes, strict=True)]
    if tiles.most:
        table = patterns(tiles.size, tiles.most)
        return [np.flatnonzero(table[each]) for each in symbols]
    return [_blocks(np.flatnonzero(each), tiles) for each in symbols]


def _read_flags(cursor: Cursor, count: int, model: Model) -> NDArray[Any]:
    code = cursor.take(cursor.varint("the length of the flags"), "the flags")
    return arithmetic.decode_part(cursor, code, count // model.columns, model)


def _blocks(stored: NDArray[np.int64], tiles: Tiles) -> NDArray[np.int64]:
    return (stored[:, None] * tiles.size + np.arange(tiles.size)).reshape(-1)
