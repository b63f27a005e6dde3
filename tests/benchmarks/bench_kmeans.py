"""One-dimensional k-means against scikit-learn, same start, on the weights of a pruned AlexNet fc6.

`python tests/benchmarks/bench_kmeans.py`. Of 37.7 million Laplace weights the 9 % of largest magnitude are
clustered. Times are medians of five runs, scikit-learn's of one; the optimum is searched on a sample.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.cluster import KMeans

from deepcompression.sharing.kmeans import kmeans1d
from deepcompression.sharing.optimal import best_groups


def milliseconds(call: Callable[[], Any], runs: int) -> float:
    """The median of `runs` timings of `call`."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def pruned_weights(count: int, density: float = 0.09) -> np.ndarray:
    """The weights of largest magnitude of a Laplace-distributed layer, float32."""
    weights = np.random.default_rng(0).laplace(0, 0.02, count).astype(np.float32)
    kept = round(count * density)
    return weights[np.abs(weights) >= np.partition(np.abs(weights), -kept)[-kept]]


def exact_error(values: np.ndarray, k: int) -> float:
    """The least squared error of k clusters, by dynamic programming over all distinct values."""
    keys, counts = np.unique(values.astype(np.float64), return_counts=True)
    starts = best_groups(counts.astype(float), keys * counts, k)
    groups = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(keys)))
    means = np.bincount(groups, keys * counts) / np.bincount(groups, counts)
    return float(np.sum(counts * (keys - means[groups]) ** 2))


def main() -> None:
    """Prints time and squared error for each k and start, the gap to the optimum, and the rival's time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=37_748_736, help="weights of the dense layer")
    parser.add_argument("--rival", type=int, default=32, help="the k that scikit-learn is timed for; 0: none")
    parser.add_argument("--sample", type=int, default=300_000, help="values compared with the optimum")
    options = parser.parse_args()
    values = pruned_weights(options.count)
    print(f"{len(values):,} values")
    for k in (16, 32, 64, 256):
        for init in ("linear", "density", "random", "optimal"):
            book = kmeans1d(values, k, init=init)
            spent = milliseconds(lambda k=k, init=init: kmeans1d(values, k, init=init), 5)
            print(f"k {k:4}  {init:8} {spent:8.1f} ms   squared error {book.squared_error:.6f}", flush=True)
    sample = values[: options.sample]
    for k in (16, 32, 64, 256):
        excess = kmeans1d(sample, k, init="optimal").squared_error / exact_error(sample, k) - 1
        print(f"k {k:4}  optimal on {len(sample):,} values: {excess:+.4%} above the exact optimum", flush=True)
    if options.rival:
        k = options.rival
        start = np.linspace(values.min(), values.max(), k)[:, None]
        ours = milliseconds(lambda: kmeans1d(values, k), 5)
        rival = KMeans(k, init=start, n_init=1)
        theirs = milliseconds(lambda: rival.fit(values[:, None]), 1)
        error = kmeans1d(values, k).squared_error
        print(f"k {k}, linear: scikit-learn {theirs:,.0f} ms, ours {ours:.1f} ms, {theirs / ours:.0f} x")
        print(f"squared error: scikit-learn {rival.inertia_:.6f}, ours {error:.6f}")


if __name__ == "__main__":
    main()
