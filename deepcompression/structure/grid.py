"""Weights that are integers times a scale, of the tensor or of each channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from deepcompression.codec import grids
from deepcompression.codec.dtypes import unsigned
from deepcompression.errors import InvariantError, StructureError
from deepcompression.network.parametrized import VALUES, Holder


class OnGrid(Holder):
    """The nearest multiple of a fixed ``scale``, from ``low`` to ``high`` times it; gradients go straight through."""

    order = VALUES
    scale: Tensor

    def __init__(self, scale: Tensor, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("scale", scale)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (its own shape) on the grid; 0 is +0.0."""
        with torch.no_grad():
            integers = (weight / self.scale).round().clamp_(self.low, self.high)
            values = torch.where(integers == 0, 0.0, integers * self.scale).to(weight.dtype)
        return self.laid_out(values + (weight - weight.detach()))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the weight itself."""
        return weight


@dataclass(frozen=True)
class Grid:
    """Weights are integers of ``bits`` bits times a scale: the tensor's (``axis`` None), or an axis's."""

    order: ClassVar[int] = VALUES
    bits: int
    axis: int | None = None

    def held(self, weight: Tensor) -> Holder:
        """A grid with the scales that ``weight`` has.

        Raises:
            StructureError: it is on no such grid.
        """
        scales, integers = _found(weight, self.axis)
        low, high = int(integers.min(initial=0)), int(integers.max(initial=0))
        if high - low >= 1 << self.bits:
            raise StructureError(f"integers from {low} to {high} do not fit {self.bits} bits")
        shape = [1] * weight.ndim
        if self.axis is not None:
            shape[self.axis] = weight.shape[self.axis]
        scale = torch.from_numpy(np.asarray(scales, np.float32)).reshape(shape)
        return OnGrid(scale.to(weight.device), low, low + (1 << self.bits) - 1)

    def check(self, name: str, before: Tensor, after: Tensor) -> int:
        """0; a grid has no way to become coarser that is counted.

        Raises:
            InvariantError: ``after`` is on no grid of so many bits.
        """
        try:
            self.held(after)
        except StructureError as error:
            raise InvariantError(f"{name}: its weights are no longer integers times a scale: {error}") from None
        return 0


def _found(weight: Tensor, axis: int | None) -> tuple[grids.Scales, np.ndarray[tuple[int, ...], np.dtype[np.int32]]]:
    """Scales and integers, one row for each scale.

    Raises:
        StructureError: there are none.
    """
    dtype = str(weight.dtype).removeprefix("torch.")
    rows = weight.detach().cpu().reshape(1, -1) if axis is None else weight.detach().cpu().movedim(axis, 0).flatten(1)
    if dtype == "bfloat16":
        bits = rows.contiguous().view(torch.int16).numpy().view(np.uint16)
    else:
        bits = rows.contiguous().numpy().view(unsigned(dtype))
    found = grids.recognise(bits, dtype)
    if found is None:
        raise StructureError("its values are no multiples of a scale")
    return found
