"""Where a convolution's inputs lie, and how many outputs are worked on at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcompression.errors import InputError

SIDE_BY_SIDE = 128  # floats that a row should have: fewer, and images are laid side by side
AT_ONCE = 256  # outputs of a row, so that the inputs of some channels stay in the nearest cache
BEHIND = 16  # floats that may be read, or written, behind the last


@dataclass(frozen=True)
class Convolution:
    """What a convolution of two dimensions is told: weight (outputs, inputs / groups, height, width) and the rest."""

    shape: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    before: tuple[int, int] = (0, 0)  # zeros above and left
    after: tuple[int, int] = (0, 0)  # below and right
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def outputs(self, size: Sequence[int]) -> tuple[int, int]:
        """Height and width of what it makes of such images; not above 0 where they are too small."""
        spans = [
            (one + above + below - dilation * (kernel - 1) - 1) // stride + 1
            for one, above, below, dilation, kernel, stride in zip(
                size, self.before, self.after, self.dilation, self.shape[2:], self.stride, strict=True
            )
        ]
        return spans[0], spans[1]

    def checked(self, size: Sequence[int]) -> tuple[int, int]:
        """As ``outputs``; InputError where nothing is left of such images."""
        tall, broad = self.outputs(size)
        if min(tall, broad) < 1:
            raise InputError(f"images of {size[0]} x {size[1]} are too small for it")
        return tall, broad


@dataclass(frozen=True)
class Geometry:
    """A layout of a batch of images of one size: what ``sparse_loops`` take of it."""

    batch: int
    size: tuple[int, int]
    outputs: tuple[int, int]
    arrange: tuple[int, int, int, int, int, int, int]
    planes: tuple[int, int, int, int, int]
    table: NDArray[np.int32]
    laid: tuple[int, int]
    wide: int


def geometry(layer: Convolution, batch: int, size: tuple[int, int]) -> Geometry:
    """The layout of ``batch`` images of ``size`` (height, width).

    Args:
        layer: that takes them.
        batch: images.
        size: of one.

    Raises:
        InputError: nothing is left of them.
    """
    (down, right), (tall, broad) = layer.stride, layer.checked(size)
    whole = [one + above + below for one, above, below in zip(size, layer.before, layer.after, strict=True)]
    height, width = -(-whole[0] // down), -(-whole[1] // right)
    row = (tall - 1) * width + broad
    abreast = max(1, min(batch, SIDE_BY_SIDE // row))
    band = max(1, min(tall, AT_ONCE // (width * abreast)))
    planes = down * right * height * width  # of a channel
    channels = layer.shape[1] * planes
    return Geometry(
        batch,
        size,
        (tall, broad),
        (down, right, *layer.before, height, width, abreast),
        (layer.groups, channels, width, band, abreast),
        _table(layer, height, width),
        (-(-batch // abreast), layer.groups * channels * abreast + BEHIND),
        -(-((band - 1) * width + broad) * abreast // BEHIND) * BEHIND,
    )


def _table(layer: Convolution, height: int, width: int) -> NDArray[np.int32]:
    """Where the first input of each column of the weight, (inputs / groups, height, width) read flat, lies."""
    channel, y, x = np.indices(layer.shape[1:])
    (down, right), (tall, broad) = layer.stride, layer.dilation
    plane = (channel * down + y * tall % down) * right + x * broad % right
    places: NDArray[np.int64] = (plane * height + y * tall // down) * width + x * broad // right
    return places.astype(np.int32).reshape(-1)
