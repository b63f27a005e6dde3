"""Zeros that stay."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcompression.network.parametrized import Holder


class ZeroMask(Holder):
    """Weights where ``mask``, +0.0 elsewhere; no gradient reaches what is masked."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (its own shape) with zeros."""
        return torch.where(self.mask, weight, 0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the weight itself."""
        return weight


def zero_mask(weight: Tensor) -> ZeroMask:
    """Holds the zeros that a weight has."""
    return ZeroMask(weight != 0)
