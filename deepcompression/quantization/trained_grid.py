"""Grids of weights whose ranges are found while they train."""

from __future__ import annotations

import torch
from torch import Tensor

from deepcompression.network.parametrized import VALUES as AFTER_MASK
from deepcompression.network.parametrized import Holder
from deepcompression.quantization.ranges import range_named
from deepcompression.quantization.ranges.range import First, Integers


class TrainedGrid(Holder):
    """The nearest integer times a scale, which a range finds."""

    order = AFTER_MASK

    def __init__(
        self, weight: Tensor, bits: int, axis: int | None, word: str, scheme: str, scale: Tensor | None = None
    ) -> None:
        super().__init__()
        first = first_of(weight.detach().float(), axis, scale)
        self.range = range_named(word)(first, Integers.of_weights(bits, scheme))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (its own shape and dtype) on the grid; 0 is +0.0."""
        values: Tensor = self.range(weight)
        return self.laid_out(values)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the weight itself."""
        return weight


def first_of(weight: Tensor, axis: int | None, scale: Tensor | None = None) -> First:
    """What the weights that are not zero are like, by channel (``axis``) or all together; a channel of zeros has the
    tensor's numbers.

    Args:
        weight: float32.
        axis: of channels.
        scale: of the grid on which they are already.
    """
    rest = [one for one in range(weight.ndim) if one != axis]
    size, alive = weight.abs(), (weight != 0).float()
    whole, count = alive.sum().clamp(min=1), alive.sum(rest, keepdim=True)

    def mean(of: Tensor) -> Tensor:
        return torch.where(count > 0, of.sum(rest, keepdim=True) / count.clamp(min=1), of.sum() / whole)

    least, most = weight.amin(rest, keepdim=True), weight.amax(rest, keepdim=True)
    least = torch.where(count > 0, least, weight.amin())
    most = torch.where(count > 0, most, weight.amax())
    each = weight.numel() // count.numel()
    return First(least, most, mean(size), mean(weight.square()).sqrt(), each, whole=True, scale=scale)
