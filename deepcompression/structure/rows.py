"""A tensor as rows that have a scale or a codebook each: all of it, its channels, or groups of elements; and back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from deepcompression.errors import StructureError


def rows_of(tensor: Tensor, axis: int | None = None, group: int | None = None) -> Tensor:
    """The elements (rows, each) of a tensor: one row, or one for each place of an axis, in its order.

    Args:
        tensor: any shape.
        axis: of the channels; None is one row.
        group: so many consecutive elements, of channels laid flat, are a row: a part of a channel, or several whole
            ones; None is a channel.

    Raises:
        StructureError: there is no such axis, or groups divide no channel, and are not whole ones.
    """
    if axis is None:
        return tensor.reshape(1, -1)
    if axis >= tensor.ndim:
        raise StructureError(f"it has {tensor.ndim} axes, and none numbered {axis}")
    rows = tensor.movedim(axis, 0).flatten(1) if tensor.ndim > 1 else tensor.reshape(-1, 1)
    if group is None:
        return rows
    each = rows.shape[1]
    if each % group and (group % max(each, 1) or rows.numel() % group):
        raise StructureError(f"groups of {group} do not divide the {each} elements of a channel")
    return rows.reshape(-1, group)


def from_rows(rows: Tensor, shape: Sequence[int], axis: int | None = None) -> Tensor:
    """The tensor (``shape``, contiguous) that ``rows_of`` took apart.

    Args:
        rows: of it.
        shape: of the tensor.
        axis: that ``rows_of`` had; groups lie one behind the other and need none.
    """
    if axis is None:
        return rows.reshape(tuple(shape))
    moved = [shape[axis], *(size for place, size in enumerate(shape) if place != axis)]
    return rows.reshape(moved).movedim(0, axis).contiguous()
