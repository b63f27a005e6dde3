"""What every range has: integers, first statistics, a grid, and what is trained of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from deepcompression.network.edits.integers import levels
from deepcompression.quantization.straight_through import Grid, on_grid

TINY = 1e-20  # what a size is at least
LEAST = 2.0**-10  # of its first value: what a size that learns cannot fall below


@dataclass(frozen=True)
class Integers:
    """The least and the greatest integer; ``moves``: 0 may be any of as many integers, which the range decides."""

    low: int
    high: int
    moves: bool = False

    @classmethod
    def of_weights(cls, bits: int, scheme: str) -> Integers:
        """Symmetric ones, as many below 0 as above; or 2^bits of them, around a 0 that moves."""
        high = levels(bits, "symmetric")[1]
        return cls(-high, high) if scheme == "symmetric" else cls(*levels(bits, "asymmetric"), moves=True)

    @classmethod
    def of_inputs(cls, bits: int, scheme: str, signed: bool) -> Integers:
        """From 0 on where no value is below 0; else from -2^(bits-1) on, or around a 0 that moves.

        Args:
            bits: of an integer.
            scheme: symmetric, or asymmetric: 0 may move.
            signed: whether some value is below 0.
        """
        if not signed:
            return cls(*levels(bits, "asymmetric"))
        return cls(*levels(bits, scheme), moves=scheme == "asymmetric")


@dataclass(frozen=True)
class First:
    """What values are like before training: a number for each scale, in the scale's shape.

    ``mean`` is that of magnitudes (of weights that are not zero), ``deviation`` the root of the mean square.
    ``count`` is how many values of a sample have one scale. ``whole``: each forward sees all there are, as of weights.
    ``scale`` is that of a grid on which they are already.
    """

    least: Tensor
    most: Tensor
    mean: Tensor
    deviation: Tensor
    count: int
    whole: bool
    scale: Tensor | None = None

    @property
    def size(self) -> Tensor:
        """The largest magnitude; 1 where all values are zero."""
        return or_one(torch.maximum(self.most, -self.least))


class Range(nn.Module):
    """Puts values on a grid that it finds; what it trains are its parameters."""

    signed: ClassVar[str | None] = None  # the range that is used in its place where values are below 0

    def __init__(self, first: First, integers: Integers) -> None:
        super().__init__()
        self.integers = integers

    def forward(self, values: Tensor) -> Tensor:
        """The values (any shape that the scale broadcasts to) on the grid; same dtype."""
        return on_grid(values, self.grid())

    def grid(self) -> Grid:
        """The present grid, through which gradients reach what is trained."""
        raise NotImplementedError

    def keep_sound(self) -> None:
        """After each step: sizes stay above zero."""
        for one in self.children():
            if isinstance(one, Size):
                one.keep_sound()

    def penalty(self) -> Tensor | None:
        """What the loss gets of it, times the penalty's weight; None: nothing."""
        return None

    def scale(self) -> Tensor:
        """The present scale."""
        return self.grid().scale.detach()

    def zero_point(self) -> Tensor | int:
        """Which integer 0 is, counted from the grid's least one."""
        low = self.grid().low
        return (-low).to(torch.int32) if isinstance(low, Tensor) else -low


class Size(nn.Module):
    """A number above zero that is trained: the first one times what learns.

    A step of SGD moves it as if it were trained itself, by ``gain`` times its gradient; one of Adam, which goes by the
    rate alone, by that part of itself. Were it trained as it is, Adam could bring a small one to zero at once.
    """

    start: Tensor

    def __init__(self, start: Tensor, gain: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("start", start.float().clamp(min=TINY))
        self.times = nn.Parameter(torch.ones_like(self.start))
        self.gain = gain

    def forward(self) -> Tensor:
        """The number(s), float32, in the shape of the first ones."""
        found: Tensor = _Scaled.apply(self.times, self.start, self.gain)  # type: ignore[no-untyped-call]
        return found

    def keep_sound(self) -> None:
        """It stays above zero."""
        with torch.no_grad():
            self.times.clamp_(min=LEAST)


class _Scaled(torch.autograd.Function):
    """``times`` x ``start``, whose gradient is ``gain`` / ``start`` times what comes."""

    @staticmethod
    def forward(ctx: Any, times: Tensor, start: Tensor, gain: float) -> Tensor:
        ctx.save_for_backward(start)
        ctx.gain = gain
        return times * start

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> Any:
        (start,) = ctx.saved_tensors
        return outer.mul(ctx.gain).div_(start), None, None


def or_one(values: Tensor) -> Tensor:
    """The values; 1 in place of those that are not above 0."""
    return torch.where(values > 0, values, torch.ones_like(values))


def around_zero(least: Tensor, most: Tensor, integers: Integers) -> tuple[Tensor, Any, Any]:
    """Scale, and the least and greatest integer, of the grid from ``least`` to ``most``; 0 is exactly on it.

    Args:
        least: at most 0.
        most: at least 0.
        integers: as many as there are; 0 moves among them.
    """
    count = integers.high - integers.low
    scale = or_one((most - least) / count)
    zero = (-least.detach() / scale.detach()).round().clamp(0, count)
    if zero.numel() == 1 and zero.device.type == "cpu":
        return scale, -int(zero), count - int(zero)
    return scale, -zero, count - zero
