"""Observers against loops over bins, written from the papers' sentences; and cases whose answer is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from deepcompression.network.edits.integers import levels, on_grid
from deepcompression.quantization.observers import OBSERVERS, bounds
from deepcompression.quantization.observers.histogram import Histogram
from deepcompression.quantization.observers.ranges import Grids, Wanted, grid, grids
from deepcompression.quantization.observers.search import best

SEARCHING = ("mse", "kl", "symmetric_kl", "kl_j", "js")


def histogram(value: Tensor) -> Histogram:
    seen = Histogram()
    seen.add(value)
    return seen


def values(kind: str, count: int = 600) -> Tensor:
    """Few enough for loops: ``signed`` has a long tail above, ``unsigned`` and ``below`` end at zero, many are zero."""
    made = torch.from_numpy(np.random.default_rng(0).gamma(0.7, 1.0, count)).float()
    made[::5] = 0.0
    made[1::3] *= -0.2 if kind == "signed" else 1.0
    return (-made if kind == "below" else made).view(30, -1)


def quantized(value: Tensor, low: float, high: float, wanted: Wanted, seen: Histogram) -> Tensor:
    """As the edit does it."""
    scale, zero = grid(low, high, wanted, seen)
    symmetric = wanted.scheme == "symmetric" and seen.signed
    ends = levels(wanted.bits, "symmetric" if symmetric else "asymmetric")
    return on_grid(value, torch.tensor(scale), torch.tensor(zero), *ends)


# ---------------------------------------------------------------- the oracle: plain loops


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def jeffreys(p: list[float], q: list[float]) -> float:
    return kl(p, q) + kl(q, p)


def jensen_shannon(p: list[float], q: list[float]) -> float:
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    return (kl(p, middle) + kl(q, middle)) / 2


def divergence(seen: Histogram, scale: float, low: int, high: int, of: Callable[..., float]) -> float:
    """Of the histogram cut at the ends, and of the one rounded: both over the bins that have values."""
    middles, mass = (one.tolist() for one in seen.filled())
    cells: dict[int, list[int]] = {}
    for place, middle in enumerate(middles):
        if low <= (code := round(middle / scale)) <= high:  # Python's round is to even, too
            cells.setdefault(code, []).append(place)
    inside = sorted(place for some in cells.values() for place in some)
    if not inside:
        return math.inf
    p, q = {place: mass[place] for place in inside}, {}
    p[inside[0]] += sum(one for place, one in enumerate(mass) if round(middles[place] / scale) < low)
    p[inside[-1]] += sum(one for place, one in enumerate(mass) if round(middles[place] / scale) > high)
    for some in cells.values():
        q |= {place: sum(mass[one] for one in some) / len(some) for place in some}
    norm = [sum(one.values()) for one in (p, q)]
    return of([p[place] / norm[0] for place in inside], [q[place] / norm[1] for place in inside])


def squared(seen: Histogram, scale: float, low: int, high: int) -> float:
    """Each bin's values laid out evenly, far finer than the grid."""
    edges, mass = (one.numpy() for one in seen.used())
    parts = (np.arange(2000) + 0.5) / 2000
    total = 0.0
    for left, right, count in zip(edges[:-1], edges[1:], mass, strict=True):
        if count:
            laid = left + (right - left) * parts
            total += count * float(((laid - scale * np.clip(np.round(laid / scale), low, high)) ** 2).mean())
    return total / seen.number


def cumulative(mass: np.ndarray, within: float, points: int) -> float:
    """Of one side: the paper's algorithm with numpy's interpolation."""
    if not mass.any():
        return 0.0
    c = np.cumsum(mass / mass.sum())[: np.flatnonzero(mass)[-1] + 1]
    count = min(max(math.ceil(within - 1e-9), 0), len(c))
    cut, line = np.ones_like(c), np.ones_like(c)
    cut[: max(count - 1, 0)] = c[: max(count - 1, 0)]
    if count:
        places = np.linspace(0, count - 1, max(min(points, count), 2)) if count > 1 else np.zeros(1)
        line[:count] = np.interp(np.arange(count), places, np.interp(places, np.arange(count), cut[:count]))
    return float(((c - line) * np.log(np.maximum(c, 1e-6) / np.maximum(line, 1e-6))).sum())


def cumulatives(seen: Histogram, scale: float, low: int, high: int, symmetric: bool) -> float:
    below, above = (one.numpy() for one in seen.sides(2))
    width = 2 * seen.width
    if symmetric:
        return cumulative(below + above, high * scale / width, high + 1)
    total = (below + above).sum()
    sides = ((below, -low), (above, high))
    return sum(cumulative(mass, end * scale / width, end + 1) * mass.sum() / total for mass, end in sides)


def oracle(name: str, seen: Histogram, scale: float, low: int, high: int, symmetric: bool) -> float:
    if name == "mse":
        return squared(seen, scale, low, high)
    if name == "kl_j":
        return cumulatives(seen, scale, low, high, symmetric)
    of = {"kl": kl, "symmetric_kl": jeffreys, "js": jensen_shannon}[name]
    return divergence(seen, scale, low, high, of)


# ---------------------------------------------------------------- scores, search


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("kind", ["signed", "unsigned", "below"])
@pytest.mark.parametrize("name", SEARCHING)
def test_scores_are_those_of_loops(name: str, kind: str, scheme: str) -> None:
    """A grid each of many ranges, one without any bin in it; ties and cut ends included."""
    seen, wanted = histogram(values(kind, 300)), Wanted(3, scheme)
    low = torch.tensor([1.0, 0.5, 0.1, 0.3, 1.0, 1e-6], dtype=torch.float64) * min(seen.least, 0)
    high = torch.tensor([1.0, 0.5, 0.3, 0.1, 0.01, 1e-6], dtype=torch.float64) * max(seen.most, 0)
    some = grids(low, high, wanted, seen.signed)
    scores = import_module(OBSERVERS[name]).score(seen, some)
    symmetric = scheme == "symmetric" and seen.signed
    for place, (scale, _, first, last) in enumerate(zip(*(one.tolist() for one in some), strict=True)):
        expected = oracle(name, seen, scale, int(first), int(last), symmetric)
        assert float(scores[place]) == pytest.approx(expected, rel=1e-4, abs=1e-9), place


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("kind", ["signed", "unsigned", "below"])
@pytest.mark.parametrize("name", SEARCHING)
def test_the_search_finds_the_best(name: str, kind: str, scheme: str) -> None:
    """No range of all of the first round has a lower score; what is found is not below zero where nothing is."""
    seen, wanted = histogram(values(kind)), Wanted(4, scheme, steps=8)
    score = import_module(OBSERVERS[name]).score
    low, high = bounds(name, seen, wanted)
    assert seen.least - 1e-9 <= low <= 0 or scheme == "symmetric"
    assert high >= 0
    assert low == 0 or seen.signed
    ends = [(i, j) for i in range(9) for j in range(9) if i + j]
    ends = ends if scheme == "asymmetric" else [(j, j) for j in range(1, 9)]
    most = max(seen.most, -seen.least)
    tops = (min(seen.least, 0), max(seen.most, 0)) if scheme == "asymmetric" else (-most * seen.signed, most)
    lows, highs = (torch.tensor([end[side] for end in ends]).double() * tops[side] / 8 for side in (0, 1))
    sound = highs > lows
    scores = score(seen, grids(lows[sound], highs[sound], wanted, seen.signed))
    found = score(seen, grids(*(torch.tensor([one], dtype=torch.float64) for one in (low, high)), wanted, seen.signed))
    assert float(found) <= float(scores.min()) * (1 + 1e-9) + 1e-12


def test_steps_are_a_space_that_is_all_looked_at() -> None:
    """Every pair of ends once in each round, then as many between the neighbours of the best; ties go to the widest."""
    seen, tried = histogram(values("signed")), []

    def score(_: Histogram, some: Grids) -> Tensor:
        tried.append(some)
        return torch.zeros_like(some.scale)

    assert best(seen, Wanted(8, "asymmetric", steps=5), score) == pytest.approx((seen.least, seen.most))
    assert sum(len(some.scale) for some in tried) == 2 * 6 * 6
    tried.clear()
    assert best(seen, Wanted(8, "symmetric", steps=5), score) == pytest.approx((-seen.most, seen.most))
    assert sum(len(some.scale) for some in tried) == 2 * 6


@pytest.mark.parametrize("bits", [4, 8])
def test_a_pair_of_ends_beats_one_threshold_where_values_are_skewed(bits: int) -> None:
    """A long tail above zero, little below: both ends looked for have less than half the error of a threshold, and less
    than the whole range has.
    """
    value = values("signed", 60_000)
    seen = histogram(value)
    found = {}
    for name, scheme in (("mse", "symmetric"), ("mse", "asymmetric"), ("minmax", "asymmetric")):
        wanted = Wanted(bits, scheme)
        found[name, scheme] = float(
            (quantized(value, *bounds(name, seen, wanted), wanted, seen) - value).square().mean()
        )
    assert found["mse", "asymmetric"] < found["mse", "symmetric"] / 2
    assert found["mse", "asymmetric"] < found["minmax", "asymmetric"]


# ---------------------------------------------------------------- closed cases


def test_ranges_that_are_known() -> None:
    """minmax is exact; the percentile is numpy's within a bin; a moving average of equal samples is theirs."""
    value = values("signed", 6000)
    seen = histogram(value)
    assert bounds("minmax", seen, Wanted(8, "asymmetric")) == (float(value.min()), float(value.max()))
    for percentile in (90.0, 99.0, 99.9, 100.0):
        wanted = Wanted(8, "asymmetric", percentile)
        plain, inner = value.double().numpy().ravel(), bounds("percentile", seen, wanted)
        expected = np.quantile(plain, [1 - percentile / 100, percentile / 100], method="inverted_cdf")
        assert np.abs(np.array(inner) - expected).max() <= 2 * seen.width, percentile
        _, end = bounds("percentile", seen, Wanted(8, "symmetric", percentile))
        assert end == pytest.approx(
            np.quantile(np.abs(plain), percentile / 100, method="inverted_cdf"), abs=2 * seen.width
        )
    same = histogram(value[:1].expand(5, -1))
    assert bounds("moving_average", same, Wanted(8, "asymmetric")) == pytest.approx(
        bounds("minmax", same, Wanted(8, "symmetric"))
    )


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", OBSERVERS)
def test_values_on_a_grid_stay(name: str, scheme: str) -> None:
    """Of values that are integers times a scale, evenly spread, no observer cuts any but kl_j, which draws a line
    through them; zeros alone have a scale of 1.
    """
    value = torch.arange(16).repeat(40, 1) / 8.0
    seen, wanted = histogram(value), Wanted(4, scheme)
    after = quantized(value, *bounds(name, seen, wanted), wanted, seen)
    assert torch.allclose(after, value, atol=0.2 if name == "kl_j" else 2 * seen.width)
    zeros = histogram(torch.zeros(3, 3))
    assert grid(*bounds(name, zeros, wanted), wanted, zeros) == (1.0, 0)


@pytest.mark.parametrize("name", SEARCHING)
def test_more_bits_cut_less(name: str) -> None:
    """The finer the grid, the less is gained by cutting."""
    seen = histogram(values("unsigned", 30_000))
    found = [bounds(name, seen, Wanted(bits, "asymmetric"))[1] for bits in (3, 5, 8)]
    assert found[0] <= min(found[1:])
    assert max(found) <= seen.most


# ---------------------------------------------------------------- zero


@pytest.mark.parametrize("bits", [2, 3, 8, 16])
def test_zero_is_an_integer_and_nothing_of_the_range_is_cut(bits: int) -> None:
    """NNCF's rule: the range only grows, at one end, by the wider of the two ways; the scale is what is left of it."""
    draw = np.random.default_rng(bits)
    low, high = -draw.gamma(0.5, 1, 200), draw.gamma(0.5, 1, 200)
    low[:5], high[5:10] = 0.0, 0.0
    some: Any = grids(torch.from_numpy(low), torch.from_numpy(high), Wanted(bits, "asymmetric"), signed=True)
    last = 2**bits - 1
    for one in range(200):
        scale, zero = float(some.scale[one]), int(some.zero_point[one])
        assert 0 <= zero <= last
        assert (-zero, last - zero) == (some.low[one], some.high[one])
        if 0 < zero < last:
            ends = [(low[one], low[one] * (zero - last) / zero), (high[one] * zero / (zero - last), high[one])]
            first, second = max(ends, key=lambda end: end[1] - end[0])
            assert scale == pytest.approx((second - first) / last)
            assert -zero * scale <= low[one] + 1e-9
            assert (last - zero) * scale >= high[one] - 1e-9
        else:
            assert scale == pytest.approx((high[one] - low[one]) / last)


def test_scales_are_never_too_small() -> None:
    """Of the least magnitudes that float32 has, the scale is still above zero; of nothing it is 1."""
    seen = histogram(torch.tensor([[-1e-45, 1e-45]]))
    for scheme in ("symmetric", "asymmetric"):
        for name in OBSERVERS:
            scale, _ = grid(*bounds(name, seen, Wanted(8, scheme)), Wanted(8, scheme), seen)
            assert scale >= torch.finfo(torch.float32).tiny
