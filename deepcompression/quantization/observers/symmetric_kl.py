"""The divergence of the rounded histogram and of the one that is cut off from each other (Jeffreys)."""

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
    """KL(P || Q) + KL(Q || P), the sum of (P - Q) ln(P / Q), in nats, (grids,); bins without values are in neither."""
    pair = distributions(seen, some)
    cut, rounded = (torch.where(pair.rounded > 0, one, 1.0) for one in pair)
    return finite(((cut - rounded) * (cut / rounded).log()).sum(1), pair)
