"""What a chain of layers is: steps, each with what is done to its output plane by plane."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Shape = tuple[int, int, int]  # channels, rows, columns
Pair = tuple[int, int]  # rows, columns
Numbers = NDArray[np.float64]
ONE: Pair = (1, 1)
NONE: Pair = (0, 0)


@dataclass(frozen=True, eq=False)
class Norm:
    """Each channel times ``scale`` plus ``shift`` (channels,), which come of the module ``name``."""

    name: str
    scale: Numbers
    shift: Numbers


@dataclass(frozen=True)
class Clamp:
    """Values are cut to these ends: ReLU, ReLU6."""

    low: float
    high: float


@dataclass(frozen=True)
class Pool:
    """The largest of a window, or its mean; ``whole``: padding counts in it."""

    mean: bool
    kernel: Pair
    stride: Pair
    padding: Pair
    out: Pair
    whole: bool = False


@dataclass(frozen=True)
class Grid:
    """Values become ``scale`` times an integer from ``low`` to ``high``, both less the zero point."""

    site: str
    scale: float
    low: int
    high: int
    bits: int


Op = Norm | Clamp | Pool | Grid


@dataclass(frozen=True)
class Step:
    """A layer, or (without a weight) a copy, and what is done to its output, in order.

    weight: (out channels, in channels / groups, rows, columns). into, out: shapes, before the ops. name: of the module.
    """

    name: str
    into: Shape
    out: Shape
    weight: Tensor | None = None
    bias: Tensor | None = None
    groups: int = 1
    stride: Pair = ONE
    padding: Pair = NONE
    dilation: Pair = ONE
    ops: list[Op] = field(default_factory=list)

    @property
    def plane(self) -> Pair:
        """Rows and columns behind the ops."""
        return next((op.out for op in reversed(self.ops) if isinstance(op, Pool)), self.out[1:])

    @property
    def made(self) -> Shape:
        """The shape behind the ops."""
        return (self.out[0], *self.plane)


@dataclass(frozen=True)
class Network:
    """A chain, and the shapes of a sample and of its output."""

    steps: list[Step]
    takes: tuple[int, ...]
    gives: tuple[int, ...]
