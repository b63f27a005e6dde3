"""scikit-learn's k-means, a reference that a recipe can choose: it is slower, and may end above ``kmeans1d``."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from deepcompression.errors import StructureError
from deepcompression.sharing.kmeans import Codebook, Init
from deepcompression.sharing.nearest import nearest

STARTS = ("linear", "density", "random")


def sklearn_kmeans(values: ArrayLike, k: int, *, init: Init = "linear", seed: int = 0) -> Codebook:
    """The codebook of ``sklearn.cluster.KMeans`` (Lloyd, one start, its own tolerance and number of iterations).

    Args:
        values: any finite real array, read flat, as float32.
        k: number of centroids; where there are fewer distinct values, these are the centroids.
        init: ``linear`` (evenly between minimum and maximum), ``density`` (evenly in the cumulative distribution) or
            ``random`` (scikit-learn's own drawing).
        seed: of ``random``.

    Raises:
        StructureError: ``optimal`` is no start of scikit-learn's.
    """
    from sklearn.cluster import KMeans

    if init not in STARTS:
        raise StructureError(f"solver: sklearn goes with init: {', '.join(STARTS)}; not {init}")
    flat = np.asarray(values, np.float32).ravel()
    distinct = np.unique(flat)
    if len(distinct) <= k:
        return nearest(flat, distinct)
    start: Any = "random"
    if init == "linear":
        start = np.linspace(flat.min(), flat.max(), k)[:, None]
    elif init == "density":
        start = np.quantile(flat, (np.arange(k) + 0.5) / k)[:, None]
    found = KMeans(k, init=start, n_init=1, random_state=seed).fit(flat[:, None].astype(np.float64))
    return nearest(flat, found.cluster_centers_)
