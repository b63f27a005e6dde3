"""``tqt``: a threshold whose logarithm is learned; steps are powers of two (Jain et al. 2019, arXiv 1903.08066, 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deepcompression.quantization.ranges.range import TINY, First, Integers, Range
from deepcompression.quantization.straight_through import Grid

DECAY = 0.99  # of the norm by which gradients are divided


class Tqt(Range):
    """The step is 2^ceil(log2 t) by the number of integers on a side; a value is inside where its integer is.

    The threshold begins at three deviations, or at the largest value where that is less. Gradients of its logarithm are
    divided by a running norm and cut softly (tanh, appendix B.2), since their size is the data's: a step of SGD moves
    it by the rate at most.
    """

    norm: Tensor

    def __init__(self, first: First, integers: Integers) -> None:
        super().__init__(first, integers)
        self.count = integers.high + 1
        threshold = torch.minimum(first.size, 3 * first.deviation) if first.scale is None else first.scale * self.count
        self.log = nn.Parameter(threshold.float().clamp(min=TINY).log2())
        self.register_buffer("norm", torch.zeros_like(self.log))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64, device=self.log.device))

    def grid(self) -> Grid:
        """The present grid."""
        log: Tensor = _Normed.apply(self.log, self.norm, self.seen)  # type: ignore[no-untyped-call]
        scale = (log + (log.ceil() - log).detach()).exp2() / self.count
        low, high = self.integers.low, self.integers.high
        return Grid(scale, low, high, _inside(low, high))


class _Normed(torch.autograd.Function):
    """The same value; its gradient by the root of a running mean of its square, between -1 and 1."""

    @staticmethod
    def forward(ctx: Any, log: Tensor, norm: Tensor, seen: Tensor) -> Tensor:
        ctx.norm, ctx.seen = norm, seen
        return log.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        ctx.seen.add_(1)
        ctx.norm.lerp_(outer.square(), 1 - DECAY)
        mean = ctx.norm / (1 - DECAY ** ctx.seen.to(ctx.norm.dtype))
        return (outer / mean.sqrt().clamp(min=TINY)).tanh(), None, None


def _inside(low: int, high: int) -> tuple[float, float]:
    """The least and greatest number that are rounded, ties to even, to ``low`` to ``high``."""
    ends = torch.tensor([low - 0.5, high + 0.5])
    inner = torch.nextafter(ends, torch.zeros(2)).tolist()
    return (ends[0].item() if low % 2 == 0 else inner[0]), (ends[1].item() if high % 2 == 0 else inner[1])
