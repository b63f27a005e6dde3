"""What a tensor costs in the file at a density and a number of bits: pruned, shared and encoded, not estimated."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepcompression.codec import encoder
from deepcompression.errors import StructureError
from deepcompression.sharing.kmeans import kmeans1d

Floats = NDArray[np.float64]
Weights = NDArray[np.float32]
BLOCK = 1 << 20
DENSITY_KNOTS, BITS_KNOTS = 5, 4


def price(weights: ArrayLike, density: float, bits: int, coder: str) -> int:
    """Bytes of a tensor that is pruned by magnitude to a density and then shared by 2**bits float16 values.

    Of a tensor with more than 2**20 weights (about a million) the rows in its middle that hold so many are pruned,
    shared and encoded, and their bytes scaled up, all but the codebook's: right as far as those rows are like the
    others.

    Args:
        weights: float32, any shape, finite.
        density: fraction of the weights that stays, in (0, 1], as ``prune`` counts it; zeros stay zeros.
        bits: 1 to 16.
        coder: as of ``io.encode``.

    Raises:
        StructureError: an impossible density or number of bits, or a weight that is not finite.
    """
    _check([density], [bits])
    whole = np.ascontiguousarray(weights, np.float32)
    part = _block(whole)
    coder = encoder.settled(coder, whole.size)
    flat, distinct = _compressed(part, density, bits)
    size = len(encoder.encode_tensor(flat.view(np.uint32), "float32", part.shape, coder))
    # Where values hardly repeat they are stored as they are, and grow with the tensor.
    book = 2 * distinct if np.count_nonzero(flat) >= 4 * distinct else 0
    return round((size - book) * whole.size / part.size) + book if part.size else 0


def prices(weights: ArrayLike, densities: Sequence[float], bits: Sequence[int], coder: str) -> NDArray[np.int64]:
    """Bytes (d, b) at all ``densities`` (d,) and ``bits`` (b,), of which at most 20 are encoded.

    These are the ends and what lies evenly between them. The others follow from how many times the bytes are what
    the entropy of positions, the codes and the codebook would take: that ratio changes little and is interpolated,
    in logarithms of itself and of the density. Errors are 1 to 3 % in the mean, up to 15 % in tensors of few weights.

    Args:
        weights: of a tensor.
        densities: shares of weights that stay.
        bits: of shared weights.
        coder: as of `encode`.

    Raises:
        StructureError: as ``price``.
    """
    _check(densities, bits)
    whole = np.ascontiguousarray(weights, np.float32)
    alive = int(np.count_nonzero(whole))
    ideal = np.array([[_ideal(whole.size, alive, density, width) for width in bits] for density in densities])
    across, down = np.asarray(bits, np.float64), np.log(densities)
    heights, widths = _knots(down, DENSITY_KNOTS), _knots(across, BITS_KNOTS)
    measured = np.array([[price(whole, densities[i], bits[j], coder) for j in widths] for i in heights], np.float64)
    ratio = np.log(np.maximum(measured, 1) / ideal[np.ix_(heights, widths)])
    ratio = np.stack([_between(down, heights, column) for column in ratio.T], axis=1)
    ratio = np.stack([_between(across, widths, row) for row in ratio])
    found: NDArray[np.int64] = np.rint(np.exp(ratio) * ideal).astype(np.int64)
    found[np.ix_(heights, widths)] = measured
    return found


def _check(densities: Sequence[float], bits: Sequence[int]) -> None:
    for density in densities:
        if not 0 < density <= 1:
            raise StructureError(f"price: density {density} is impossible; expected a fraction in (0, 1]")
    for width in bits:
        if not 1 <= width <= 16:
            raise StructureError(f"price: bits {width} is impossible; expected a whole number from 1 to 16")


def _block(weights: Weights) -> Weights:
    """Whole rows from the middle with about BLOCK weights; everything where that is more than there is."""
    if weights.size <= BLOCK:
        return weights
    rows = max(1, BLOCK * len(weights) // weights.size)
    first = (len(weights) - rows) // 2
    return weights[first : first + rows]


def _compressed(weights: Weights, density: float, bits: int) -> tuple[Weights, int]:
    """The weights (n,), flat, pruned and shared, and how many values they share."""
    flat = weights.reshape(-1)
    kept = _largest(flat, density)
    made = np.zeros_like(flat)
    if not kept.any():
        return made, 0
    book = kmeans1d(flat[kept], 2**bits, init="optimal")
    made[kept] = _rounded(book.centroids)[book.codes]
    return made, len(book.centroids)


def _largest(flat: Weights, density: float) -> NDArray[np.bool_]:
    """Where the largest magnitudes are, as many as the density says, zeros never; of equal ones the earlier."""
    count, magnitude = _count(flat.size, density), np.abs(flat)
    alive: NDArray[np.bool_] = flat != 0
    if count >= flat.size:
        return alive
    threshold = np.partition(magnitude, flat.size - count)[flat.size - count]
    kept: NDArray[np.bool_] = magnitude > threshold
    ties = np.flatnonzero(magnitude == threshold)
    kept[ties[: count - int(np.count_nonzero(kept))]] = True
    kept &= alive
    return kept


def _count(elements: int, density: float) -> int:
    return max(round(density * elements), 1)


def _rounded(centroids: Weights) -> Weights:
    """In float16, unless that makes one of them zero or infinite."""
    with np.errstate(over="ignore"):
        near = centroids.astype(np.float16).astype(np.float32)
    return near if near.all() and np.isfinite(near).all() else centroids


def _ideal(elements: int, alive: int, density: float, bits: int) -> float:
    """Bytes of positions at their entropy, codes of ``bits`` each, and a codebook or, if that is less, the values."""
    count = min(_count(elements, density), alive)
    part = count / elements if elements else 0.0
    entropy = sum(-p * math.log2(p) for p in (part, 1 - part) if p > 0)
    return elements * entropy / 8 + min(count * bits / 8 + 2 * (1 << bits), 2 * count) + 4


def _knots(axis: Floats, most: int) -> list[int]:
    """Places in ``axis`` (n,) of its ends and of what is nearest to even steps between them; at most so many."""
    steps = np.linspace(axis.min(), axis.max(), most)
    return sorted({int(np.argmin(np.abs(axis - step))) for step in steps})


def _between(axis: Floats, knots: Sequence[int], values: Floats) -> Floats:
    """``values`` (k,) at the places ``knots`` of ``axis`` (n,), interpolated to all of it."""
    order = np.argsort(axis[list(knots)])
    made: Floats = np.interp(axis, axis[list(knots)][order], values[order])
    return made
