"""A weight without zeros, in few bits each, and the Linear layer that multiplies by it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepcompression.runtime.workers import Workers

Floats = NDArray[np.float32]
WHOLE = 32  # columns that a row is padded to a multiple of
BY_DOTS = 3  # inputs at most of which each is multiplied alone
DECODED = 1 << 18  # floats of rows that are decoded at a time
INTEGERS, SIGNS, OF_16, OF_32, OF_64, OF_ANY = range(6)  # as full_loops has them
WORDS = ("integers of 8 bits", "signs", "codes of 4 bits", "codes of 8 bits", "codes of 8 bits", "codes of 8 bits")


@dataclass(frozen=True)
class Packed:
    """Weight (rows, columns) = scale (rows, 1) x values of ``codes``: integers, signs, or ``table`` by code."""

    shape: tuple[int, int]
    codes: NDArray[np.uint8]
    table: Floats
    scale: Floats
    kind: int

    @property
    def name(self) -> str:
        """In words."""
        return WORDS[self.kind]

    @property
    def steps(self) -> int:
        """Of ``WHOLE`` columns, in a row."""
        return -(-self.shape[1] // WHOLE)

    @property
    def nbytes(self) -> int:
        """In memory."""
        return self.codes.nbytes + self.table.nbytes + self.scale.nbytes


def padded(matrix: NDArray[Any], whole: int = WHOLE) -> NDArray[Any]:
    """With zeros behind each row, up to a multiple of columns."""
    return np.pad(matrix, ((0, 0), (0, -matrix.shape[1] % whole)))


def of_integers(integers: Floats, scale: Floats) -> Packed:
    """Of integers from -128 to 127, times a scale of each row."""
    codes = padded(integers.astype(np.int8)).view(np.uint8)
    return Packed(integers.shape, codes, np.zeros(16, np.float32), scale, INTEGERS)


def of_codes(weight: Floats, book: Floats, scale: Floats) -> Packed:
    """Of at most 256 values.

    Args:
        weight: (rows, columns), values of ``book``.
        book: ascending.
        scale: (rows,).
    """
    codes = padded(np.searchsorted(book, weight).astype(np.uint8))
    kind = next(kind for kind, most in ((OF_16, 16), (OF_32, 32), (OF_64, 64), (OF_ANY, 256)) if len(book) <= most)
    if kind == OF_16:
        pairs = codes.reshape(len(codes), -1, 2, 16)
        codes = (pairs[:, :, 0] | pairs[:, :, 1] << np.uint8(4)).reshape(len(codes), -1)
    size = {OF_16: 16, OF_32: 32, OF_64: 64, OF_ANY: 256}[kind]
    table = np.concatenate([book, np.zeros(size - len(book), np.float32)])
    return Packed(weight.shape, codes, table, scale, kind)


class Full:
    """Inputs (n, columns) to outputs (n, rows)."""

    def __init__(self, packed: Packed, bias: Floats, workers: Workers) -> None:
        from deepcompression.runtime import full_loops

        self._loops, self._workers = full_loops, workers
        self.packed, self._bias = packed, bias
        how = packed.steps, packed.kind
        self._fixed = packed.codes, packed.table, packed.scale, bias, how
        self._to_decode = packed.codes, packed.table, how

    @property
    def nbytes(self) -> int:
        """Of what it keeps of the weight."""
        return self.packed.nbytes

    def __call__(self, x: Floats) -> Floats:
        """Outputs of contiguous inputs."""
        out = np.empty((len(x), self.packed.shape[0]), np.float32)
        if len(x) > BY_DOTS:
            return self._by_blocks(x, out)
        wide = self._padded(x)
        rows, columns = self.packed.shape
        self._workers.spread(
            rows, rows * columns * len(x) // 4, lambda low, high: self._loops.rows(*self._fixed, wide, out, low, high)
        )
        return out

    def _padded(self, x: Floats) -> Floats:
        columns = x.shape[1]
        if columns % WHOLE == 0:
            return x
        wide = self._workers.scratch("wide", len(x), self.packed.steps * WHOLE)
        wide[:, :columns], wide[:, columns:] = x, 0
        return wide

    def _by_blocks(self, x: Floats, out: Floats) -> Floats:
        """Some rows at a time as floats, for PyTorch's product of matrices."""
        rows, columns = self.packed.shape
        wide = self.packed.steps * WHOLE
        some = min(rows, max(16, DECODED // wide))
        block = self._workers.scratch("block", some, wide)
        value, made = torch.from_numpy(x), torch.from_numpy(out)
        for low in range(0, rows, some):
            high = min(rows, low + some)
            self._loops.decode(*self._to_decode, block, low, high)
            made[:, low:high] = value @ torch.from_numpy(block)[: high - low, :columns].t()
        out *= self.packed.scale
        out += self._bias
        return out
