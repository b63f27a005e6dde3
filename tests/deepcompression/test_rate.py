"""Entropy-constrained codebooks against brute force, k-means and their own definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcompression.errors import StructureError
from deepcompression.kmeans import kmeans1d
from deepcompression.rate import rate_codebook


def laplace(count: int, seed: int = 0, least: float = 0.0) -> np.ndarray:
    values = np.random.default_rng(seed).laplace(size=count)
    return values[np.abs(values) > least]


def bytes_and_error(values: np.ndarray, drawn: np.ndarray, elements: int) -> tuple[float, float]:
    """Ideal order-0 bytes of all elements, zeros too, and the squared error."""
    whole = np.concatenate([drawn, np.zeros(elements - len(values))])
    counts = np.unique(whole, return_counts=True)[1]
    return float((counts * np.log2(len(whole) / counts)).sum()) / 8, float(((values - drawn) ** 2).sum())


def test_without_a_rate_it_is_k_means():
    """A rate of 0 gives the centroids of k-means, and prunes nothing that is not nearer to zero."""
    values = laplace(5000, least=1.0)
    book = rate_codebook(values, 8, rate=0.0, elements=20_000)
    wanted = kmeans1d(values, 8, init="optimal").centroids
    assert np.allclose(book.levels[book.levels != 0], wanted, rtol=1e-3)
    assert (book.levels[book.codes(values)] != 0).all()


def test_a_higher_rate_costs_fewer_bits_and_more_error():
    """Along the rate, coded bytes fall and the error rises, and small weights are pruned in the end."""
    values, elements = laplace(20_000, least=0.5), 100_000
    points = []
    for rate in (0.0, 0.003, 0.01, 0.03, 0.1):
        book = rate_codebook(values, 16, rate=rate, elements=elements)
        points.append(bytes_and_error(values, book.levels[book.codes(values)], elements))
    sizes, errors = zip(*points, strict=True)
    assert list(sizes) == sorted(sizes, reverse=True) and sizes[-1] < 0.6 * sizes[0]
    assert list(errors) == sorted(errors)


def test_its_trade_is_better_than_pruning_and_k_means():
    """At the bytes that it takes, no density and number of centroids of pruning and k-means has less error."""
    values, elements = laplace(20_000), 100_000
    book = rate_codebook(values, 16, rate=0.03, elements=elements)
    size, error = bytes_and_error(values, book.levels[book.codes(values)], elements)
    for keep in np.linspace(0.02, 1.0, 30):
        kept = np.abs(values) >= np.quantile(np.abs(values), 1 - keep)
        for k in (2, 3, 4, 6, 8, 12, 16):
            drawn = np.where(kept, values, 0)
            shared = kmeans1d(values[kept], k, init="optimal")
            drawn[kept] = shared.centroids[shared.codes]
            other_size, other_error = bytes_and_error(values, drawn, elements)
            assert other_size > size or other_error > error


@settings(deadline=None)
@given(
    st.lists(st.floats(-4, 4).filter(lambda x: abs(x) > 0.01), min_size=1, max_size=60),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.01, 0.05]),
    st.integers(0, 100),
)
def test_every_value_takes_its_cheapest_level(values: list[float], k: int, rate: float, zeros: int):
    """Codes by thresholds are those of trying every level: the envelope of lines is right."""
    array = np.array(values)
    try:
        book = rate_codebook(array, k, rate=rate, elements=len(array) + zeros)
    except StructureError:
        return
    weight = rate * np.mean(array**2)
    costs = (array[:, None] - book.levels) ** 2 + weight * book.bits
    mine = np.take_along_axis(costs, book.codes(array)[:, None], axis=1)[:, 0]
    assert np.all(mine <= costs.min(axis=1) + 1e-9)
    assert np.all(np.diff(book.levels) > 0) and len(book.thresholds) == len(book.levels) - 1
    assert np.count_nonzero(book.levels) <= k


@pytest.mark.parametrize(
    ("values", "rate", "elements", "message"),
    [
        ([1.0], -0.1, 1, "rate -0.1"),
        ([], 0.0, 3, "0 values"),
        ([1.0, 2.0], 0.0, 1, "2 values of 1"),
        ([1.0], np.nan, 2, "nan"),
    ],
)
def test_bad_input_is_named(values: list[float], rate: float, elements: int, message: str):
    """A negative rate, nothing to share and impossible counts are refused."""
    with pytest.raises(StructureError, match=message):
        rate_codebook(values, 2, rate=rate, elements=elements)


def test_a_tensor_is_never_emptied():
    """A rate at which nothing would be left is an error, not an empty layer."""
    with pytest.raises(StructureError, match="every weight zero"):
        rate_codebook(laplace(100), 4, rate=50.0, elements=10_000)


def test_magnitudes_far_apart_do_no_harm():
    """Values whose sums lose the small ones still give ascending levels."""
    book = rate_codebook([1e20, -1e20, 1e-3, 2e-3, -1e-3], 4, rate=0.0, elements=9)
    assert np.all(np.diff(book.levels) > 0)
