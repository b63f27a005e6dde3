"""A layer whose weights are a scale of each row or minus it: by counting bits where inputs have two values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from deepcompression.runtime.full import SIGNS, Full, Packed
from deepcompression.runtime.geometry import Convolution
from deepcompression.runtime.workers import Workers

Floats = NDArray[np.float32]
Words = NDArray[np.uint64]


@dataclass(frozen=True)
class Signs:
    """Signs (rows, columns), positive or not, times scale (rows, 1)."""

    positive: Words  # (rows, places of the kernel x words of its channels), bits
    scale: Floats
    shape: tuple[int, ...]  # of the weight

    @property
    def nbytes(self) -> int:
        """In memory."""
        return self.positive.nbytes + self.scale.nbytes

    def dense(self) -> Floats:
        """The weight, (rows, columns)."""
        rows, channels = self.shape[:2]
        bits = np.unpackbits(self.positive.view(np.uint8), axis=1, bitorder="little")
        signs = np.where(bits.reshape(rows, int(np.prod(self.shape[2:])), -1)[:, :, :channels], 1, -1)
        return signs.transpose(0, 2, 1).reshape(rows, -1).astype(np.float32) * self.scale[:, None]


def signs_of(weight: Floats, layer: Convolution | None) -> Signs | None:
    """The signs of a weight (rows, columns); None where a row has other magnitudes than one, or zeros.

    Args:
        weight: of a Linear, or of a convolution, read flat.
        layer: the convolution, if it is one.
    """
    scale = np.abs(weight[:, 0]).astype(np.float32)
    if not scale.all() or not all(
        np.array_equal(np.abs(weight[:, at]), scale) for at in range(min(8, weight.shape[1]))
    ):
        return None
    if not (np.abs(weight) == scale[:, None]).all():
        return None
    shape = layer.shape if layer else weight.shape
    places = weight.reshape(len(weight), shape[1], -1).transpose(0, 2, 1) > 0  # (rows, places, channels)
    padded = np.pad(places, ((0, 0), (0, 0), (0, -shape[1] % 64)))
    bits = np.packbits(padded.reshape(len(weight), -1), axis=1, bitorder="little")
    return Signs(np.ascontiguousarray(bits).view(np.uint64), scale, shape)


class BinaryLinear:
    """Inputs (n, columns) to outputs (n, rows)."""

    def __init__(self, signs: Signs, bias: Floats, workers: Workers) -> None:
        from deepcompression.runtime import binary_loops

        self._loops, self._workers = binary_loops, workers
        self.signs = signs
        sums = 2 * np.bitwise_count(signs.positive).sum(1).astype(np.int32) - np.int32(signs.shape[1])
        self._fixed = signs.positive, signs.scale, sums.astype(np.int32), bias
        # The same bits, for inputs of more values.
        bits, table = signs.positive.view(np.uint8), np.zeros(16, np.float32)
        codes = Packed((signs.shape[0], signs.shape[1]), bits, table, signs.scale, SIGNS)
        self._otherwise = Full(codes, bias, workers)

    @property
    def nbytes(self) -> int:
        """Of what it keeps of the weight."""
        return self.signs.nbytes + int(self._fixed[2].nbytes)

    def __call__(self, x: Floats) -> Floats:
        """Outputs of contiguous inputs."""
        two, low, high = self._loops.two_values(x.reshape(-1))
        words = np.empty((len(x), self.signs.positive.shape[1]), np.uint64)
        if not two or not self._loops.pack_rows(x, np.float32(low), np.float32(high), words):
            return self._otherwise(x)
        rows, columns = self.signs.shape[:2]
        out = np.empty((len(x), rows), np.float32)
        how = columns, low, high
        self._workers.spread(
            rows,
            rows * columns * len(x) // 32,
            lambda first, last: self._loops.rows(*self._fixed, how, words, out, first, last),
        )
        return out


class BinaryConv:
    """Images to outputs."""

    def __init__(self, signs: Signs, bias: Floats, layer: Convolution) -> None:
        from deepcompression.runtime import binary_loops

        self._loops, self.signs, self.layer, self._bias = binary_loops, signs, layer, bias
        self._places = layer.shape[2] * layer.shape[3]
        self._weights = signs.positive.reshape(len(signs.positive), self._places, -1)
        sizes = zip(layer.shape[2:], layer.stride, layer.before, layer.dilation, strict=True)
        (tall, down, above, step), (wide, right, before, stride) = sizes
        self._how = layer.shape[1], tall, wide, down, right, above, before, step, stride

    @property
    def nbytes(self) -> int:
        """Of what it keeps of the weight."""
        return self.signs.nbytes

    def __call__(self, x: Floats) -> Floats:
        """Outputs of contiguous inputs; for those of more than two values a dense weight is made, and left again."""
        two, low, high = self._loops.two_values(x.reshape(-1))
        words = np.empty((len(x), *x.shape[2:], self._weights.shape[2]), np.uint64)
        if not two or not self._loops.pack_images(x, np.float32(low), np.float32(high), words):
            return self._of_any(x)
        size = self.layer.checked((x.shape[2], x.shape[3]))
        out = np.empty((len(x), len(self._weights), *size), np.float32)
        patch = np.empty(self._weights.shape[1:], np.uint64)
        self._loops.convolve(self._weights, self.signs.scale, self._bias, self._how, (low, high), words, patch, out)
        return out

    def _of_any(self, x: Floats) -> Floats:
        weight = torch.from_numpy(self.signs.dense().reshape(self.layer.shape))
        (above, before), (below, behind) = self.layer.before, self.layer.after
        value = functional.pad(torch.from_numpy(x), (before, behind, above, below))
        bias = torch.from_numpy(self._bias)
        made: Floats = functional.conv2d(value, weight, bias, self.layer.stride, 0, self.layer.dilation).numpy()
        return made
