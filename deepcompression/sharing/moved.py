"""The values of a tensor that are not zero, moved together within its own memory, and back to where they were."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec.dtypes import Bits, to_array

_PIECE = 1 << 16  # elements that are looked at together


@dataclass(frozen=True, eq=False)
class Moved:
    """Values (m,) of a tensor, as float32 wherever they are sliced, and what tells where they were.

    Attributes:
        flat: (n,) bits of the tensor's elements; its first m are those of the values.
        dtype: of the tensor.
        masks: for each `_PIECE` elements of the tensor the packed bits of where a value was.
        count: m.
    """

    flat: Bits
    dtype: str
    masks: list[NDArray[np.uint8]]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: Any) -> NDArray[np.float32]:
        return to_array(self.flat[: self.count][place], self.dtype).astype(np.float32, copy=False)

    def pieces(self) -> Iterator[NDArray[np.float32]]:
        """All values, some after others."""
        return (self[at : at + _PIECE] for at in range(0, self.count, _PIECE))

    def min(self) -> np.float32:
        """The least value."""
        return min(piece.min() for piece in self.pieces())

    def max(self) -> np.float32:
        """The greatest value."""
        return max(piece.max() for piece in self.pieces())

    def put_back(self, made_of: Callable[[NDArray[np.float32]], Bits]) -> None:
        """Puts what `made_of` makes of some values, a new array, where they were, and zeros elsewhere."""
        end = self.count
        for number in reversed(range(len(self.masks))):  # what is still to be read lies before what is written
            part = self.flat[number * _PIECE : (number + 1) * _PIECE]
            alive = np.unpackbits(self.masks[number], count=len(part)).view(bool)
            first = end - int(np.count_nonzero(alive))
            made = made_of(self[first:end])
            part[:] = 0
            part[alive] = made
            end = first


def moved_together(flat: Bits, dtype: str) -> Moved:
    """The values of `flat` (n,), bits of type `dtype`, that are not zero; `flat` is overwritten."""
    masks, at = [], 0
    for start in range(0, flat.size, _PIECE):
        part = flat[start : start + _PIECE]
        alive = to_array(part, dtype) != 0
        masks.append(np.packbits(alive))
        moved = part[alive]
        flat[at : at + len(moved)] = moved
        at += len(moved)
    return Moved(flat, dtype, masks, at)
