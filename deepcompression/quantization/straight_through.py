"""Values on a grid while a model trains: rounded in the forward, straight through it in the backward, in little memory.

What torch's own operations would keep for the backward (quotients, masks, integers) is found again from the values,
which the layer before has kept anyway. On a CPU, large ones go by pieces that stay in its cache, and what their scale's
gradient needs is there already: float32 in what they became, which the layer behind has kept; of bfloat16, which would
have to become float32 again for it, the slopes are kept, as bfloat16.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

PIECE = 1 << 16  # values at a time: the few buffers of float32 that they need are in a core's cache together
PARTS = 64  # of a sum, at most
FAR = np.float32(math.inf)
_cut = torch.ops.aten.hardtanh_backward  # a gradient where values are strictly between two numbers, else 0
_norm = torch.ops.aten.native_batch_norm_backward


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
    if _is_large(values, grid):
        return (_rounded_bfloat16 if values.dtype == torch.bfloat16 else _rounded_float32)(values, grid)
    steps = (values.to(_exact(values)) / scale).clamp_(grid.low, grid.high).round_()
    return steps.mul_(scale).add_(0.0).to(values.dtype)


def _rounded_float32(values: Tensor, grid: Grid) -> Tensor:
    """The same of large ones."""
    found, scale, zero, factor = torch.empty_like(values), grid.scale.reshape(()), torch.zeros(()), float(grid.scale)
    for piece, into in zip(_flat(values), _flat(found), strict=True):
        torch.div(piece, scale, out=into).clamp_(grid.low, grid.high).round_()
        torch.add(zero, into, alpha=factor, out=into)  # in one pass, and -0.0 becomes +0.0
    return found


def _rounded_bfloat16(values: Tensor, grid: Grid, slopes: Tensor | None = None) -> Tensor:
    """The same; what each of them moves by with the scale goes into ``slopes``."""
    found, scale, zero, factor = torch.empty_like(values), grid.scale.reshape(()), torch.zeros(()), float(grid.scale)
    buffers = torch.empty(PIECE), torch.empty(PIECE)
    for piece, into, slope in zip(_flat(values), _flat(found), _flat(found if slopes is None else slopes), strict=True):
        steps, integers = buffers if piece.numel() == PIECE else (one[: piece.numel()] for one in buffers)
        torch.clamp(steps.copy_(piece).div_(scale), grid.low, grid.high, out=integers).round_()
        if slopes is not None and grid.ends is None:
            _cut.grad_input(steps, steps, *_around(*grid.inside), grad_input=steps)
            slope.copy_(torch.sub(integers, steps, out=steps))
        elif slopes is not None:
            slope.copy_(torch.sub(integers, steps.clamp_(grid.low, grid.high), out=steps))
        into.copy_(torch.add(zero, integers, alpha=factor, out=integers))
    return found


class _OnGrid(torch.autograd.Function):
    """``on_grid``."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, bottom: Any, top: Any, grid: Grid) -> Tensor:
        ctx.grid, ctx.has_ends = grid._replace(scale=scale.detach(), ends=None), grid.ends is not None
        if not ctx.needs_input_grad[1] or not _is_large(values, grid):
            found, made = rounded(values, grid), None
        elif values.dtype == torch.bfloat16:
            values = _dense(values)
            made = torch.empty_like(values)
            found = _rounded_bfloat16(values, grid, made)
        else:
            found = made = rounded(values, grid)
        ctx.save_for_backward(values, scale, made)
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        values, scale, made = ctx.saved_tensors
        values, wanted = _dense(values), Sums(*ctx.needs_input_grad[1:4])
        if _is_large(values, ctx.grid):
            passed, sums = _large(values, made, outer, ctx.grid, ctx.has_ends, wanted)
        else:
            passed, sums = _at_once(values, outer, ctx.grid, ctx.has_ends, wanted)
        slopes = [one.reshape(scale.shape) if needed else None for one, needed in zip(sums, wanted, strict=True)]
        return passed, *slopes, None


def _large(
    values: Tensor, made: Tensor | None, outer: Tensor, grid: Grid, has_ends: bool, wanted: Sums
) -> tuple[Tensor, Sums]:
    """The gradient of large values, and the sums that are wanted.

    Args:
        values: dense.
        made: what float32 became, or the slopes of bfloat16; None where nothing learns the scale.
        outer: the gradient of what they became.
        grid: without its ends.
        has_ends: whether it has them.
        wanted: those that something learns from.
    """
    outer = outer if outer.stride() == values.stride() else torch.empty_like(values).copy_(outer)
    passed, factor = torch.empty_like(values), float(grid.scale)
    (least, before), (most, behind) = _edges(*grid.inside, factor)
    size, sums = PIECE if values.dtype == torch.float32 else values.numel(), []
    pieces = (_flat(one, size) for one in (values, values if made is None else made, outer, passed))
    for piece, one, slope, into in zip(*pieces, strict=True):
        _cut.grad_input(slope, piece, before, behind, grad_input=into)
        scale = bottom = top = None
        if wanted.scale and one.dtype == torch.bfloat16:
            scale = _dot(slope, one)
        elif wanted.scale:
            scale = (torch.dot(into if has_ends else slope, one) - torch.dot(into, piece)) / factor
        if wanted.bottom:
            bottom = _cut(slope, piece, -math.inf, least).sum(dtype=torch.float32)
        if wanted.top:
            top = _cut(slope, piece, most, math.inf).sum(dtype=torch.float32)
        sums.append(Sums(scale, bottom, top))
    return passed, Sums(*(_total(parts) for parts in zip(*sums, strict=True)))


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """The sum of products of flat bfloat16 in float32: a BatchNorm's backward has it for its weight, torch.dot not."""
    parts = math.gcd(one.numel(), PARTS)  # channels: threads share them
    zero, unit, shape = torch.zeros(parts), torch.ones(parts), (1, parts, one.numel() // parts)
    rest = None, None, False, 0.0, [False, True, True]
    found: Tensor = _norm(one.view(shape), other.view(shape), unit, zero, unit, *rest)[1]
    return found.sum()


def _total(parts: tuple[Any, ...]) -> Any:
    return parts[0] if len(parts) == 1 or parts[0] is None else torch.stack(parts).sum()


def _at_once(values: Tensor, outer: Tensor, grid: Grid, has_ends: bool, wanted: Sums) -> tuple[Tensor, Sums]:
    """The same of any values and any grid, each sum in the scales' shape."""
    exact = _exact(values)
    steps, full = values.to(exact) / grid.scale, outer.to(exact)
    own = _inside(full, steps, grid)
    if not any(wanted):
        return own.to(values.dtype), Sums()
    integers = steps.clamp(grid.low, grid.high).round_()
    if not has_ends:
        sums = Sums(integers.mul_(full).addcmul_(own, steps, value=-1).sum_to_size(grid.scale.shape))
    else:
        beyond = full - own
        above = torch.where(integers > grid.middle, beyond, 0.0)
        each = own * (integers - steps), beyond - above, above
        sums = Sums(*(one.sum_to_size(grid.scale.shape) for one in each))
    return own.to(values.dtype), sums


def _inside(outer: Tensor, steps: Tensor, grid: Grid) -> Tensor:
    """``outer`` where gradients pass, else 0."""
    if isinstance(grid.inside[0], Tensor):
        return torch.where((steps >= grid.inside[0]) & (steps <= grid.inside[1]), outer, 0.0)
    found: Tensor = _cut(outer, steps, *_around(*grid.inside, double=steps.dtype == torch.float64))
    return found


def _exact(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)


def _dense(values: Tensor) -> Tensor:
    """The values, which fill their memory in some order of the dimensions."""
    dense = values.is_contiguous() or (values.ndim == 4 and values.is_contiguous(memory_format=torch.channels_last))
    return values if dense else values.contiguous()


def _is_large(values: Tensor, grid: Grid) -> bool:
    """Whether they go by pieces."""
    known = values.dtype in (torch.float32, torch.bfloat16) and values.device.type == "cpu"
    return known and values.numel() > PIECE and grid.is_one


def _flat(values: Tensor, size: int = PIECE) -> tuple[Tensor, ...]:
    """Flat views of dense values, in the order of memory."""
    return values.as_strided((values.numel(),), (1,)).unsafe_split(size)


@lru_cache(maxsize=256)
def _around(least: float, most: float, double: bool = False) -> tuple[float, float]:
    """The next number below the least, and above the most."""
    kind = np.float64 if double else np.float32
    return float(np.nextafter(kind(least), -kind(math.inf))), float(np.nextafter(kind(most), kind(math.inf)))


def _edges(least: float, most: float, scale: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """The least and the greatest float32 whose quotient by the scale is rounded to ``least`` to ``most``, each with its
    neighbour that is not.

    Quotients are rounded in the middle of two numbers. Times a float32, that is exact as a float64, and no float32.
    """
    below, above = _around(least, most)
    with np.errstate(over="ignore"):
        return _beside(scale * ((least + below) / 2), -FAR), _beside(scale * ((most + above) / 2), FAR)


def _beside(limit: float, far: Any) -> tuple[float, float]:
    """The float32 before the limit and the one behind it, on the way to ``far``."""
    one = np.float32(limit)
    if (float(one) > limit) == bool(far > 0):
        return float(np.nextafter(one, -far)), float(one)
    return float(one), float(np.nextafter(one, far))
