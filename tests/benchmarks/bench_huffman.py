"""Huffman coding against dahuffman, on the same skewed symbols and one core.

`python tests/benchmarks/bench_huffman.py`. Speeds are in million symbols a second, the best of a few runs;
dahuffman is timed on the first million symbols.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from dahuffman.huffmancodec import HuffmanCodec

from deepcompression import coders
from deepcompression.bits import Cursor


def best_seconds(call: Callable[[], Any], runs: int) -> float:
    """The shortest of `runs` timings of `call`."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def compare(k: int, n: int, slow: int) -> None:
    """Print one line for `n` symbols of an alphabet of `k`, with frequencies as k-means leaves them."""
    random = np.random.default_rng(0)
    centred = np.rint(random.laplace(scale=k / 10, size=n) + k / 2)
    symbols = np.clip(centred, 0, k - 1).astype(np.uint8)
    plan = coders.plan(np.bincount(symbols, minlength=k), "huffman")
    description, coded = coders.encode(symbols, k, plan.lengths)
    file = description + coded

    def decode() -> np.ndarray:
        return coders.decode(Cursor(file, "bench"), n, k, huffman=True)[0]

    assert np.array_equal(decode(), symbols)
    ours = best_seconds(lambda: coders.encode(symbols, k, plan.lengths), 5), best_seconds(decode, 5)
    part = symbols[:slow].tolist()
    codec = HuffmanCodec.from_frequencies(dict(enumerate(np.bincount(symbols, minlength=k).tolist())))
    theirs_coded = codec.encode(part)
    theirs = best_seconds(lambda: codec.encode(part), 2), best_seconds(lambda: codec.decode(theirs_coded), 2)
    head = sum(map(len, coders.encode(symbols[:slow], k, plan.lengths)))
    speeds = [n / seconds / 1e6 for seconds in ours] + [slow / seconds / 1e6 for seconds in theirs]
    print(
        f"k={k:3}  encode {speeds[0]:6.0f} against {speeds[2]:5.2f}: {speeds[0] / speeds[2]:5.0f}x   "
        f"decode {speeds[1]:6.0f} against {speeds[3]:5.2f}: {speeds[1] / speeds[3]:5.0f}x   "
        f"bytes {head / len(theirs_coded):.4f}x"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--symbols", type=int, default=10_000_000)
    parser.add_argument("--dahuffman-symbols", type=int, default=1_000_000)
    options = parser.parse_args()
    for alphabet in (16, 32, 256):
        compare(alphabet, options.symbols, options.dahuffman_symbols)
