"""Which part of a batch each of several processes computes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch.utils.data import BatchSampler, Sampler

LEAST = 2  # samples in a part: BatchNorm cannot normalise one


@dataclass(frozen=True)
class Share:
    """The part of process ``rank`` of ``count``; what its augmentation draws comes from ``generator``."""

    rank: int
    count: int
    generator: torch.Generator = field(default_factory=torch.Generator)

    def of(self, total: int) -> slice:
        """Which samples of a batch of ``total``: parts as equal as can be, each of two at least.

        A process for which none are left computes the first ones too, with the weight 0, so that all take each step.
        """
        parts = self._parts(total)
        if self.rank >= parts:
            return slice(0, min(total, LEAST))
        size, rest = divmod(total, parts)
        start = self.rank * size + min(self.rank, rest)
        return slice(start, start + size + (self.rank < rest))

    def weight(self, total: int) -> float:
        """How much of a batch of ``total`` the part is: 0 to 1."""
        if self.rank >= self._parts(total):
            return 0.0
        part = self.of(total)
        return float(part.stop - part.start) / total

    def _parts(self, total: int) -> int:
        return max(1, min(self.count, total // LEAST))

    def begin(self, seed: int, epoch: int) -> None:
        """Before an epoch: draws that depend on nothing that was drawn before."""
        self.generator.manual_seed((seed * 1_000_003 + epoch) * 1_009 + self.rank)


class Shared(Sampler[list[int]]):
    """The indices of this process's part of each batch; others need not be fetched."""

    def __init__(self, batches: BatchSampler, share: Share) -> None:
        self.batches, self.share = batches, share

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch[self.share.of(len(batch))]
