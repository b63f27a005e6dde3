"""The divergence of the rounded histogram from the one that is cut off (Kullback and Leibler).

Migacz (2017), "8-bit inference with TensorRT", with cells as the quantizer has them (what becomes one integer); exact
zeros are left out, which would drown the rest.
"""

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
    """Sum of P ln(P / Q), in nats, (grids,): P is cut, Q rounded."""
    pair = distributions(seen, some)
    cut, rounded = pair
    return finite((torch.xlogy(cut, cut) - torch.xlogy(cut, torch.where(cut > 0, rounded, 1.0))).sum(1), pair)
