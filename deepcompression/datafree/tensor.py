"""One tensor, pruned and shared as its treatment says: the elements that come out, and what they lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec.dtypes import Bits, RawTensor, to_array, unsigned
from deepcompression.datafree.points import points_of
from deepcompression.datafree.treatment import Treatment
from deepcompression.sharing.kmeans import limits_of, means_of
from deepcompression.sharing.kmeans_groups import kmeans_groups
from deepcompression.sharing.points import Floats, Points
from deepcompression.structure.counted import (
    SLICE,
    Counted,
    ascending_patterns,
    least_pattern,
    narrowed,
    nearest_borders,
    patterns,
    values_of,
)
from deepcompression.structure.cut import Cut, cut_at, gone, seen_before

Floats32 = NDArray[np.float32]
_PIECE = 1 << 14  # elements whose squares are summed in float32


@dataclass(frozen=True)
class Loss:
    """What a tensor lost: sum of squared differences, beside the sum of its own squares; and its non-zero weights."""

    squared_error: float
    energy: float
    nonzero: int


def treated(raw: RawTensor, treatment: Treatment, found: Counted, threads: int = 1) -> tuple[RawTensor, Loss]:
    """The tensor pruned by magnitude, then shared by k-means; of `raw` nothing is changed.

    Zeros stay +0.0, no weight that stays becomes zero, and the type is kept: centroids are rounded to it.

    Args:
        raw: of a type in `counted.KINDS`, finite.
        treatment: not lossless.
        found: the elements of `raw`, counted.
        threads: at most so many; the outcome does not depend on it.
    """
    flat = narrowed(raw)
    kind = "float32" if raw.dtype == "float64" else raw.dtype
    cut = cut_at(flat, found, treatment.density, threads)
    size = treatment.per.size(raw.bits.shape)
    parted = treatment.bits is not None and 0 < size < flat.size
    if treatment.step is None and (treatment.bits is None or parted):
        made = _by_slices(flat, lambda part: part.copy(), cut, threads)
    else:
        made = _by_slices(flat, _levels(found, cut, treatment, kind).taker(), cut, threads)
    if treatment.bits is not None and parted:
        _share_groups(made, kind, size, 2**treatment.bits)
    loss = _loss(flat, made, kind, threads)
    if raw.dtype == "float64":
        made = _widened(flat, made, raw)
    return RawTensor(made.reshape(raw.bits.shape), raw.dtype), loss


def _by_slices(flat: Bits, take: Callable[[Bits], Bits], cut: Cut | None, threads: int) -> Bits:
    """What `take` makes of each slice of `flat` (n,), with +0.0 for what goes."""
    made, pieces = np.empty_like(flat), range(0, flat.size, SLICE)
    seen = seen_before(flat, cut, threads) if cut else [0] * len(pieces)

    def fill(number: int) -> None:
        part = flat[pieces[number] : pieces[number] + SLICE]
        taken = take(part)
        if cut is not None:
            taken[gone(part, cut, seen[number])] = 0
        made[pieces[number] : pieces[number] + SLICE] = taken

    mapped(fill, range(len(pieces)), threads)
    return made


@dataclass(frozen=True, eq=False)
class _Levels:
    """Values (g,) of type `kind`, ascending, and the greatest float32 (g,) that takes each."""

    values: Floats32
    limits: Floats32
    kind: str

    @property
    def bits(self) -> Bits:
        """Of the values; zeros +0.0."""
        return np.where(self.values == 0, 0, bits_of(self.values, self.kind)).astype(unsigned(self.kind))

    def table(self) -> Bits:
        """What each pattern of a type of 8 or 16 bits becomes; zeros +0.0."""
        every = np.nan_to_num(values_of(self.kind))
        return np.where(every == 0, unsigned(self.kind).type(0), self.bits[np.searchsorted(self.limits[:-1], every)])

    def taker(self) -> Callable[[Bits], Bits]:
        """Gives elements their values; zeros +0.0."""
        bits = self.bits
        if bits.itemsize <= 2:
            table = self.table()
            return lambda part: table[part]
        low, high = _bin_ends()
        first = np.searchsorted(self.limits[:-1], low).astype(np.uint16)
        # What is left to compare are the limits within a pattern's own bin.
        steps = int((np.searchsorted(self.limits[:-1], high) - first).max())

        def take(part: Bits) -> Bits:
            codes, elements = first[patterns(part)], part.view(np.float32)
            for _ in range(steps):
                codes += elements > self.limits[codes]
            return np.where(elements == 0, np.uint32(0), bits[codes])

        return take


def _levels(found: Counted, cut: Cut | None, treatment: Treatment, kind: str) -> _Levels:
    """The best values of what stays, or the means of what is nearest to each multiple of a step."""
    points = points_of(found, cut.stays if cut else None)
    if not points.keys.size:
        return _Levels(np.zeros(1, np.float32), np.full(1, np.inf, np.float32), kind)
    if treatment.bits is not None:
        values = _rounded(means_of(points, 2**treatment.bits), points, kind)
        return _Levels(values, limits_of(values), kind)
    assert treatment.step is not None
    places, means, _ = stepped(points, treatment.step)
    borders = ((places[1:] + places[:-1]) / 2 * treatment.step).astype(np.float32)
    rounded = to_array(bits_of(means.astype(np.float32), kind), kind).astype(np.float32)
    return _Levels(rounded, np.append(borders, np.float32(np.inf)), kind)


def stepped(points: Points, step: float) -> tuple[Floats, Floats, Floats]:
    """Which multiples of `step` are nearest to some point (g,), ascending, the means of these, and their counts.

    Args:
        points: values and how often they occur.
        step: above 0.
    """
    nearest = np.rint(points.keys / step)
    first = np.flatnonzero(np.diff(nearest, prepend=-np.inf))
    counts = np.add.reduceat(points.counts, first)
    means = np.where(nearest[first] == 0, 0.0, np.add.reduceat(points.sums, first) / counts)
    return nearest[first], means, counts


def _bin_ends() -> tuple[Floats, Floats]:
    """The least and the greatest float32 of each pattern, (65536,); 0 for those that are not finite."""
    every = np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)
    ends = np.stack([every.view(np.float32), (every | np.uint32(0xFFFF)).view(np.float32)])
    ends = np.where(np.isfinite(ends).all(axis=0), ends, np.float32(0)).astype(np.float64)
    return ends.min(axis=0), ends.max(axis=0)


def _rounded(means: Floats, points: Points, kind: str) -> Floats32:
    """The values of type `kind` nearest to the means, distinct, ascending.

    One that is zero would prune its weights: it takes the value of the smallest instead.
    """
    values = to_array(bits_of(means.astype(np.float32), kind), kind).astype(np.float32)
    if (values == 0).any():
        values[values == 0] = points.keys[np.argmin(np.abs(points.keys))]
    return np.unique(values)


def bits_of(values: Floats32, kind: str) -> Bits:
    """The bits of the values of type `kind` nearest to `values` (m,), of equally near ones the lower."""
    if kind == "float32":
        return values.view(np.uint32)
    return ascending_patterns(kind)[np.searchsorted(nearest_borders(kind), values.astype(np.float64))]


def _share_groups(flat: Bits, kind: str, size: int, k: int) -> None:
    """Gives each `size` consecutive elements of `flat` (n,) a codebook of their own, zeros left out, in place."""
    for at in range(0, flat.size, max(SLICE // size, 1) * size):
        part = flat[at : at + max(SLICE // size, 1) * size]
        wide = _float32(part, kind)
        rows = [wide[start : start + size] for start in range(0, len(wide), size)]
        sets = [row[row != 0] for row in rows]
        books = kmeans_groups([one for one in sets if len(one)], k, init="density")
        drawn = [_rounded_alone(book.centroids, kind)[book.codes] for book in books]
        if drawn:
            part[wide != 0] = np.concatenate(drawn)
        part[wide == 0] = 0


def _rounded_alone(centroids: Floats32, kind: str) -> Bits:
    """As `_bits_of`, but that none becomes zero."""
    bits = bits_of(centroids, kind)
    return bits if kind == "float32" else np.where(values_of(kind)[bits] == 0, least_pattern(kind), bits)


def _loss(flat: Bits, made: Bits, kind: str, threads: int) -> Loss:
    """The loss, summed in float32 piece by piece."""

    def of(at: int) -> Floats:
        total = np.zeros(3)
        for start in range(at, min(at + SLICE, flat.size), _PIECE):
            before, after = (_float32(one[start : start + _PIECE], kind) for one in (flat, made))
            gap = after - before
            total += gap @ gap, before @ before, np.count_nonzero(after)
        return total

    total = np.sum(mapped(of, range(0, flat.size, SLICE), threads), axis=0)
    return Loss(float(total[0]), float(total[1]), int(total[2]))


def _float32(part: Bits, kind: str) -> Floats32:
    return to_array(part, kind).astype(np.float32, copy=False)


def _widened(flat: Bits, made: Bits, raw: RawTensor) -> Bits:
    """float32 as float64; what kept its float32 value keeps its float64 value."""
    wide = made.view(np.float32).astype(np.float64).view(np.uint64)
    return np.where(made == flat, np.ascontiguousarray(raw.bits).reshape(-1), wide)
