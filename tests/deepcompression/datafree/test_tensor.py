"""Thresholds and codebooks from counts, against sorting and exact k-means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from treatments import done, tensor

from deepcompression.codec.dtypes import RawTensor
from deepcompression.datafree.tensor import treated
from deepcompression.datafree.treatment import Treatment, per_of
from deepcompression.sharing.kmeans import kmeans1d
from deepcompression.structure import counted as counting
from deepcompression.structure.counted import KINDS, counted


@given(
    dtype=st.sampled_from(sorted(KINDS)),
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 3000),
    density=st.floats(0.001, 1),
    distinct=st.sampled_from([None, 2, 8, 40]),
)
@settings(max_examples=60, deadline=None)
def test_density_is_exact_and_the_largest_stay(
    dtype: str, seed: int, size: int, density: float, distinct: int | None
) -> None:
    """round(density * n) weights stay, the largest ones, of equal ones the first: as sorting has it, in every type."""
    raw = tensor(dtype, seed, size, distinct=distinct)
    before, after, loss = done(raw, Treatment(density))
    magnitudes = np.abs(before.astype(np.float32))
    stay = min(max(round(density * size), 1), np.count_nonzero(magnitudes))
    ranked = np.argsort(-magnitudes, kind="stable")
    expected = np.zeros(size)
    expected[ranked[:stay]] = before[ranked[:stay]]
    assert np.array_equal(after, expected)
    assert loss.nonzero == stay


@given(
    dtype=st.sampled_from(["float32", "bfloat16", "float16", "float64"]),
    seed=st.integers(0, 2**32 - 1),
    bits=st.integers(1, 6),
    scale=st.sampled_from([1e-3, 0.05, 1.0, 100.0]),
)
@settings(max_examples=25, deadline=None)
def test_counted_kmeans_is_as_good_as_exact(dtype: str, seed: int, bits: int, scale: float) -> None:
    """Squared error from 65,536 patterns is within 3 % of k-means on the sorted values, plus the type's rounding."""
    raw = tensor(dtype, seed, 20_000, scale)
    before, after, loss = done(raw, Treatment(bits=bits))
    alive = before != 0
    exact = kmeans1d(before[alive], 2**bits, init="optimal")
    rounding = alive.sum() * (np.abs(before).max() / 2**8) ** 2 / 3 if dtype == "bfloat16" else 0.0
    assert loss.squared_error == pytest.approx(np.square(after - before).sum(), rel=1e-5)
    assert loss.squared_error <= 1.03 * exact.squared_error + rounding
    assert len(np.unique(after[alive])) <= 2**bits
    assert np.array_equal(after == 0, before == 0)


@pytest.mark.parametrize("dtype", sorted(KINDS))
@pytest.mark.parametrize("treatment", [Treatment(0.3, 3), Treatment(1.0, 2, per_of("row")), Treatment(0.5, 1)])
def test_pruned_and_shared_weights_stay_apart_from_zero(dtype: str, treatment: Treatment) -> None:
    """Of the weights that stay none becomes zero, not even where the mean of a cluster is: density stays exact."""
    flat = tensor(dtype, 3, 4096)
    raw = RawTensor(flat.bits.reshape(8, 512), dtype)
    before, after, loss = done(raw, treatment)
    wanted = min(round(treatment.density * before.size), np.count_nonzero(before))
    assert np.count_nonzero(after) == loss.nonzero == wanted
    rows = after if treatment.per.kind == "row" else after.reshape(1, -1)
    assert all(len(np.unique(row[row != 0])) <= 2**treatment.bits for row in rows)


def test_symmetric_weights_whose_mean_is_zero() -> None:
    """A cluster around zero has a centroid other than zero: it would prune its weights."""
    values = np.array([-3.0, -1e-3, 1e-3, 3.0] * 64, np.float32)
    _, after, _ = done(RawTensor(values.view(np.uint32), "float32"), Treatment(bits=1))
    assert np.count_nonzero(after) == 256


def test_outliers_do_not_crowd_the_others() -> None:
    """A weight a million times the others costs them nothing: patterns are floating, not even."""
    raw = tensor("float32", 1, 50_000)
    raw.bits.view(np.float32)[7] = 1e6
    before, after, _ = done(raw, Treatment(bits=5))
    others = np.arange(len(before)) != 7
    exact = kmeans1d(before[others & (before != 0)], 31, init="optimal").squared_error
    assert np.square(after - before)[others].sum() <= 1.05 * exact


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_slices_and_threads_change_nothing(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties at a slice's border are counted on: one slice, many slices and several threads make the same bits."""
    raw, treatment = tensor(dtype, 5, 10_000, distinct=8), Treatment(0.37, 3)
    whole = done(raw, treatment)[1]
    monkeypatch.setattr("deepcompression.datafree.tensor.SLICE", 64)
    monkeypatch.setattr("deepcompression.structure.cut.SLICE", 64)
    monkeypatch.setattr(counting, "SLICE", 64)
    assert np.array_equal(done(raw, treatment)[1], whole)
    assert np.array_equal(done(raw, treatment, threads=4)[1], whole)


def test_minus_zero_and_nothing_left() -> None:
    """-0.0 is a zero and becomes +0.0; a tensor of zeros stays one."""
    zeros = np.array([0.0, -0.0] * 8, np.float32)
    made, _ = treated(
        RawTensor(zeros.view(np.uint32), "float32"), Treatment(0.5, 2), counted(zeros.view(np.uint32), "float32")
    )
    assert not made.bits.any()
