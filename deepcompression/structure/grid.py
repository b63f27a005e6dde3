"""Weights that are integers times a scale, of the tensor, of each channel, or of each group within channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcompression.codec import grids
from deepcompression.codec.dtypes import unsigned
from deepcompression.errors import InvariantError, StructureError
from deepcompression.network.parametrized import VALUES, Holder
from deepcompression.structure.rows import from_rows, rows_of

Integers = NDArray[np.int32]


class OnGrid(Holder):
    """The nearest multiple of a fixed ``scale``, from ``low`` to ``high`` times it; gradients go straight through.

    All three broadcast against the weight, or, where there are groups, against its rows (rows, each).
    """

    order = VALUES
    scale: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, scale: Tensor, low: Tensor, high: Tensor, axis: int | None = None, group: int | None = None):
        super().__init__()
        self.axis, self.group = axis, group
        for name, value in (("scale", scale), ("low", low), ("high", high)):
            self.register_buffer(name, value)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (its own shape) on the grid; 0 is +0.0."""
        with torch.no_grad():
            rows = weight if self.group is None else rows_of(weight, self.axis, self.group)
            integers = (rows / self.scale).round().clamp_(self.low, self.high)
            values = torch.where(integers == 0, 0.0, integers * self.scale).to(weight.dtype)
            if self.group is not None:
                values = from_rows(values, weight.shape, self.axis)
        return self.laid_out(values + (weight - weight.detach()))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the weight itself."""
        return weight


@dataclass(frozen=True)
class Grid:
    """Weights are integers of ``bits`` bits times a scale: the tensor's (``axis`` None), that of each place of an axis,
    or that of each ``group`` consecutive elements of such a channel, laid flat.

    The integers of one scale are less than 2^bits apart; they need not be around 0 (asymmetric grids), which is always
    among those that training can come to.
    """

    order: ClassVar[int] = VALUES
    bits: int
    axis: int | None = None
    group: int | None = None

    @property
    def word(self) -> str:
        """What stands for it in a structure: ``grid(8, 0)``."""
        return f"grid({', '.join(str(one) for one in (self.bits, self.axis, self.group) if one is not None)})"

    def held(self, weight: Tensor) -> Holder:
        """A grid with the scales that ``weight`` has.

        Raises:
            StructureError: it is on no such grid.
        """
        scales, integers = recognised(weight, self.axis, self.group)
        low, high = _ends(integers, self.bits)
        shape = [-1, 1] if self.group is not None else [1] * weight.ndim
        if self.axis is not None and self.group is None:
            shape[self.axis] = -1
        parts = [torch.from_numpy(one).reshape(shape).to(weight.device) for one in (scales, low, high)]
        return OnGrid(parts[0], parts[1], parts[2], self.axis, self.group)

    def check(self, name: str, before: Tensor, after: Tensor) -> int:
        """0; a grid has no way to become coarser that is counted.

        Raises:
            InvariantError: ``after`` is on no grid of so many bits.
        """
        try:
            _ends(recognised(after, self.axis, self.group)[1], self.bits)
        except StructureError as error:
            raise InvariantError(f"{name}: its weights are no longer integers times a scale: {error}") from None
        return 0


def _ends(integers: Integers, bits: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The least and the greatest integer (rows,) that each row's grid has: as many below 0 as above, where what is
    there allows it; else 2^bits of them, moved as little as need be.

    Raises:
        StructureError: those of one row are too far apart.
    """
    least, greatest = integers.min(axis=1, initial=0), integers.max(axis=1, initial=0)
    wide = np.flatnonzero(greatest.astype(np.int64) - least >= 1 << bits)
    if wide.size:
        raise StructureError(f"integers from {least[wide[0]]} to {greatest[wide[0]]} do not fit {bits} bits")
    most, count = (1 << bits - 1) - 1, 1 << bits
    narrow = (least >= -most) & (greatest <= most)
    moved = np.minimum(least, np.maximum(-(count >> 1), greatest - count + 1))
    low = np.where(narrow, -most, moved)
    high = np.where(narrow, most, moved + count - 1)
    return low.astype(np.float32), high.astype(np.float32)


def recognised(weight: Tensor, axis: int | None, group: int | None) -> tuple[NDArray[Any], Integers]:
    """Scales (rows,) and integers (rows, each) of weights on a grid.

    Args:
        weight: any shape.
        axis: of the channels that have a scale; None: one is for all.
        group: so many elements have one.

    Raises:
        StructureError: there are none.
    """
    dtype = str(weight.dtype).removeprefix("torch.")
    rows = rows_of(weight.detach().cpu(), axis, group).contiguous()
    plain = rows.view(torch.int16) if dtype == "bfloat16" else rows  # which numpy has not
    found = grids.recognise(plain.numpy().view(unsigned(dtype)), dtype)
    if found is None:
        raise StructureError("its values are no multiples of a scale")
    return found
