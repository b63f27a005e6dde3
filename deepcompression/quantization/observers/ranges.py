"""From ranges to grids, on which zero is an integer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from deepcompression.quantization.observers.histogram import Histogram

TINY = float(torch.finfo(torch.float32).tiny)  # the least scale


@dataclass(frozen=True)
class Wanted:
    """What an observer is asked for.

    ``bits``: of an integer; ``scheme``: symmetric or asymmetric; ``percentile``: of the observer of that name;
    ``steps``: into how many parts the ones that search cut each end of the range.
    """

    bits: int
    scheme: str
    percentile: float = 99.99
    steps: int = 16


class Grids(NamedTuple):
    """Scales (n,) float64 and zero points (n,) int64 of several ranges; ``low``, ``high``: the ends in scales, (n,)."""

    scale: Tensor
    zero_point: Tensor
    low: Tensor
    high: Tensor


def grids(low: Tensor, high: Tensor, wanted: Wanted, signed: bool) -> Grids:
    """The grids of ranges: where nothing is below zero integers from 0 on, for either scheme.

    An asymmetric range is widened at one end until zero is an integer (NNCF's rule): of the two ways the one that
    gives the wider range, so that no value of the range asked for is cut off.

    Args:
        low: (n,) float64, at most 0.
        high: (n,) at least 0.
        wanted: bits and scheme.
        signed: whether values are below zero.
    """
    steps = 2**wanted.bits - 1
    if signed and wanted.scheme == "symmetric":
        scale, below = torch.maximum(high, -low) / (steps // 2), torch.full_like(low, steps // 2 + 1)
        return Grids(_sound(scale), torch.zeros_like(below).long(), -below, steps - below)
    low, high, below = _with_zero(low, high, steps)
    return Grids(_sound((high - low) / steps), below.long(), -below, steps - below)


def _sound(scale: Tensor) -> Tensor:
    """Scales that float32 holds; 1 of a range that is 0 alone."""
    return torch.where(scale > 0, scale.clamp(min=TINY), 1.0)


def _with_zero(low: Tensor, high: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ranges that are no narrower, and the integers that are zero in them."""
    whole = torch.where(high > low, high - low, 1.0)
    zero = (-low * steps / whole).round()
    inner = (zero > 0) & (zero < steps)
    safe = torch.where(inner, zero, 1.0)
    higher, lower = low * (safe - steps) / safe, high * safe / (safe - steps)
    up = higher - low > high - lower
    return torch.where(inner & ~up, lower, low), torch.where(inner & up, higher, high), zero


def grid(low: float, high: float, wanted: Wanted, seen: Histogram) -> tuple[float, int]:
    """Scale, a value of float32, and zero point of one range.

    Args:
        low: at most 0.
        high: at least 0.
        wanted: bits and scheme.
        seen: tells whether values are below zero.
    """
    lows, highs = (torch.tensor([end], dtype=torch.float64) for end in (low, high))
    found = grids(lows, highs, wanted, seen.signed)
    return float(found.scale.float()), int(found.zero_point)
