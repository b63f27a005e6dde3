"""Values of a stream as a histogram of constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

BINS = 4096  # on either side of zero
PART = 1 << 18  # values that are counted at a time: what is made of them stays in a cache
KEPT = 0.9  # of a moving average, when one more sample comes


def _empty() -> Tensor:
    return torch.zeros(2 * BINS + 1, dtype=torch.int64)


@dataclass
class Histogram:
    """How many values came by, by bins of one width on both sides of zero; exact zeros are apart, in the middle.

    Bin i of one side has the magnitudes above (i - 1) ``width`` and up to i ``width``. The width is a power of two and
    doubles, pairs of bins becoming one, when a value would not be in range: what comes out depends neither on the order
    of the values nor on how they are cut into batches. ``least``, ``most`` are exact; ``average`` holds the moving
    averages of the least and the greatest value of a sample, that is, of an index of the first dimension.
    """

    counts: Tensor = field(default_factory=_empty)  # (2 * BINS + 1,) int64, ascending
    width: float = 0.0
    least: float = math.inf
    most: float = -math.inf
    number: int = 0
    average: tuple[float, float] | None = None

    def add(self, value: Tensor) -> None:
        """Counts the values of one more batch, floats of any shape and device.

        Raises:
            ValueError: one is not finite.
        """
        if not value.numel():
            return
        flat = value.detach().to(torch.promote_types(value.dtype, torch.float32))
        flat = flat.reshape(len(value) if value.ndim else 1, -1)
        lows, highs = flat.amin(1), flat.amax(1)
        least, most = float(lows.amin()), float(highs.amax())
        if not (math.isfinite(least) and math.isfinite(most)):
            raise ValueError("not finite")
        self._follow(lows, highs)
        self.least, self.most = min(self.least, least), max(self.most, most)
        self.number += flat.numel()
        self._widen(max(most, -least))
        for part in torch.split(flat.reshape(-1), PART):
            self._count(part, signed=least < 0)

    @property
    def zeros(self) -> int:
        """How many values were zero."""
        return int(self.counts[BINS])

    @property
    def signed(self) -> bool:
        """Whether a value was below zero."""
        return self.least < 0

    def edges(self) -> Tensor:
        """The edges of the bins without the zeros, (2 * BINS + 1,) float64, zero in the middle."""
        return torch.arange(-BINS, BINS + 1, dtype=torch.float64) * self.width

    def used(self, fewer: int = 1) -> tuple[Tensor, Tensor]:
        """The edges of the bins from zero to the outermost with a value on either side, (n + 1,), and what they have
        without the zeros, (n,): float64.

        Args:
            fewer: so many bins become one, a divisor of ``BINS``.
        """
        mass = torch.cat([self.counts[:BINS], self.counts[BINS + 1 :]]).view(-1, fewer).sum(1).double()
        middle, held = BINS // fewer, mass.nonzero().flatten()
        first, last = min(int(held[0]), middle), max(int(held[-1]) + 1, middle)
        return self.edges()[::fewer][first : last + 1], mass[first:last]

    def filled(self, fewer: int = 2) -> tuple[Tensor, Tensor]:
        """The middles of the bins that have values other than zero, ascending, and how many they have: float64."""
        edges, mass = self.used(fewer)
        return ((edges[1:] + edges[:-1]) / 2)[mass > 0], mass[mass > 0]

    def sides(self, fewer: int = 1) -> tuple[Tensor, Tensor]:
        """How many values have a magnitude of each bin, of those below and those above zero: float64, both."""
        below, above = self.counts[:BINS].flip(0), self.counts[BINS + 1 :]
        return below.view(-1, fewer).sum(1).double(), above.view(-1, fewer).sum(1).double()

    def _follow(self, lows: Tensor, highs: Tensor) -> None:
        """Moves the averages by the samples of a batch, one after the other."""
        ages = torch.arange(len(lows) - 1, -1, -1, dtype=torch.float64)
        weights, kept = (1 - KEPT) * KEPT**ages, KEPT ** len(lows)
        if self.average is None:
            weights[0], kept = KEPT ** (len(lows) - 1), 0.0
        old = self.average or (0.0, 0.0)
        new = [float(weights @ one.to("cpu", torch.float64)) for one in (lows, highs)]
        self.average = (kept * old[0] + new[0], kept * old[1] + new[1])

    def _widen(self, largest: float) -> None:
        """Doubles the width until the largest magnitude is in range."""
        if not largest:
            return
        if not self.width:
            self.width = math.ldexp(1.0, math.frexp(largest)[1]) / BINS
        while largest > self.width * BINS:
            below, zeros, above = torch.split(self.counts, [BINS, 1, BINS])
            half = torch.zeros(BINS // 2, dtype=torch.int64)
            self.counts = torch.cat([half, below.view(-1, 2).sum(1), zeros, above.view(-1, 2).sum(1), half])
            self.width *= 2

    def _count(self, part: Tensor, signed: bool) -> None:
        if not self.width:
            self.counts[BINS] += part.numel()
            return
        exact = part if 2.0**-100 < self.width < 2.0**100 else part.double()
        places, start = exact / self.width, 0 if signed else BINS
        places = torch.sign(places).mul_(places.abs_().ceil_()) if signed else places.ceil_()
        places = places.to(torch.int32).add_(BINS - start)
        self.counts[start:] += torch.bincount(places, minlength=2 * BINS + 1 - start).cpu()
