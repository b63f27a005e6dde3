"""The divergence of the rounded histogram and of the one that is cut off from their mean (Jensen and Shannon)."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcompression.quantization.observers.histogram import Histogram
from deepcompression.quantization.observers.ranges import Grids, Wanted
from deepcompression.quantization.observers.search import best, distributions, finite


def bounds(seen: Histogram, wanted: Wanted) -> tuple[float, float]:
    """The range of the least divergence."""
    return best(seen, wanted, score)


def score(seen: Histogram, some: Grids) -> Tensor:
    """KL(P || M) / 2 + KL(Q || M) / 2 with M = (P + Q) / 2, in nats, at most ln 2, (grids,)."""
    pair = distributions(seen, some)
    cut, rounded = pair
    middle = torch.where(cut + rounded > 0, (cut + rounded) / 2, 1.0)
    of_both = torch.xlogy(cut, cut) + torch.xlogy(rounded, rounded) - torch.xlogy(cut + rounded, middle)
    return finite(of_both.sum(1) / 2, pair)
