"""The magnitude at which a tensor has exactly so many weights left, found by counting: no sort, no copy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec.dtypes import Bits
from deepcompression.structure.counted import SLICE, Counted, patterns

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Cut:
    """Elements above a magnitude stay, and of those that have it the first `ties`.

    Attributes:
        magnitude: bits of an element, without its sign.
        ties: how many of that magnitude stay, the first ones in the tensor.
        equal: how many have it.
        stays: (patterns,) int64, how many elements of each pattern stay; of the pattern of `magnitude` as if they were
            spread evenly over it.
    """

    magnitude: int
    ties: int
    equal: int
    stays: NDArray[np.int64]


def cut_at(flat: Bits, found: Counted, density: float, threads: int = 1) -> Cut | None:
    """Where to cut so that max(1, round(density * n)) elements stay; None where no more than that are not zero.

    Args:
        flat: (n,) elements as `narrowed` gives them, finite.
        found: the same, counted.
        density: fraction of the elements that stays, in (0, 1].
        threads: at most so many; the cut does not depend on it.
    """
    stay = max(round(density * flat.size), 1)
    half = len(found.counts) // 2
    magnitudes = found.counts[:half] + found.counts[half:]
    magnitudes[0] -= found.zeros
    if stay >= int(magnitudes.sum()):
        return None
    above = np.append(np.cumsum(magnitudes[::-1])[::-1], 0)  # of this magnitude or a greater one
    pattern = int(np.flatnonzero(above >= stay)[-1])
    missing, inside = stay - int(above[pattern + 1]), int(magnitudes[pattern])
    magnitude, ties, equal = pattern, missing, inside
    if flat.itemsize > 2:
        low = _low_halves(flat, pattern, threads)
        least = np.append(np.cumsum(low[::-1])[::-1], 0)
        place = int(np.flatnonzero(least >= missing)[-1])
        magnitude, ties, equal = pattern << 16 | place, missing - int(least[place + 1]), int(low[place])
    return Cut(magnitude, ties, equal, _stays(found.counts, pattern, missing, inside))


def _low_halves(flat: Bits, pattern: int, threads: int) -> NDArray[np.int64]:
    """How often each lower half (65536,) occurs in elements whose pattern is this one, whatever their sign."""

    def of(at: int) -> NDArray[np.int64]:
        part = flat[at : at + SLICE]
        low = part[(patterns(part) & 0x7FFF) == pattern] & 0xFFFF
        return np.bincount(low, minlength=1 << 16).astype(np.int64, copy=False)

    total: NDArray[np.int64] = np.sum(mapped(of, range(0, flat.size, SLICE), threads), axis=0, dtype=np.int64)
    return total


def _stays(counts: NDArray[np.int64], pattern: int, missing: int, inside: int) -> NDArray[np.int64]:
    half = len(counts) // 2
    stays = counts.copy()
    stays[:pattern] = stays[half : half + pattern] = 0
    stays[pattern] = min(round(missing * int(counts[pattern]) / inside), missing)
    stays[half + pattern] = missing - stays[pattern]
    return stays


def gone(part: Bits, cut: Cut, seen: int) -> Flags:
    """Which of the elements `part` (m,) go.

    Args:
        part: (m,) elements that follow those before.
        cut: where to cut.
        seen: how many of its magnitude came before.
    """
    magnitudes = _magnitudes(part)
    out = magnitudes < part.dtype.type(cut.magnitude)
    if cut.ties < cut.equal:
        ties = np.flatnonzero(magnitudes == part.dtype.type(cut.magnitude))
        out[ties[max(cut.ties - seen, 0) :]] = True
    return out


def seen_before(flat: Bits, cut: Cut, threads: int) -> list[int]:
    """For each slice of `flat` how many elements of the cut's magnitude come before it; 0 where all stay.

    Args:
        flat: (n,) elements.
        cut: where to cut.
        threads: at most so many.
    """
    pieces = range(0, flat.size, SLICE)
    if cut.ties == cut.equal:
        return [0] * len(pieces)
    magnitude = flat.dtype.type(cut.magnitude)
    equal = mapped(lambda at: np.count_nonzero(_magnitudes(flat[at : at + SLICE]) == magnitude), pieces, threads)
    return [0, *np.cumsum(equal[:-1]).tolist()]


def _magnitudes(part: Bits) -> Bits:
    return part & part.dtype.type((1 << (8 * part.itemsize - 1)) - 1)
