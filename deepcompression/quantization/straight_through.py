"""Values on a grid while a model trains: rounded in the forward, straight through it in the backward, in little memory.

What torch's own operations would keep for the backward (quotients, masks, integers) is computed again from the values,
which the layer before has kept anyway; on a CPU in pieces that stay in its cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE = 1 << 16  # values at a time on a CPU: three such buffers of float32 are in a core's cache together
LARGEST = 1 << 30  # elsewhere
_cut = torch.ops.aten.hardtanh_backward.grad_input  # a gradient where values are strictly between two numbers, else 0


class Grid(NamedTuple):
    """Multiples of ``scale``, from ``low`` to ``high`` times it.

    ``inside`` are the least and the greatest value / scale whose gradient passes. From beyond them gradients reach
    ``ends``, tensors in the scale's shape that stand for the least and the greatest value; without these they reach the
    scale, low or high times. From within, (integer - value / scale) times them reach the scale.
    """

    scale: Tensor
    low: Any
    high: Any
    inside: tuple[Any, Any]
    ends: tuple[Tensor, Tensor] | None = None

    @property
    def middle(self) -> Any:
        """Integers above it are at the upper end, where they are at one."""
        return (self.low + self.high) / 2

    @property
    def is_one(self) -> bool:
        """Whether it is the same for all values, and its integers are known without waiting for a device."""
        return self.scale.numel() == 1 and not isinstance(self.low, Tensor)


class Sums(NamedTuple):
    """Gradients that reach the scale (from beyond the ends too, where there are none), and the ends."""

    scale: Any = None
    bottom: Any = None
    top: Any = None


def on_grid(values: Tensor, grid: Grid) -> Tensor:
    """``values`` on the grid, with the gradients that ``Grid`` tells of; same shape and dtype."""
    found: Tensor = _OnGrid.apply(values, grid.scale, *(grid.ends or (None, None)), grid)  # type: ignore[no-untyped-call]
    return found


def rounded(values: Tensor, grid: Grid) -> Tensor:
    """``values`` on the grid, without gradients; same shape and dtype, ties to even, 0 is +0.0, float32 within."""
    values, scale = _dense(values.detach()), grid.scale.detach()
    if not grid.is_one:
        steps = (values.to(_exact(values)) / scale).clamp_(grid.low, grid.high).round_()
        return steps.mul_(scale).add_(0.0).to(values.dtype)
    found, buffer, scale = torch.empty_like(values), _buffer(values), scale.reshape(())
    for into, piece in zip(_pieces(found), _pieces(values), strict=True):
        steps = _divided(piece, scale, into if into.dtype == buffer.dtype else buffer[: piece.numel()])
        steps.clamp_(grid.low, grid.high).round_().mul_(scale).add_(0.0)
        if steps is not into:
            into.copy_(steps)
    return found


class _OnGrid(torch.autograd.Function):
    """``on_grid``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, bottom: Any, top: Any, grid: Grid) -> Tensor:
        ctx.save_for_backward(values, scale)
        ctx.grid = grid._replace(scale=scale.detach(), ends=None)
        ctx.has_ends = grid.ends is not None
        return rounded(values, grid)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        values, scale = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1:4]
        work = _by_pieces if ctx.grid.is_one else _at_once
        passed, sums = work(_dense(values), outer, ctx.grid, ctx.has_ends, any(wanted))
        slopes = [one.reshape(scale.shape) if needed else None for one, needed in zip(sums, wanted, strict=True)]
        return passed, *slopes, None


def _by_pieces(values: Tensor, outer: Tensor, grid: Grid, has_ends: bool, wanted: bool) -> tuple[Tensor, Sums]:
    """The gradient of the values, and where they are wanted the sums, of a grid with one scale."""
    outer = outer if outer.stride() == values.stride() else torch.empty_like(values).copy_(outer)
    passed, scale, buffers = torch.empty_like(values), grid.scale.reshape(()), [_buffer(values) for _ in range(3)]
    least, most = _around(*grid.inside, buffers[0].dtype)
    found = []
    for into, piece, slope in zip(_pieces(passed), _pieces(values), _pieces(outer), strict=True):
        steps, own, full = (one[: piece.numel()] for one in buffers)
        full, own = (slope, into) if slope.dtype == full.dtype else (full.copy_(slope), own)
        _cut(full, _divided(piece, scale, steps), least, most, grad_input=own)
        if wanted:
            found.append(_summed(steps, full, own, grid, has_ends))
        if own is not into:
            into.copy_(own)
    return passed, Sums(*(torch.stack(parts).sum() for parts in zip(*found, strict=True)))


def _summed(steps: Tensor, outer: Tensor, passed: Tensor, grid: Grid, has_ends: bool) -> tuple[Tensor, ...]:
    """The sums of a flat piece; ``steps`` are its values / scale, and are changed."""
    within = torch.dot(passed, steps).neg()
    steps.clamp_(grid.low, grid.high).round_()
    if not has_ends:
        return (within + torch.dot(outer, steps),)
    within += torch.dot(passed, steps)
    beyond = outer - passed
    above = torch.dot(beyond, (steps > grid.middle).to(steps.dtype))
    return within, beyond.sum() - above, above


def _at_once(values: Tensor, outer: Tensor, grid: Grid, has_ends: bool, wanted: bool) -> tuple[Tensor, Sums]:
    """The same of a grid with several scales, each sum in the scales' shape."""
    exact = _exact(values)
    steps, full = values.to(exact) / grid.scale, outer.to(exact)
    own = torch.where((steps >= grid.inside[0]) & (steps <= grid.inside[1]), full, 0.0)
    if not wanted:
        return own.to(values.dtype), Sums()
    integers = steps.clamp(grid.low, grid.high).round_()
    if not has_ends:
        sums = Sums((full * integers - own * steps).sum_to_size(grid.scale.shape))
    else:
        beyond = full - own
        above = torch.where(integers > grid.middle, beyond, 0.0)
        each = own * (integers - steps), beyond - above, above
        sums = Sums(*(one.sum_to_size(grid.scale.shape) for one in each))
    return own.to(values.dtype), sums


def _exact(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _dense(values: Tensor) -> Tensor:
    """The values, which fill their memory in some order of the dimensions."""
    dense = values.is_contiguous() or (values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last))
    return values if dense else values.contiguous()


def _pieces(values: Tensor) -> Iterator[Tensor]:
    """Flat views of dense values, in the order of memory."""
    return iter(torch.split(values.as_strided((values.numel(),), (1,)), _piece(values)))


def _piece(values: Tensor) -> int:
    return PIECE if values.device.type == "cpu" else LARGEST


def _buffer(values: Tensor) -> Tensor:
    return torch.empty(min(values.numel(), _piece(values)), dtype=_exact(values), device=values.device)


def _divided(piece: Tensor, scale: Tensor, into: Tensor) -> Tensor:
    return torch.div(piece, scale, out=into) if piece.dtype == into.dtype else into.copy_(piece).div_(scale)


@lru_cache(maxsize=256)
def _around(least: float, most: float, dtype: torch.dtype) -> tuple[float, float]:
    """The next number below the least, and above the most."""
    ends = torch.tensor([least, most], dtype=dtype)
    least, most = torch.nextafter(ends, torch.tensor([-math.inf, math.inf], dtype=dtype)).tolist()
    return least, most
