"""Grids of weights whose steps are learned."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deepcompression.network.edits.quantize_values import levels, on_grid
from deepcompression.network.parametrized import VALUES as AFTER_MASK
from deepcompression.network.parametrized import Holder

TINY = 1e-20  # a first step at least


class StepSize(nn.Module):
    """The step(s) of a grid: the first ones times what is trained.

    A step of SGD moves them as in the paper, by the gradient times 1 / sqrt(n Q); one of Adam, which goes by the rate
    alone, by that part of themselves. Were they trained as they are, Adam could bring small ones to zero at once.
    """

    start: Tensor

    def __init__(self, start: Tensor, count: int, most: int) -> None:
        super().__init__()
        self.register_buffer("start", start.clamp(min=TINY))
        self.times = nn.Parameter(torch.ones_like(start))
        self.gain = 1 / math.sqrt(count * most)

    def forward(self) -> Tensor:
        """The steps, float32, in the shape of the first ones."""
        slope = self.times * (self.gain / self.start)
        return (self.times * self.start).detach() + (slope - slope.detach())


class LearnedGrid(Holder):
    """The nearest integer times a learned step."""

    order = AFTER_MASK

    def __init__(self, weight: Tensor, bits: int, axis: int | None = None, start: Tensor | None = None) -> None:
        super().__init__()
        self.most = levels(bits, "symmetric")[1]
        first = _first_steps(weight, self.most, axis) if start is None else start
        self.step = StepSize(first, weight.numel() // first.numel(), self.most)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (its own shape) on the grid; 0 is +0.0."""
        exact = weight.to(torch.promote_types(weight.dtype, torch.float32))
        return self.laid_out(on_grid(exact, self.step(), 0, -self.most, self.most).to(weight.dtype))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the weight itself."""
        return weight


def _first_steps(weight: Tensor, most: int, axis: int | None) -> Tensor:
    """2 mean |w| / sqrt(Q) of the weights that are not zero; a channel of zeros has the tensor's."""
    size, alive = weight.detach().float().abs(), (weight != 0).float()
    whole = size.sum() / alive.sum().clamp(min=1)
    rest = list(range(weight.ndim)) if axis is None else [one for one in range(weight.ndim) if one != axis]
    count = alive.sum(rest, keepdim=True)
    mean = torch.where(count > 0, size.sum(rest, keepdim=True) / count.clamp(min=1), whole)
    return 2 * mean / math.sqrt(most)
