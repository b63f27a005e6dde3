"""Where a tensor has zeros, and how that is written: found once, for all ways in which its values may be."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec import arithmetic, positions, tiling
from deepcompression.codec import head as heads
from deepcompression.codec.apart import FEW, SAMPLE, Piece, cut, first_rows, fitted, trial
from deepcompression.codec.arithmetic import Model
from deepcompression.codec.dtypes import Bits, Writing
from deepcompression.codec.masks import Masks
from deepcompression.codec.positions import Places
from deepcompression.codec.tiles import Tiles

Plans = list[tuple[int, Places]]
_VIEWED = 1 << 15  # elements by which views of a tensor are compared


class Tiled(NamedTuple):
    """Positions by tiles, and where the values of each chunk but the first begin."""

    tiles: Tiles
    positions: Piece
    ends: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Zeros:
    """Which elements of a tensor are stored, of its elements `flat` (n,); all others have all bits zero."""

    flat: Bits
    how: Writing

    @property
    def number(self) -> int:
        """How many zeros there are."""
        return self.flat.size - int(np.count_nonzero(self.flat))

    @cached_property
    def stored(self) -> NDArray[np.bool_]:
        """Which (n,) are."""
        stored: NDArray[np.bool_] = self.flat != 0
        return stored

    @cached_property
    def masks(self) -> Masks | None:
        """What is left where all rows and columns of zeros are dropped; None where nothing is to drop, or all."""
        matrix = self.stored.reshape(-1, self.how.columns)
        if 1 in matrix.shape:  # a mask would be its flags, not better coded
            return None
        rows: NDArray[np.bool_] = np.asarray(matrix.any(axis=1))
        across: NDArray[np.bool_] = np.asarray(matrix.any(axis=0))
        return None if (rows.all() and across.all()) or not rows.any() else Masks(self.how.columns, rows, across)

    def plans(self, mask: Masks | None) -> Plans:
        """The bitmap and the gaps of what `mask` leaves, `masks` or None, each with its bytes."""
        return self._plans if mask is None else self._masked_plans

    @cached_property
    def places(self) -> Piece:
        """The bitmap or the gaps of all chunks, whichever are smaller."""
        parts = cut(self.stored, heads.CHUNK)
        made = [
            Piece(mapped(places.write, parts, self.how.threads), places.kind, middle=places.header())
            for _, places in self._plans
        ]
        return min(made, key=lambda piece: piece.size)

    @cached_property
    def _plans(self) -> Plans:
        return positions.plans(cut(self.stored, heads.CHUNK), self.how)

    @cached_property
    def _masked_plans(self) -> Plans:
        assert self.masks is not None
        return positions.plans(cut(self.masks.of(self.stored), heads.CHUNK), self.how)

    def predicted(self, mask: Masks | None) -> list[Model]:
        """What predicts flags in arithmetic code, of what `mask` leaves, `masks` or None: in rows worth a try."""
        return self._predicted if mask is None else self._masked_predicted

    @cached_property
    def _predicted(self) -> list[Model]:
        begun = self.stored[: max(self.how.columns, SAMPLE)].astype(np.uint8)
        return _fitted(begun, _views(begun, self.how.shape, self.how.columns))

    @cached_property
    def _masked_predicted(self) -> list[Model]:
        assert self.masks is not None
        return _fitted(self.masks.of(self.stored).astype(np.uint8), [int(self.masks.columns_kept.sum())])

    @cached_property
    def tiled(self) -> list[Tiled]:
        """The positions by the tiles that zeros may lie in."""
        found = tiling.find(self.stored, self.how)
        return [Tiled(tiles, *tiling.positions_of(tiles.arranged(self.stored), tiles, self.how)) for tiles in found]


def _fitted(flags: NDArray[np.uint8], views: list[int]) -> list[Model]:
    return [fitted(flags, Model(view, 1, True)) for view in views if view <= arithmetic.MOST_COLUMNS]


def _views(begun: NDArray[np.uint8], shape: tuple[int, ...], columns: int) -> list[int]:
    """Columns worth a try: an output channel a row; and the best part of one, e.g. a row of the pixels that it sees."""

    def size(view: int) -> float:
        sample = first_rows(begun, view, _VIEWED)
        return trial(sample, Model(view, 1, True, 0x66, 2)) / len(sample)

    best = min(_narrower(shape, columns), key=size, default=columns)
    if columns > SAMPLE:
        return [best]
    return [columns] if best == columns or size(columns) <= size(best) else [columns, best]


def _narrower(shape: tuple[int, ...], columns: int) -> list[int]:
    """Parts of a row: of a convolution, what lies behind each axis; of a matrix and small ones, whatever divides it."""
    if len(shape) > 2 and math.prod(shape) > FEW:
        parts = {math.prod(shape[axis:]) for axis in range(2, len(shape))}
    else:
        small = [part for part in range(2, math.isqrt(columns) + 1) if columns % part == 0]
        parts = {part for one in small for part in (one, columns // one)}
    return sorted(part for part in parts if 4 <= part <= _VIEWED and part < columns)
