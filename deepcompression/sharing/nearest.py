"""Given centroids, which one each value takes; and evenly spaced ones, as a uniform lookup table has them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from deepcompression.sharing.kmeans import Codebook


def nearest(values: ArrayLike, centroids: ArrayLike) -> Codebook:
    """The codebook of those among ``centroids`` that a value takes: its nearest, in the middle the lower one.

    Args:
        values: any finite real array, read flat, as float32.
        centroids: finite, any order.
    """
    flat = np.asarray(values, np.float32).ravel()
    known = np.unique(np.asarray(centroids, np.float32))
    exact = known.astype(np.float64)
    found = np.searchsorted((exact[1:] + exact[:-1]) / 2, flat)
    used, codes = np.unique(found, return_inverse=True)
    error = float(np.square(flat - exact[found]).sum())
    return Codebook(known[used], codes.astype(np.uint8 if len(used) <= 256 else np.uint16), error)


def uniform(values: ArrayLike, k: int) -> Codebook:
    """At most ``k`` centroids, evenly between the least and the greatest value: k-means with a linear start, unmoved.

    Args:
        values: any finite real array, not empty, read flat, as float32.
        k: number of centroids, 1 or more; one alone lies in the middle.
    """
    flat = np.asarray(values, np.float32).ravel()
    low, high = float(flat.min()), float(flat.max())
    return nearest(flat, np.linspace(low, high, k) if k > 1 else [(low + high) / 2])
