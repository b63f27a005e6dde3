"""Weights of two values, a scale and its negative: of the tensor or of each channel of an axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deepcompression.errors import InvariantError, StructureError
from deepcompression.network.parametrized import VALUES, Holder


class Signs(Holder):
    """Plus or minus a fixed ``scale``, by the sign of what is trained; gradients go straight through."""

    order = VALUES
    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (its own shape) in two values a channel."""
        values = torch.where(weight.detach() < 0, -self.scale, self.scale)
        return self.laid_out(values + (weight - weight.detach()))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the weight itself."""
        return weight


@dataclass(frozen=True)
class Binary:
    """Every weight is plus or minus the scale of its channel, a place of ``axis``."""

    order: ClassVar[int] = VALUES
    axis: int = 0

    def held(self, weight: Tensor) -> Holder:
        """Signs with the scales that ``weight`` has.

        Raises:
            StructureError: a channel has other magnitudes than one, or there is no such axis.
        """
        size = weight.detach().abs()
        over = [one for one in range(size.ndim) if one != self.axis] if size.ndim > 1 else [0] * size.ndim
        if self.axis >= max(size.ndim, 1):
            raise StructureError(f"it has no axis {self.axis}")
        scale = size.amax(over, keepdim=True) if size.numel() else size.new_zeros(())
        if not bool((size == scale).all()):
            raise StructureError("a channel has weights of more than one magnitude")
        return Signs(scale)

    def check(self, name: str, before: Tensor, after: Tensor) -> int:
        """0: two values cannot become fewer, but one.

        Raises:
            InvariantError: a channel has other magnitudes than one.
        """
        try:
            self.held(after)
        except StructureError as error:
            raise InvariantError(f"{name}: is no longer binary: {error}") from None
        return 0
