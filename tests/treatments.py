"""Tensors of any floating type, and what a treatment makes of them."""

from __future__ import annotations

import numpy as np

from deepcompression.codec.dtypes import RawTensor, to_array, unsigned
from deepcompression.datafree.tensor import Loss, treated
from deepcompression.datafree.treatment import Treatment
from deepcompression.structure.counted import counted, narrowed, values_of


def tensor(dtype: str, seed: int, size: int, scale: float = 1.0, distinct: int | None = None) -> RawTensor:
    """Finite values of a Laplace distribution, zeros and ties among them."""
    random = np.random.default_rng(seed)
    wide = random.laplace(size=size).astype(np.float32) * np.float32(scale)
    if distinct is not None:
        wide = np.round(wide * distinct / 4) / np.float32(distinct / 4)
    if dtype in ("float32", "float64", "float16"):
        array = wide.astype(dtype)
        return RawTensor(array.view(unsigned(dtype)), dtype)
    known = np.flatnonzero(np.isfinite(values_of(dtype)))
    order = known[np.argsort(values_of(dtype)[known], kind="stable")]
    near = np.clip(np.searchsorted(values_of(dtype)[order], wide), 0, len(order) - 1)
    return RawTensor(order[near].astype(unsigned(dtype)), dtype)


def done(raw: RawTensor, treatment: Treatment, threads: int = 1) -> tuple[np.ndarray, np.ndarray, Loss]:
    """Values before and after, float64, and the loss."""
    made, loss = treated(raw, treatment, counted(narrowed(raw), raw.dtype), threads)
    assert made.dtype == raw.dtype and made.bits.shape == raw.bits.shape
    before, after = (to_array(one.bits, one.dtype).astype(np.float64) for one in (raw, made))
    return before, after, loss
