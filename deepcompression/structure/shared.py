"""Weights that share values: trained by their centroids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from deepcompression.errors import InvariantError
from deepcompression.network.parametrized import SOURCE, Holder
from deepcompression.network.state import bits_of


class SharedWeights(Holder):
    """``centroids[codes]`` at a weight's ``positions`` (flat), +0.0 everywhere else."""

    positions: Tensor
    codes: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        flat = weight.reshape(-1)
        positions = (flat != 0).nonzero().squeeze(1)  # (non-zeros,) int64
        codes = torch.unique(flat[positions], return_inverse=True)[1]
        self.shape = weight.shape
        self.register_buffer("positions", positions)
        self.register_buffer("codes", codes.int())

    def forward(self, centroids: Tensor) -> Tensor:
        """The weight, from its centroids (k,)."""
        spread = cast(Any, _Spread).apply  # autograd functions have no types
        return self.laid_out(spread(centroids, self.positions, self.codes, self.shape))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the distinct non-zero values (k,), ascending."""
        values: Tensor = torch.unique(weight[weight != 0])
        return values


class _Spread(torch.autograd.Function):
    """Centroids to their places. Backward sums in float64, in the order of the weights."""

    @staticmethod
    def forward(ctx: Any, centroids: Tensor, positions: Tensor, codes: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(positions, codes)
        ctx.count = len(centroids)
        flat: Tensor = centroids.new_zeros(shape.numel())
        flat.index_copy_(0, positions, centroids.index_select(0, codes))
        return flat.reshape(shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        positions, codes = ctx.saved_tensors
        each = gradient.reshape(-1).index_select(0, positions)
        exact = each.float() if each.device.type == "mps" else each.double()  # MPS has no float64
        summed = torch.bincount(codes, weights=exact, minlength=ctx.count)
        return summed.to(gradient.dtype), None, None, None


@dataclass(frozen=True)
class Shared:
    """Weights that are equal stay equal; so do zeros."""

    order: ClassVar[int] = SOURCE

    def held(self, weight: Tensor) -> Holder:
        """The weight by its codebook."""
        return SharedWeights(weight)

    def check(self, name: str, before: Tensor, after: Tensor) -> int:
        """How many groups of equal weights joined others; each must still be one value, but for weights now zero.

        Raises:
            InvariantError: a group has several values.
        """
        groups, index = torch.unique(bits_of(before).reshape(-1), return_inverse=True)
        now = bits_of(after).reshape(-1)
        stays = (now != 0) | (bits_of(before).reshape(-1) == 0)
        index, now = index[stays], now[stays]
        leader = now.new_zeros(len(groups))
        leader[index] = now
        if not torch.equal(leader[index], now):
            raise InvariantError(f"{name}: weights that shared a value no longer do")
        return len(groups) - len(torch.unique(leader))
