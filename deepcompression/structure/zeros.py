"""Zeros that stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deepcompression.errors import InvariantError
from deepcompression.network.parametrized import MASK, Holder
from deepcompression.network.state import is_zero


class ZeroMask(Holder):
    """Weights where ``mask``, +0.0 elsewhere; no gradient reaches what is masked."""

    order = MASK
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


@dataclass(frozen=True)
class Zeros:
    """What is +0.0 stays so."""

    order: ClassVar[int] = MASK

    def held(self, weight: Tensor) -> Holder:
        """A mask of the zeros that ``weight`` has."""
        return zero_mask(weight)

    def check(self, name: str, before: Tensor, after: Tensor) -> int:
        """How many weights became zero.

        Raises:
            InvariantError: a zero came alive, or everything became zero.
        """
        was, now = is_zero(before), is_zero(after)
        alive = int((was & ~now).sum())
        if alive:
            raise InvariantError(f"{name}: {alive} pruned weights are no longer zero")
        if bool(now.all()) and not bool(was.all()):
            raise InvariantError(f"{name}: every weight became zero")
        return int(now.sum() - was.sum())
