"""In which forms a weight can be multiplied by, the likeliest first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec import grids
from deepcompression.runtime.binary import BinaryConv, BinaryLinear, Signs, signs_of
from deepcompression.runtime.entries import MOST_CODES, Entries, book_of, entries_of, pieces
from deepcompression.runtime.full import Full, Packed, of_codes, of_integers
from deepcompression.runtime.geometry import Convolution
from deepcompression.runtime.sparse import Sparse
from deepcompression.runtime.workers import Workers

Floats = NDArray[np.float32]
SPARSE = 0.5  # density above which columns cost more than zeros; not where each code is used at many places
FULL = 0.2  # above which zeros may cost less than columns


class Form(Protocol):
    """A layer's multiplication: of contiguous float32 inputs (n, inputs), or (n, channels, height, width)."""

    @property
    def nbytes(self) -> int:
        """Of what it keeps of the weight."""

    def __call__(self, x: Floats) -> Floats:
        """The outputs."""


class Way(Protocol):
    """A weight (rows, columns), held in fewer bytes."""

    @property
    def name(self) -> str:
        """In words."""

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

    def form(self, bias: Floats, layer: Convolution | None, workers: Workers) -> Form:
        """The layer's multiplication by it."""
        return Sparse(self.entries, bias, layer, workers)


@dataclass(frozen=True)
class OfPacked:
    """By all, in few bits each; of a Linear."""

    packed: Packed

    @property
    def name(self) -> str:
        """In words."""
        return self.packed.name

    def form(self, bias: Floats, layer: Convolution | None, workers: Workers) -> Form:
        """The layer's multiplication by it."""
        return Full(self.packed, bias, workers)


@dataclass(frozen=True)
class OfSigns:
    """By signs."""

    signs: Signs
    name: str = "signs"

    def form(self, bias: Floats, layer: Convolution | None, workers: Workers) -> Form:
        """The layer's multiplication by it."""
        return BinaryConv(self.signs, bias, layer) if layer else BinaryLinear(self.signs, bias, workers)


@dataclass(frozen=True)
class Values:
    """Weight (rows, columns) = ``numbers`` x ``scale`` (rows, 1), of few values: ``book``, without 0 (None: many)."""

    numbers: Floats
    scale: Floats
    book: Floats | None
    integers: bool


def ways_of(weight: Floats, layer: Convolution | None) -> list[Way] | str:
    """Forms in which a weight can be held, or why there is none.

    Args:
        weight: (outputs, inputs).
        layer: the convolution that it is of; None: a Linear.
    """
    if not all(np.isfinite(piece).all() for piece in pieces(weight)):
        return "has weights that are not finite"
    signs = signs_of(weight, layer) if layer is None or layer.groups == 1 else None
    if signs is not None:
        return [OfSigns(signs)]
    density = sum(np.count_nonzero(piece) for piece in pieces(weight)) / weight.size
    values = _values(weight)
    found: list[Way] = []
    if density <= SPARSE or (layer is not None and values.book is not None):
        found.append(OfEntries(entries_of(values.numbers, values.scale, values.book, layer is not None)))
    if density > FULL and layer is None:
        found += _full(values, density < 1)
    return found or f"{density:.0%} of its weights are not zero, of more than {MOST_CODES} values"


def _full(values: Values, zeros: bool) -> list[Way]:
    """Forms that keep the zeros too, if there are any."""
    if values.book is None:
        return []
    book = np.union1d(values.book, np.zeros(1, np.float32)).astype(np.float32) if zeros else values.book
    if values.integers and len(book) > 16 and book[0] >= -128 and book[-1] <= 127:
        return [OfPacked(of_integers(values.numbers, values.scale))]
    return [OfPacked(of_codes(values.numbers, book, values.scale))] if len(book) <= MOST_CODES else []


def _values(weight: Floats) -> Values:
    ones = np.ones(len(weight), np.float32)
    book = book_of(weight)
    if book is not None and len(book) <= 16:
        return Values(weight, ones, book, False)
    integers = _integers(weight if book is None else book[None])
    if integers is None:
        return Values(weight, ones, book, False)
    scale, numbers = integers
    if book is None:
        few = book_of(numbers)
        return Values(weight, ones, None, False) if few is None else Values(numbers, scale, few, True)
    places = np.searchsorted(book, weight)
    whole = np.where(weight == 0, np.float32(0), numbers[0][np.minimum(places, len(book) - 1)])
    return Values(whole, np.full(len(weight), scale[0], np.float32), np.unique(numbers[0]), True)


def _integers(values: Floats) -> tuple[Floats, Floats] | None:
    """A scale of each row and small integers that give ``values``; None where there are none."""
    found = grids.recognise((values + np.float32(0)).view(np.uint32), "float32")  # -0.0 is on no grid
    if found is None or int(np.abs(found[1]).max()) > MOST_CODES // 2:
        return None
    return found[0].astype(np.float32), found[1].astype(np.float32)
