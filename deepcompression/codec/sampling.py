"""What codes of groups would take, told by a few groups of each kind: spares trying most of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec.book import Groups

_LOOKED, _FULLEST = 8, 4  # groups looked at, and those of them, with the fewest zeros, that tell
_LENGTH = 1024  # elements of each


class Runs(NamedTuple):
    """What occurs in some groups, zeros left out: of each distinct element of each group (r,) the element, how often it
    occurs, its group and its place among the distinct ones of that."""

    elements: NDArray[Any]
    counts: NDArray[np.int64]
    groups: NDArray[np.int64]
    places: NDArray[np.int64]

    @property
    def most(self) -> int:
        """Distinct elements of a group, at most."""
        return int(self.places.max(initial=-1)) + 1

    @property
    def distinct(self) -> int:
        """Distinct elements of all groups."""
        return len(np.unique(self.elements))

    @property
    def stored(self) -> int:
        """Elements in all."""
        return int(self.counts.sum())

    def alone(self) -> float:
        """Bits of an element by a code for each group, as if all of it were known."""
        own = np.bincount(self.groups, self.counts)
        # Few samples of many elements seem more alike than they are (Miller, Madow).
        chance = np.count_nonzero(self.places) / 2 / np.log(2)
        return float(_information(own) - _information(self.counts) + chance) / max(1, self.stored)

    def together(self) -> float:
        """Bits of an element by one code for all groups, of places."""
        alike = np.bincount(self.places, self.counts)
        chance = (len(alike) - 1) / 2 / np.log(2)
        return float(_information(np.array([self.stored])) - _information(alike) + chance) / max(1, self.stored)


def _information(counts: NDArray[Any]) -> float:
    """Sum of n log2 n."""
    used = counts[counts > 0].astype(np.float64)
    return float(used @ np.log2(used))


@dataclass(frozen=True, eq=False)
class Samples:
    """A tensor's elements, or symbols for them (n,), 0 for +0.0: what occurs in a few groups of any kind.

    bits: of an element where all are one group; or (k + 1,) of each symbol.
    """

    flat: NDArray[Any]
    bits: NDArray[np.float64]
    _known: dict[Groups, Runs] = field(default_factory=dict, init=False, repr=False)

    def runs(self, groups: Groups) -> Runs:
        """Of a few groups, of those with few zeros; evenly spaced elements of each."""
        if groups not in self._known:
            self._known[groups] = _runs(_sample(self.flat, groups))
        return self._known[groups]

    def tell(self, groups: Groups) -> bool:
        """Whether they have enough of each group to tell how many distinct elements it has."""
        runs = self.runs(groups)
        each = runs.stored / max(1, len(np.unique(runs.groups)))
        return (2 if groups.size <= _LENGTH else 3) * runs.most <= each

    def whole(self, groups: Groups) -> float:
        """Bits that an element of the same groups takes where all are one."""
        runs = self.runs(groups)
        if self.bits.ndim == 0:
            return float(self.bits)
        return float(self.bits[runs.elements] @ runs.counts) / max(1, runs.stored)


def _runs(sample: NDArray[Any]) -> Runs:
    ordered = np.sort(sample, axis=1, kind="stable" if sample.itemsize < 4 else None)  # numpy's radix sort
    ordered = ordered[np.argsort(-np.count_nonzero(ordered, axis=1), kind="stable")[:_FULLEST]]
    new = np.ones(ordered.shape, np.bool_)
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=new[:, 1:])
    starts = np.flatnonzero(new)
    elements = ordered.reshape(-1)[starts]
    counts = np.diff(starts, append=ordered.size)
    kept = np.flatnonzero(elements)
    group = starts[kept] // ordered.shape[1]
    return Runs(elements[kept], counts[kept], group, np.arange(len(kept)) - np.searchsorted(group, group))


def _sample(flat: NDArray[Any], groups: Groups) -> NDArray[Any]:
    count = groups.count(flat.size)
    looked = min(_LOOKED, count)
    span, channel = np.divmod(np.arange(looked) * count // looked, groups.channels)
    firsts = (span * groups.rounds * groups.channels + channel) * groups.run
    # An odd step: it meets all columns of rows of an even length.
    step = 1 if groups.size <= _LENGTH else groups.size // _LENGTH | 1
    rounds, place = np.divmod(np.arange(0, groups.size, step), groups.run)
    sampled: NDArray[Any] = flat[firsts[:, None] + rounds * groups.channels * groups.run + place]
    return sampled
