"""DoReFa-Net's gradients: of few bits, at random to either side, while it trains."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

TINY = 1e-30


class QuantizedGradient:
    """A hook after layers: the gradients of their outputs have ``bits`` bits while it is ``active``, in training.

    Zhou et al. (2016), arXiv 1606.06160, section 2.5.
    """

    def __init__(self, bits: int) -> None:
        self.bits, self.active = bits, True

    def __call__(self, module: nn.Module, _: Any, output: Any) -> Any:
        """The output itself, whose gradient is rounded on its way back."""
        if not (self.active and module.training and isinstance(output, Tensor) and output.requires_grad):
            return output
        return cast(Any, _Rounded).apply(output, self.bits)  # autograd functions have no types


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, bits: int) -> Tensor:
        ctx.bits = bits
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return few_bits(gradient, ctx.bits, torch.rand_like(gradient) - 0.5), None


def few_bits(gradient: Tensor, bits: int, noise: Tensor) -> Tensor:
    """2 m (Q((g / 2m) + 1/2 + n) - 1/2), with m the largest magnitude of each sample; in the gradient's shape.

    Args:
        gradient: (samples, ...).
        bits: of a value.
        noise: of a step's width, from -0.5 to 0.5, in the gradient's shape.
    """
    most = gradient.abs().amax(list(range(1, gradient.ndim)), keepdim=True) if gradient.ndim > 1 else gradient.abs()
    twice, steps = 2 * most.clamp(min=TINY), 2**bits - 1
    rounded = ((gradient / twice + 0.5) * steps + noise).round().clamp(0, steps) / steps
    found: Tensor = twice * (rounded - 0.5) * (most > 0)
    return found
