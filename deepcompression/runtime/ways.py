"""In which forms a weight can be multiplied by, the likeliest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec import grids
from deepcompression.runtime.entries import MOST_CODES, Entries, book_of, entries_of, pieces
from deepcompression.runtime.geometry import Convolution
from deepcompression.runtime.sparse import Sparse
from deepcompression.runtime.workers import Workers

Floats = NDArray[np.float32]
SPARSE = 0.5  # density above which columns cost more than zeros


class Form(Protocol):
    """A layer's multiplication: of contiguous float32 inputs (n, inputs), or (n, channels, height, width)."""

    @property
    def nbytes(self) -> int:
        """Of what it keeps of the weight."""

    def __call__(self, x: Floats) -> Floats:
        """The outputs."""


class Way(Protocol):
    """A weight (rows, columns), held in fewer bytes: the same values, but for the sign of zeros."""

    @property
    def name(self) -> str:
        """In words."""

    def dense(self) -> Floats:
        """The weight."""

    def form(self, bias: Floats, layer: Convolution | None, workers: Workers) -> Form:
        """The layer's multiplication by it.

        Args:
            bias: (outputs,).
            layer: the convolution, or None.
            workers: who do it.
        """


@dataclass(frozen=True)
class OfEntries:
    """By the entries that are not zero."""

    entries: Entries

    @property
    def name(self) -> str:
        """In words."""
        return "columns and floats" if self.entries.own else f"columns and codes of {16 - self.entries.low} bits"

    def dense(self) -> Floats:
        """The weight."""
        return self.entries.dense()

    def form(self, bias: Floats, layer: Convolution | None, workers: Workers) -> Form:
        """The layer's multiplication by it.

        Args:
            bias: (outputs,).
            layer: the convolution, or None.
            workers: who do it.
        """
        return Sparse(self.entries, bias, layer, workers)


def ways_of(weight: Floats, convolution: bool) -> list[Way] | str:
    """Forms in which a weight can be held, or why there is none.

    Args:
        weight: (outputs, inputs).
        convolution: whether it is one's.
    """
    if not all(np.isfinite(piece).all() for piece in pieces(weight)):
        return "has weights that are not finite"
    density = sum(np.count_nonzero(piece) for piece in pieces(weight)) / weight.size
    values = _values(weight)
    if density > SPARSE:
        return f"{density:.0%} of its weights are not zero"
    integers, scale, book = values
    return [OfEntries(entries_of(integers, scale, book, convolution))]


def _values(weight: Floats) -> tuple[Floats, Floats, Floats | None]:
    """Numbers, a scale of each row, and the few values that the numbers take (None: they are many)."""
    ones = np.ones(len(weight), np.float32)
    book = book_of(weight)
    if book is not None:
        return weight, ones, book
    found = grids.recognise((weight + np.float32(0)).view(np.uint32), "float32")  # -0.0 is on no grid
    if found is None or int(np.abs(found[1]).max()) > MOST_CODES // 2:
        return weight, ones, None
    numbers = found[1].astype(np.float32)
    book = book_of(numbers)
    return (weight, ones, None) if book is None else (numbers, found[0].astype(np.float32), book)
