"""Values that weights share, found by others than k-means of our own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.cluster import KMeans

from deepcompression.errors import StructureError
from deepcompression.sharing.kmeans import kmeans1d
from deepcompression.sharing.nearest import uniform
from deepcompression.sharing.share import share
from deepcompression.sharing.sklearn_kmeans import sklearn_kmeans
from tasks.stages.share import Settings

VALUES = np.random.default_rng(0).laplace(0, 0.1, 3000).astype(np.float32)


@pytest.mark.parametrize("init", ["linear", "density", "random"])
def test_scikit_learns_solution_is_taken_as_it_is(init: Any) -> None:
    """Its inertia, its centroids in order, each in use; the same again for the same seed."""
    book = sklearn_kmeans(VALUES, 16, init=init, seed=3)
    again = sklearn_kmeans(VALUES, 16, init=init, seed=3)
    assert np.array_equal(book.centroids, again.centroids) and len(np.unique(book.codes)) == len(book.centroids) <= 16
    assert book.squared_error == pytest.approx(
        float(np.square(VALUES - book.centroids[book.codes].astype(float)).sum())
    )
    if init == "linear":
        start = np.linspace(VALUES.min(), VALUES.max(), 16)[:, None]
        theirs = KMeans(16, init=start, n_init=1).fit(VALUES[:, None].astype(float))
        assert book.squared_error == pytest.approx(theirs.inertia_, rel=1e-3)
    assert sklearn_kmeans(VALUES[:5], 16, init=init).squared_error == 0
    with pytest.raises(StructureError, match="solver: sklearn goes with init: linear, density, random; not optimal"):
        sklearn_kmeans(VALUES, 4, init="optimal")


@pytest.mark.parametrize("k", [1, 2, 3, 16, 300])
def test_uniform_centroids_are_evenly_spaced(k: int) -> None:
    """Each weight takes its nearest of them; the error is at least that of k-means."""
    book = uniform(VALUES, k)
    low, high = float(VALUES.min()), float(VALUES.max())
    grid = np.linspace(low, high, k) if k > 1 else [(low + high) / 2]
    assert set(book.centroids) <= set(np.float32(grid))
    gaps = np.abs(VALUES[:, None].astype(float) - np.float32(grid)).min(1)
    assert book.squared_error == pytest.approx(float(np.square(gaps).sum()), rel=1e-6)
    assert book.squared_error >= kmeans1d(VALUES, k).squared_error


@pytest.mark.parametrize("solver", ["sklearn", "uniform"])
def test_zeros_stay_and_no_weight_becomes_zero(solver: Any) -> None:
    """As of our own k-means, with the same account."""
    weight = torch.from_numpy(VALUES.reshape(60, 50)).clone()
    weight[::3] = 0
    made = share({"w": weight}, {"w": 4}, solver=solver)
    assert torch.equal(made.state["w"] == 0, weight == 0) and len(made.layers[0].centroids) <= 16


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"solver": "sklearn", "rate": 0.1}, "solver: sklearn goes without rate and train"),
        ({"solver": "uniform", "train": {}}, "solver: uniform goes without rate and train"),
        ({"solver": "sklearn", "init": "optimal"}, "solver: sklearn does not go with init: optimal"),
    ],
)
def test_what_does_not_go_together_is_told(keys: dict[str, Any], told: str) -> None:
    """With the recipe, before anything trains."""
    with pytest.raises(ValidationError, match=told):
        Settings(stage="share", **keys)
