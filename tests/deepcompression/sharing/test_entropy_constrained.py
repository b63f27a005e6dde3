"""Entropy-constrained codebooks against brute force, k-means and their own definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcompression.errors import StructureError
from deepcompression.sharing.entropy_constrained import RateBook, rate_codebook
from deepcompression.sharing.kmeans import kmeans1d


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


def cost_of(book: RateBook, values: np.ndarray, rate: float) -> float:
    codes = book.codes(values)
    return float(((values - book.levels[codes]) ** 2).sum() + rate * np.mean(values**2) * book.bits[codes].sum())


def test_levels_move_little_with_weights_that_move_little():
    """From the codebook before, levels follow the values; drawn afresh they would jump between equally good minima."""
    rng, values, rate = np.random.default_rng(0), laplace(300, least=0.3), 0.005
    near = far = first = rate_codebook(values, 8, rate=rate, elements=3000)
    jumps = {"near": 0.0, "far": 0.0}
    for _ in range(20):
        values = values + rng.normal(0, 0.02, len(values))
        before = near, far
        near = rate_codebook(values, 8, rate=rate, elements=3000, start=near)
        far = rate_codebook(values, 8, rate=rate, elements=3000)
        for name, old, new in zip(jumps, before, (near, far), strict=True):
            moved = np.abs(old.levels[old.codes(values)] - new.levels[new.codes(values)]).mean()
            jumps[name] = max(jumps[name], float(moved))
    assert jumps["near"] < 0.5 * jumps["far"]
    assert cost_of(near, values, rate) < 1.15 * cost_of(far, values, rate) and len(first.levels) == len(near.levels)


def test_a_bad_start_is_left():
    """Where the codebook before has become far worse than another, as after levels were lost, the other is taken."""
    values = laplace(1000, least=0.3)
    poor = rate_codebook(values, 2, rate=0.001, elements=5000)
    book = rate_codebook(values, 8, rate=0.001, elements=5000, start=poor)
    assert np.array_equal(book.levels, rate_codebook(values, 8, rate=0.001, elements=5000).levels)


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
    with pytest.raises(StructureError, match=r"rate 50\.0 would make every weight zero"):
        rate_codebook(laplace(100), 4, rate=50.0, elements=10_000)


def test_a_start_that_would_empty_a_tensor_is_left():
    """Code lengths of long ago may be too dear for today's weights, which another codebook suits."""
    values = laplace(100, least=0.3)
    dear = RateBook(np.array([-1.0, 0.0, 1.0]), np.array([-0.5, 0.5]), np.array([1e6, 0.0, 1e6]))
    book = rate_codebook(values, 4, rate=0.001, elements=200, start=dear)
    assert np.array_equal(book.levels, rate_codebook(values, 4, rate=0.001, elements=200).levels)


def test_magnitudes_far_apart_do_no_harm():
    """Values whose sums lose the small ones still give ascending levels."""
    book = rate_codebook([1e20, -1e20, 1e-3, 2e-3, -1e-3], 4, rate=0.0, elements=9)
    assert np.all(np.diff(book.levels) > 0)
