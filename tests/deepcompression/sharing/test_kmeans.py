"""One-dimensional k-means against scikit-learn and the exact optimum."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from deepcompression.errors import StructureError
from deepcompression.sharing import kmeans, optimal
from deepcompression.sharing.kmeans import kmeans1d

INITS = ["linear", "density", "random", "optimal"]


def pruned_laplace(n: int, seed: int = 0) -> np.ndarray:
    """Weights as a pruned layer has them: two tails with a gap around zero."""
    random = np.random.default_rng(seed)
    return ((random.exponential(0.02, n) + 0.05) * random.choice([-1, 1], n)).astype(np.float32)


def error_of(values: np.ndarray, book: kmeans.Codebook) -> float:
    return float(np.sum((values.astype(np.float64).ravel() - book.centroids[book.codes]) ** 2))


def exact_error(values: np.ndarray, k: int) -> float:
    """The least squared error by trying every way to cut the sorted values into k intervals."""
    ordered = np.sort(values.astype(np.float64))
    best = np.inf
    for cuts in combinations(range(1, len(ordered)), min(k, len(ordered)) - 1):
        best = min(best, sum(float(np.sum((g - g.mean()) ** 2)) for g in np.split(ordered, cuts)))
    return best


def optimum(values: np.ndarray, k: int) -> float:
    """The least squared error by the textbook dynamic programme over all sorted values, O(k n^2)."""
    x = np.sort(values.astype(np.float64))
    s, q = (np.concatenate([[0.0], np.cumsum(part)]) for part in (x, x**2))
    n = len(x)
    least = np.full(n + 1, np.inf)
    least[0] = 0
    for _ in range(k):
        new = np.full(n + 1, np.inf)
        for i in range(1, n + 1):
            j = np.arange(i)
            new[i] = np.min(least[:i] + q[i] - q[:i] - (s[i] - s[:i]) ** 2 / (i - j))
        least = new
    return float(least[n])


@pytest.mark.parametrize("k", [2, 16, 32])
@pytest.mark.parametrize("n", [3_000, 300_000])
def test_error_is_not_above_scikit_learns_from_the_same_start(n, k):
    """Our iteration must end at least as low as the reference, on sorted values and on bins."""
    values = pruned_laplace(n)
    start = np.linspace(values.min(), values.max(), k)[:, None]
    theirs = KMeans(k, init=start, n_init=1).fit(values[:, None].astype(np.float64))
    ours = kmeans1d(values, k, init="linear")
    assert ours.squared_error <= theirs.inertia_ * (1 + 1e-9)
    assert len(ours.centroids) == k


def test_without_empty_clusters_it_is_lloyds_very_iteration():
    """Where no cluster runs empty, scikit-learn run to its end gives the same centroids and codes."""
    values = np.random.default_rng(1).uniform(-1, 1, 5_000).astype(np.float32)
    start = np.linspace(values.min(), values.max(), 8)[:, None]
    theirs = KMeans(8, init=start, n_init=1, tol=0, max_iter=10_000).fit(values[:, None].astype(np.float64))
    ours = kmeans1d(values, 8, iterations=10_000)
    np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_.ravel(), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours.codes, theirs.labels_)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=11), st.integers(1, 5))
def test_optimal_is_the_exact_optimum_of_small_sets(numbers, k):
    """On few values `optimal` is compared with every possible way to cut them."""
    values = np.array(numbers, np.float32)
    book = kmeans1d(values, k, init="optimal")
    assert book.squared_error <= exact_error(values, k) + 1e-4


@pytest.mark.parametrize(("k", "slack"), [(4, 1.001), (16, 1.001), (64, 1.001), (256, 1.01)])
def test_optimal_is_near_the_optimum_of_binned_sets(k, slack, monkeypatch):
    """On bins and merged points it stays within 0.1 % (1 % at k = 256) of the exact programme."""
    monkeypatch.setattr(kmeans, "LARGE", 1)
    values = pruned_laplace(12_000)
    keys, counts = np.unique(values.astype(np.float64), return_counts=True)
    groups = optimal.best_groups(counts.astype(float), keys * counts, k)
    exact = sum(
        float(np.sum(c * (v - np.average(v, weights=c)) ** 2))
        for v, c in zip(np.split(keys, groups[1:]), np.split(counts, groups[1:]), strict=True)
    )
    assert exact <= kmeans1d(values, k, init="optimal").squared_error * (1 + 1e-6) <= exact * slack


@pytest.mark.parametrize("k", [1, 2, 7, 40])
def test_best_groups_equals_the_textbook_programme_with_and_without_numba(k, monkeypatch):
    """Both layers of the programme, compiled and numpy, give the same groups, and those of least error."""
    random = np.random.default_rng(k)
    keys, counts = np.sort(random.normal(size=60)), random.integers(1, 9, 60).astype(float)
    monkeypatch.setattr(optimal, "WORTH_CALLING", 0)
    monkeypatch.setattr(optimal, "WORTH_IMPORTING", 0)
    compiled = optimal.best_groups(counts, counts * keys, k)
    monkeypatch.setenv("DEEPCOMPRESSION_NO_NUMBA", "1")
    plain = optimal.best_groups(counts, counts * keys, k)
    np.testing.assert_array_equal(compiled, plain)
    single = np.repeat(keys, counts.astype(int))
    groups = np.split(np.arange(60), plain[1:])
    means = [np.average(keys[g], weights=counts[g]) for g in groups]
    error = sum(np.sum(counts[g] * (keys[g] - m) ** 2) for g, m in zip(groups, means, strict=True))
    assert error == pytest.approx(optimum(single, k), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("n", [500, 40_000])
def test_codes_are_the_nearest_centroids_and_the_error_is_theirs(init, n, monkeypatch):
    """Every value takes its nearest centroid, every centroid is in use, the stated error is the real one."""
    monkeypatch.setattr(kmeans, "LARGE", 10_000)
    values = pruned_laplace(n)
    book = kmeans1d(values, 19, init=init, seed=3)
    gaps = np.abs(values.astype(np.float64)[:, None] - book.centroids.astype(np.float64))
    np.testing.assert_array_equal(book.codes, gaps.argmin(1))
    np.testing.assert_array_equal(np.unique(book.codes), np.arange(19))
    assert book.codes.dtype == np.uint8 and book.centroids.dtype == np.float32
    assert np.all(np.diff(book.centroids) > 0)
    assert book.squared_error == pytest.approx(error_of(values, book), rel=1e-9)


def test_a_value_in_the_middle_takes_the_lower_centroid():
    """Ties have one documented rule, also where the middle is no float32."""
    book = kmeans1d(np.array([0, 0, 0, 2, 4, 4, 4], np.float32), 2, iterations=1)
    assert book.codes.tolist() == [0, 0, 0, 0, 1, 1, 1]
    one = np.float32(1)
    middle = np.array([one, np.nextafter(one, np.float32(2))], np.float32)
    assert kmeans.limits_of(middle).tolist() == [1.0, np.inf]


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("distinct", [1, 2, 15, 16])
def test_few_distinct_values_are_kept_exactly(init, distinct):
    """A layer that already has at most k values must come back bit for bit."""
    random = np.random.default_rng(0)
    book = np.unique(random.normal(size=distinct).astype(np.float32))
    values = book[random.integers(0, distinct, 1000)]
    made = kmeans1d(values, 16, init=init)
    np.testing.assert_array_equal(made.centroids[made.codes], values)
    np.testing.assert_array_equal(made.centroids, np.unique(values))
    assert made.squared_error == 0.0


@pytest.mark.parametrize("init", ["linear", "random"])
def test_empty_clusters_are_put_to_use(init):
    """An outlier leaves most of a linear start without values: all k centroids must serve in the end."""
    values = np.append(np.random.default_rng(0).normal(0, 0.01, 2_000), 100.0).astype(np.float32)
    book = kmeans1d(values, 16, init=init)
    assert len(book.centroids) == 16 and book.centroids[-1] == 100
    assert book.squared_error < 1.5 * kmeans1d(values, 16, init="optimal").squared_error


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize(
    "values",
    [
        np.array([], np.float32),
        np.array([3e38, -3e38, 1e38, 0, 1e-45, -1e-45], np.float32),
        np.array([1, 1 + 1e-7, 1 + 2e-7, 1 + 3e-7], np.float32),
        np.tile(np.array([1e-40, -1e-40, 2e-40], np.float32), 300),
        np.append(np.full(5000, 0.5), np.linspace(0, 1, 5000)),
        np.arange(24).reshape(2, 3, 4)[:, ::2].T,
    ],
)
def test_odd_sets_never_give_nan(init, values, monkeypatch):
    """Empty, extreme, crowded, subnormal and non-contiguous input: finite centroids, sound codes."""
    monkeypatch.setattr(kmeans, "LARGE", 1)
    if not values.size:
        monkeypatch.setattr(kmeans, "LARGE", 2)
    book = kmeans1d(values, 3, init=init)
    assert np.isfinite(book.centroids).all() and np.isfinite(book.squared_error)
    assert book.codes.shape == (values.size,) and len(book.centroids) <= 3
    assert book.squared_error == pytest.approx(error_of(values.astype(np.float32), book), rel=1e-6)


@pytest.mark.parametrize("init", INITS)
def test_sixteen_bits_are_possible(init):
    """Up to 65,536 centroids, codes as uint16; more values than centroids."""
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    book = kmeans1d(values, 65_536, init=init, iterations=3)
    assert book.codes.dtype == np.uint16 and 60_000 < len(book.centroids) <= 65_536
    assert book.squared_error == pytest.approx(error_of(values, book))


def test_random_start_follows_the_seed():
    """The same seed gives the same codebook, another one another."""
    values = pruned_laplace(2_000)
    one, two, other = (kmeans1d(values, 8, init="random", seed=s, iterations=2) for s in (1, 1, 2))
    np.testing.assert_array_equal(one.centroids, two.centroids)
    assert not np.array_equal(one.centroids, other.centroids)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"k": 0}, "k must be 1 to 65,536, got 0"),
        ({"k": 65_537}, "got 65537"),
        ({"k": 2, "init": "forgy"}, "linear, density, random, optimal"),
        ({"k": 2, "iterations": 0}, "iterations"),
        ({"k": 2, "values": [1.0, np.nan, np.inf]}, "2 of 3 are not"),
        ({"k": 2, "values": [1e300]}, "1 of 1 are not"),
    ],
)
def test_impossible_arguments_are_refused(arguments, words):
    """One line says which argument is wrong and what came."""
    with np.errstate(over="ignore"), pytest.raises(StructureError, match=words):
        kmeans1d(arguments.pop("values", [1.0, 2.0]), **arguments)
