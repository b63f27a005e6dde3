"""Paired comparisons against integers, R's PropCIs and a closed form."""

from __future__ import annotations

import sys
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from deepcompression.measure import significance
from deepcompression.measure.significance import Comparison, compare, interval, mcnemar, sentence


def exact(broken: int, mended: int) -> float:
    """The oracle: twice the share of all outcomes of fair coins that are as uneven, in integers."""
    count, term, total = broken + mended, 1, 0
    for k in range(min(broken, mended) + 1):
        total += term
        term = term * (count - k) // (k + 1)
    return min(2 * total / 2**count, 1.0)


counts = st.tuples(*(st.integers(0, 60) for _ in range(4))).filter(any)


def scores(right: int, broken: int, mended: int, wrong: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Samples that stay right, break, are mended, stay wrong; in an order of their own."""
    before = np.repeat([True, True, False, False], [right, broken, mended, wrong])
    after = np.repeat([True, False, True, False], [right, broken, mended, wrong])
    order = np.random.default_rng(0).permutation(len(before))
    return before[order], after[order]


def of(broken: int, mended: int, total: int) -> Comparison:
    return compare(*scores(total - broken - mended, broken, mended, 0))


@given(counts)
def test_counts_p_and_interval_of_any_table(table: tuple[int, int, int, int]) -> None:
    """What broke and what was mended is counted, p is the binomial's, the interval is legal and holds the estimate."""
    found, (_, broken, mended, _) = compare(*scores(*table)), table
    assert (found.total, found.broken, found.mended) == (sum(table), broken, mended)
    assert found.difference == (broken - mended) / sum(table)
    assert -1 <= found.low <= found.difference <= found.high <= 1 and found.low < found.high
    assert 0 < found.p_value <= 1 and found.p_value == pytest.approx(exact(broken, mended), rel=1e-10)


@given(counts)
def test_swapped_models_mirror_everything(table: tuple[int, int, int, int]) -> None:
    """Which of the two is called the first decides signs and nothing else."""
    before, after = scores(*table)
    one, other = compare(before, after), compare(after, before)
    assert (one.broken, one.mended, one.difference) == (other.mended, other.broken, -other.difference)
    assert (one.low, one.high, one.p_value) == (-other.high, -other.low, other.p_value)


@pytest.mark.parametrize(
    ("broken", "mended"), [(1, 0), (5, 0), (0, 40), (31, 12), (5000, 5100), (2600, 2400), (26_000, 25_000)]
)
def test_p_is_exact_for_thousands_of_pairs(broken: int, mended: int) -> None:
    """Exact in the sense of the binomial, from one pair to as many as ImageNet's validation can give."""
    assert mcnemar(broken, mended) == pytest.approx(exact(broken, mended), rel=1e-10)


def test_p_is_never_nothing() -> None:
    """Even where the truth is smaller than any float, a p of 0 would be a lie."""
    assert mcnemar(0, 5000) == sys.float_info.min


@pytest.mark.parametrize(
    ("broken", "mended", "total", "confidence", "low", "high"),
    [(20, 60, 1000, 0.95, -0.0584, -0.0231), (60, 20, 1000, 0.95, 0.0231, 0.0584), (28, 25, 618, 0.9, -0.0148, 0.0247)],
)
def test_interval_is_that_of_propcis(
    broken: int, mended: int, total: int, confidence: float, low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What R's PropCIs 0.3-0 prints: scoreci.mp(60, 20, 1000), (20, 60, 1000) and, at 90 %, (25, 28, 618)."""
    monkeypatch.setattr(significance, "CONFIDENCE", confidence)
    found = of(broken, mended, total)
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


def _closed_form(broken: int, mended: int, total: int) -> NDArray[Any]:
    """Tango's limits as the outer roots of a quartic: Yang, Sun and Hardin, Statistics in Medicine 32, 2013."""
    g, d, s, n = NormalDist().inv_cdf(0.975) ** 2, broken - mended, broken + mended, total
    quartic = [
        n**2 * (n / g + 1) ** 2,
        -n * d * (n / g + 1) * (4 * n / g + 1),
        2 * n * d**2 * (3 * n / g + 2) / g - n**2 * (s / g + 1),
        n * d * (2 * s / g + 1) - d**3 * (4 * n / g + 1) / g,
        d**2 * (d**2 / g - s) / g,
    ]
    roots = np.roots(quartic)
    return np.sort(roots[abs(roots.imag) < 1e-6].real)


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 100_000))
def test_interval_is_the_closed_form_s(broken: int, mended: int, unchanged: int) -> None:
    """The search finds what algebra finds."""
    total = broken + mended + unchanged
    found, roots = of(broken, mended, total), _closed_form(broken, mended, total)
    assert (found.low, found.high) == pytest.approx((roots[0], roots[-1]), abs=1e-6)


@pytest.mark.parametrize(("broken", "mended", "total"), [(0, 0, 1), (0, 0, 10_000), (5, 0, 5), (0, 1, 1)])
def test_nothing_and_everything_changed(broken: int, mended: int, total: int) -> None:
    """No difference seen is no proof of none, and a limit stays where a difference can be."""
    found = of(broken, mended, total)
    assert -1 <= found.low < found.high <= 1
    assert found.high == (1 if broken == total else pytest.approx(-found.low if broken == mended else found.high))


def test_interval_covers_what_it_promises() -> None:
    """Of 4,000 experiments with a known difference of 1 point, the interval holds it in 93 to 97 %."""
    random = np.random.default_rng(0)
    drawn = random.multinomial(1000, [0.94, 0.02, 0.01, 0.03], 4000)
    found = [of(broken, mended, 1000) for _, broken, mended, _ in drawn]
    assert 0.93 < np.mean([one.low <= 0.01 <= one.high for one in found]) < 0.97


@pytest.mark.parametrize(
    ("broken", "mended", "total", "told"),
    [
        (0, 0, 360, "as many errors as before"),
        (1200, 1200, 10_000, "as many errors as before (1,200 new ones, 1,200 old ones gone)"),
        (1, 0, 360, "1 more error in 360; could be chance, p = 1"),
        (0, 1, 360, "1 fewer error in 360; could be chance, p = 1"),
        (52, 40, 10_000, "12 more errors in 10,000; could be chance, p = 0.25"),
        (22, 53, 10_000, "31 fewer errors in 10,000; hardly chance, p = 0.00045"),
        (2000, 500, 50_000, "1,500 more errors in 50,000; hardly chance, p < 0.0001"),
    ],
)
def test_sentence_in_plain_words(broken: int, mended: int, total: int, told: str) -> None:
    """A reader who knows no statistics learns how many, which way, and whether to believe it."""
    assert sentence(of(broken, mended, total)) == told


def test_points_have_signs_and_no_negative_zero() -> None:
    """The difference and its interval in percentage points."""
    made = replace(of(0, 0, 10_000), difference=-0.000001)
    assert interval(made) == "+0.00 points, 95 % interval -0.04 to +0.04"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (np.ones(3, bool), np.ones(2, bool)),
        (np.ones(2), np.ones(2)),
        (np.ones(0, bool),) * 2,
        (np.ones((1, 1), bool),) * 2,
    ],
)
def test_what_is_no_pair_of_scores_is_refused(before: Any, after: Any) -> None:
    """Lengths, types and shapes that cannot be compared are named, not broadcast."""
    with pytest.raises(ValueError, match="expected one bool a sample"):
        compare(before, after)
