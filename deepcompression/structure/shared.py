"""Weights that share values, over a tensor or within its channels or groups: trained by their centroids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from deepcompression.errors import InvariantError
from deepcompression.network.parametrized import SOURCE, Holder
from deepcompression.network.state import bits_of
from deepcompression.structure.rows import from_rows, rows_of


class SharedWeights(Holder):
    """``centroids[codes]`` at a weight's ``positions`` (flat), +0.0 everywhere else."""

    positions: Tensor
    codes: Tensor

    def __init__(self, weight: Tensor, axis: int | None = None, group: int | None = None) -> None:
        super().__init__()
        flat = weight.reshape(-1)
        positions = (flat != 0).nonzero().squeeze(1)  # (non-zeros,) int64
        rows = _rows(weight, axis, group)
        self.shape = weight.shape
        self.count, codes = _numbered(flat[positions], None if rows is None else rows[positions])
        self.register_buffer("positions", positions)
        self.register_buffer("codes", codes.int())

    def forward(self, centroids: Tensor) -> Tensor:
        """The weight, from its centroids (k,)."""
        spread = cast(Any, _Spread).apply  # autograd functions have no types
        return self.laid_out(spread(centroids, self.positions, self.codes, self.shape))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the distinct non-zero values (k,), ascending, those of one codebook behind another's."""
        values = weight.new_empty(self.count)
        values[self.codes.long()] = weight.reshape(-1)[self.positions]
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
    """Weights that are equal stay equal; so do zeros.

    In all of the tensor (``axis`` None: one codebook), within each place of an axis, or within each ``group``
    consecutive elements of such channels, laid flat: each of these has a codebook of its own, and what is equal in two
    of them may come apart.
    """

    order: ClassVar[int] = SOURCE
    axis: int | None = None
    group: int | None = None

    @property
    def word(self) -> str:
        """What stands for it in a structure: ``shared``, ``shared(0)``, ``shared(0, 256)``."""
        numbers = ", ".join(str(one) for one in (self.axis, self.group) if one is not None)
        return f"shared({numbers})" if numbers else "shared"

    def held(self, weight: Tensor) -> Holder:
        """The weight by its codebooks.

        Raises:
            StructureError: it has no such axis, or no such groups.
        """
        return SharedWeights(weight, self.axis, self.group)

    def check(self, name: str, before: Tensor, after: Tensor) -> int:
        """How many groups of equal weights joined others; each must still be one value, but for weights now zero.

        Raises:
            InvariantError: a group has several values.
        """
        was, now = (bits_of(one).reshape(-1) for one in (before, after))
        rows = _rows(before, self.axis, self.group)
        count, index = _numbered(was, rows)
        stays = (now != 0) | (was == 0)
        leader = now.new_zeros(count)
        leader[index[stays]] = now[stays]
        if not torch.equal(leader[index[stays]], now[stays]):
            where = "" if rows is None else " in its channel or group"
            raise InvariantError(f"{name}: weights that shared a value{where} no longer do")
        return count - _numbered(leader, None if rows is None else rows.new_zeros(count).index_copy_(0, index, rows))[0]


def _rows(weight: Tensor, axis: int | None, group: int | None) -> Tensor | None:
    """Which codebook each element has (n,) int64; None where there is one for all."""
    if axis is None:
        return None
    count, each = rows_of(weight, axis, group).shape
    numbers = torch.arange(count, device=weight.device)[:, None].expand(count, each)
    return from_rows(numbers, weight.shape, axis).reshape(-1)


def _numbered(values: Tensor, rows: Tensor | None) -> tuple[int, Tensor]:
    """How many values there are, and which one each element has (m,); those of unlike rows are unlike."""
    distinct, index = torch.unique(values, return_inverse=True)
    if rows is not None:
        distinct, index = torch.unique(rows * len(distinct) + index, return_inverse=True)
    return len(distinct), index
