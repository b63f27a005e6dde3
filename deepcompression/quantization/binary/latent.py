"""What all kinds of binary weights have in common: latent weights that are trained, and their few values."""

from __future__ import annotations

import math
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from deepcompression.network.parametrized import VALUES, Holder

LIMIT = 1.0  # latent weights stay within it


class Latent(Holder):
    """Few values in place of latent weights, which gradients reach; the weights themselves while it is not ``active``.

    Args:
        bits: of a value.
        axis: of the output filters; of use where scales are ``by_filter``.
        zeros: weights that are zero stay so, as where they are pruned; else 0 counts as positive.
    """

    order = VALUES
    by_filter: ClassVar[bool] = False  # whether each output filter has a scale

    def __init__(self, bits: int, axis: int, zeros: bool) -> None:
        super().__init__()
        self.bits, self.axis, self.zeros = bits, axis, zeros
        self.active = True

    @property
    def word(self) -> str:
        """What is true of such weights, as a word of structure."""
        raise NotImplementedError

    def values(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What latent weights stand for, without a gradient; and what has the gradient; both float32 or wider."""
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (its own shape) in its few values; none is -0.0."""
        if not self.active:
            return self.laid_out(weight)
        exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
        values, slope = self.values(exact)
        if self.zeros:
            values = torch.where(exact.detach() == 0, 0.0, values)
        return self.laid_out(_instead(values, slope).to(weight.dtype))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the weight itself."""
        return weight

    def mean(self, weight: Tensor, over: list[int]) -> Tensor:
        """Mean magnitudes, without those of weights that stay zero; with the weight's number of dimensions."""
        found: Tensor = torch.linalg.vector_norm(weight.detach(), 1, over, keepdim=True) / self.count(weight, over)
        return found

    def count(self, weight: Tensor, over: list[int]) -> Any:
        """How many weights of a filter there are (those that stay zero do not count)."""
        if self.zeros:
            return (weight.detach() != 0).sum(over, keepdim=True).clamp(min=1)
        return math.prod(weight.shape[one] for one in over)


def signed(weight: Tensor, scale: Tensor) -> Tensor:
    """Minus ``scale``, which broadcasts, where the weight is below 0, else it: 0 counts as positive; no -0.0."""
    return torch.where(weight.detach() < 0, 0.0 - scale, scale)


class _Instead(torch.autograd.Function):
    """Values, whose gradient is another tensor's."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, slope: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        return None, gradient


def _instead(values: Tensor, slope: Tensor) -> Tensor:
    found: Tensor = cast(Any, _Instead).apply(values.detach(), slope)  # autograd functions have no types
    return found
