"""k-means of many sets at once, held against k-means of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcompression.errors import StructureError
from deepcompression.sharing import kmeans_groups as module
from deepcompression.sharing.kmeans import kmeans1d
from deepcompression.sharing.kmeans_groups import kmeans_groups


@given(
    st.integers(0, 99),
    st.integers(1, 40),
    st.lists(st.integers(0, 90), max_size=9),
    st.sampled_from(["linear", "density", "random", "optimal"]),
)
@settings(max_examples=30, deadline=None)
def test_each_set_gets_what_it_would_get_alone(seed: int, k: int, sizes: list[int], init: Any) -> None:
    """Centroids, codes and errors are equal to the bit, for empty, short, constant and skewed sets side by side."""
    random = np.random.default_rng(seed)
    sets = [random.laplace(0, 0.1, size).round(int(random.integers(1, 9))).astype(np.float32) for size in sizes]
    for one, book in zip(sets, kmeans_groups(sets, k, init=init, seed=seed), strict=True):
        alone = kmeans1d(one, k, init=init, seed=seed)
        assert np.array_equal(book.centroids, alone.centroids) and np.array_equal(book.codes, alone.codes)
        assert book.squared_error == alone.squared_error and book.codes.dtype == alone.codes.dtype


def test_long_sets_and_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets that are worked on alone, or in several pieces, come back in their order."""
    sets = [np.random.default_rng(n).laplace(size=n).astype(np.float32) for n in (60, 300, 50, 80, 400, 70)]
    whole = kmeans_groups(sets, 8)
    monkeypatch.setattr(module, "LONG", 100)
    monkeypatch.setattr(module, "AT_ONCE", 150)
    parts = kmeans_groups(sets, 8)
    assert all(np.array_equal(one.centroids, other.centroids) for one, other in zip(whole, parts, strict=True))


@pytest.mark.parametrize(("values", "k"), [([np.nan, 1.0], 2), ([np.inf], 2), ([1.0], 0)])
def test_what_is_impossible_is_refused(values: list[float], k: int) -> None:
    """As by k-means of one set."""
    with pytest.raises(StructureError, match="kmeans1d"):
        kmeans_groups([np.ones(3, np.float32), np.array(values, np.float32)], k)
