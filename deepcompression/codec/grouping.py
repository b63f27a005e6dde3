"""Groups of a tensor's elements that may be on a grid each: channels of an axis, or parts of them of any size.

Wherever a group is on a grid, so are its parts. All that is looked at is the beginnings of a few channels: where the
shortest are on no grid, no group is; else the scale that longer ones have tells what they are worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec import grids
from deepcompression.codec.book import Groups
from deepcompression.codec.dtypes import Bits

_FEWEST = 8  # elements of a group on a grid of its own
FEWEST_LAID = 2048  # elements of a vector that is worth a look: biases are none
_COUNTED = 1 << 16  # elements by which zeros are counted
SCALE_BITS = 32
_FEWER = 0.75  # of the distinct elements of several groups, that their distinct integers are at most
_TRIED, _TRIED_LENGTH = 4, 1024  # groups of a channel that are looked at first, and elements of each
_LOOKED, _FULLEST = 64, 8  # channels looked at, and those of them, with the fewest zeros, that are tried


class Spared(NamedTuple):
    """Bits of a stored element that groups on a grid each may spare: at most; and, if that is known, by groups."""

    most: float
    by: Callable[[Groups], float] | None = None

    def repays(self, groups: Groups, stored: float) -> bool:
        """Whether that may be more than their scales, where a share `stored` is not zero."""
        worth = groups.size * stored
        return worth * self.most >= SCALE_BITS and (self.by is None or worth * self.by(groups) > SCALE_BITS)


class Candidate(NamedTuple):
    """Groups that may be on a grid each: what codes and scales cost, in bits an element, but for what all have alike;
    and the median scale of a few of them."""

    cost: float
    groups: Groups
    scale: float


def candidates(flat: Bits, shape: tuple[int, ...], dtype: str, spared: Spared) -> list[Candidate]:
    """Groups of which a few are on a grid each, the cheapest first.

    Args:
        flat: (n,) elements.
        shape: of the tensor.
        dtype: of `grids.LIMITS`.
        spared: what they may be worth.
    """
    if len(shape) < 2 and flat.size < FEWEST_LAID:
        return []
    sample = without_negative(flat[:: flat.size // _COUNTED + 1])[0]
    stored = np.count_nonzero(sample) / sample.size
    found: dict[Groups, Candidate] = {}
    for channel in channels(shape):
        sizes = [part for part in parts(channel) if part.size >= _FEWEST and spared.repays(part, stored)]
        if sizes:
            for candidate in _of_channel(
                _fullest(flat, channel, sizes[-1].size), sizes, stored, dtype, spared.by is not None
            ):
                if candidate.groups.size < flat.size:
                    found.setdefault(candidate.groups, candidate)
    return sorted(found.values(), key=lambda candidate: (candidate.cost, -candidate.groups.size))


def _of_channel(begun: Bits, parts: list[Groups], stored: float, dtype: str, shared: bool) -> Iterator[Candidate]:
    """Those of `parts`, the largest first, that the beginnings `begun` (g, e) of channels may be; where their
    values are `shared`, those that have fewer integers."""
    shortest = begun[:, : parts[-1].size]
    if len(parts) > 1 and not (_likely(shortest[:2], dtype) and _likely(shortest, dtype)):
        return
    finest: float | None = None  # scale, of the shortest: other axes have channels of other scales
    torn: list[int] = []  # sizes of those on no grid, nor are groups that hold such
    for part in reversed(parts):
        if any(part.size % size == 0 for size in torn):
            continue
        some = begun[begun[:, : part.size].any(axis=1), : part.size]  # zeros are on any grid
        found = grids.recognise(some, dtype) if len(some) else None
        if len(some) and found is None:
            torn.append(part.size)
        if found is not None and grids.credible(found[1], dtype) and not (shared and _as_many(found[1], some)):
            scale = float(np.log2(found[0]).mean())
            finest = scale if finest is None else finest
            yield Candidate(SCALE_BITS / part.size + stored * (finest - scale), part, float(np.median(found[0])))


def _as_many(integers: NDArray[np.int32], elements: Bits) -> bool:
    """Whether groups on grids have hardly fewer integers than elements: short significands are on fine grids too."""
    return np.unique(integers).size > _FEWER * np.unique(elements).size


def _likely(rows: Bits, dtype: str) -> bool:
    """Whether `rows` (g, e) are on a grid each, and not by chance, which few short significands cannot tell."""
    found = grids.recognise(rows, dtype)
    return found is not None and (grids.SIGNIFICAND[dtype] < 24 or grids.credible(found[1], dtype))


def channels(shape: tuple[int, ...]) -> Iterator[Groups]:
    """The channels of the first, the second and the last axis, whole."""
    yield Groups(math.prod(shape[1:]) if len(shape) > 1 else math.prod(shape))
    for axis in sorted({1, len(shape) - 1}) if len(shape) > 1 else ():
        run, channels, rounds = math.prod(shape[axis + 1 :]), shape[axis], math.prod(shape[:axis])
        if channels > 1 and rounds > 1:
            yield Groups(run, channels, rounds)


def parts(channel: Groups) -> list[Groups]:
    """A channel, and the groups that divide it, the largest first: of elements that are one behind the other in it."""
    if channel.channels == 1:
        return [Groups(size) for size in divisors(channel.run)]
    return [Groups(channel.run, channel.channels, rounds) for rounds in divisors(channel.rounds) if rounds > 1]


def divisors(number: int) -> list[int]:
    """Those of a number, the largest first."""
    small = [one for one in range(1, math.isqrt(number) + 1) if number % one == 0]
    return sorted({*small, *(number // one for one in small)}, reverse=True)


def spread(flat: NDArray[Any], count: int, length: int) -> NDArray[Any]:
    """So many runs (count, length) of elements of `flat` (n,), evenly spaced; they are shorter where n is.

    Args:
        flat: (n,).
        count: of runs, at least 2.
        length: of each.
    """
    length = min(length, flat.size)
    begins = [at * (flat.size - length) // (count - 1) for at in range(count)]
    return np.concatenate([flat[at : at + length] for at in begins]).reshape(count, length)


def without_negative(bits: Bits) -> tuple[Bits, NDArray[np.bool_] | None]:
    """`bits` of floats with +0.0 for -0.0, and where that is, if anywhere."""
    zero = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    negative = bits == zero
    return (np.where(negative, bits.dtype.type(0), bits), negative) if negative.any() else (bits, None)


def _fullest(flat: Bits, channel: Groups, size: int) -> Bits:
    """The beginnings (g, e) of the channels with the fewest zeros, of any sign, among their first `size` elements."""
    begun = without_negative(beginnings(flat, channel, _LOOKED, max(size, _TRIED_LENGTH)))[0]
    counts = np.count_nonzero(begun[:, :size], axis=1), np.count_nonzero(begun, axis=1)
    chosen = np.lexsort((-counts[1], -counts[0]))[:_FULLEST]
    fullest: Bits = begun[chosen]
    return fullest


def beginnings(flat: NDArray[Any], groups: Groups, count: int = _TRIED, length: int = _TRIED_LENGTH) -> NDArray[Any]:
    """The first elements (g, e) of some groups, evenly spaced.

    Args:
        flat: (n,), of whole groups.
        groups: of it.
        count: of them, at most.
        length: of each, at most.
    """
    number = flat.size // groups.size
    span, channel = np.divmod(np.arange(min(count, number)) * number // min(count, number), groups.channels)
    firsts = (span * groups.rounds * groups.channels + channel) * groups.run
    rounds, place = np.divmod(np.arange(min(groups.size, length)), groups.run)
    begun: NDArray[Any] = flat[firsts[:, None] + rounds * groups.channels * groups.run + place]
    return begun
