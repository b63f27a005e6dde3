"""A sparse layer that multiplies by its entries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepcompression.runtime.entries import Entries
from deepcompression.runtime.geometry import Convolution, Geometry, geometry
from deepcompression.runtime.workers import Workers

Floats = NDArray[np.float32]


class Sparse:
    """Inputs to outputs: (n, columns) to (n, rows), or images of a convolution."""

    def __init__(self, entries: Entries, bias: Floats, layer: Convolution | None, workers: Workers) -> None:
        from deepcompression.runtime import sparse_loops

        self._loops = sparse_loops
        self.entries, self.layer = entries, layer
        self._bias, self._workers = bias, workers
        kind = sparse_loops.kind_of(len(entries.values), entries.own)
        how = entries.low, entries.block, kind
        self._fixed = entries.entries, entries.start, entries.values, entries.scale, bias, how
        self._count = entries.count
        self._alone = workers.parts(self._count) == 1
        self._as_images = layer or Convolution((*entries.shape, 1, 1))
        self._geometry: Geometry | None = None

    @property
    def nbytes(self) -> int:
        """Of what it keeps of the weight, its places in the last inputs' layout with it."""
        kept = self._geometry
        return self.entries.nbytes + (kept.table.nbytes if kept else 0)

    def __call__(self, x: Floats) -> Floats:
        """Outputs of contiguous inputs."""
        if self.layer is None and len(x) == 1:
            return self._by_rows(x)
        if self.layer is None:
            return self._by_planes(x[:, :, None, None])[:, :, 0, 0]
        return self._by_planes(x)

    def _by_rows(self, x: Floats) -> Floats:
        rows = self.entries.shape[0]
        out = np.empty((len(x), rows), np.float32)
        if self._alone:
            self._loops.rows(*self._fixed, x, out, 0, rows)
        else:
            self._workers.spread(rows, self._count, lambda low, high: self._loops.rows(*self._fixed, x, out, low, high))
        return out

    def _by_planes(self, x: Floats) -> Floats:
        at = self._laid_out(len(x), (x.shape[2], x.shape[3]))
        laid = self._workers.scratch("laid", *at.laid)
        self._loops.arrange(x, at.arrange, laid)
        rows = self.entries.shape[0]
        sums, out = self._workers.scratch("sums", rows, at.wide), np.empty((len(x), rows, *at.outputs), np.float32)
        self._workers.spread(
            rows,
            self._count * at.outputs[0] * at.outputs[1] * len(x) // 8,
            lambda low, high: self._loops.planes(*self._fixed, at.table, at.planes, laid, sums, out, low, high),
        )
        return out

    def _laid_out(self, batch: int, size: tuple[int, int]) -> Geometry:
        kept = self._geometry
        if kept is None or kept.batch != batch or kept.size != size:
            self._geometry = kept = geometry(self._as_images, batch, size)
        return kept

    def dense(self) -> Floats:
        """The weight, (rows, columns)."""
        return self.entries.dense()
