"""Allocation against trying everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import isotonic_regression

from deepcompression.allocation.allocate import (
    Allocation,
    TensorCurves,
    allocate,
    curves_of,
    has_options,
    least_bytes,
    rising,
)
from deepcompression.allocation.pricing import price
from deepcompression.allocation.sensitivity import BitsPoint, DensityPoint, TensorSensitivity
from deepcompression.errors import StructureError


@st.composite
def instances(draw: st.DrawFn) -> list[TensorCurves]:
    """One to four tensors with up to six options each, convex or not, some alike."""
    made = []
    for number in range(draw(st.integers(1, 4))):
        d, b = draw(st.sampled_from([(1, 1), (3, 1), (1, 4), (2, 3), (3, 2)]))
        size = st.integers(1, 60)
        loss = st.integers(0, 40).map(lambda value: value / 16)
        made.append(
            TensorCurves(
                f"t{number}",
                tuple(1 / (i + 1) for i in range(d)),
                tuple(range(b, 0, -1)),
                tuple(tuple(draw(size) for _ in range(b)) for _ in range(d)),
                tuple(draw(loss) for _ in range(d)),
                tuple(draw(loss) for _ in range(b)),
            )
        )
    return made


def options(tensor: TensorCurves) -> list[tuple[int, float]]:
    return [
        (tensor.sizes[i][j], tensor.density_loss[i] + tensor.bits_loss[j])
        for i in range(len(tensor.densities))
        for j in range(len(tensor.bits))
    ]


def everything(tensors: list[TensorCurves]) -> list[tuple[int, float]]:
    """Bytes and loss of every combination."""
    return [
        (sum(size for size, _ in combination), math.fsum(loss for _, loss in combination))
        for combination in itertools.product(*map(options, tensors))
    ]


def check(tensors: list[TensorCurves], made: Allocation, fixed: int) -> None:
    """The result says of itself what its choices cost."""
    for tensor, choice in zip(tensors, made.choices, strict=True):
        i, j = tensor.densities.index(choice.density), tensor.bits.index(choice.bits)
        assert (choice.name, choice.size) == (tensor.name, tensor.sizes[i][j])
        assert choice.loss == tensor.density_loss[i] + tensor.bits_loss[j]
    assert made.size == fixed + sum(choice.size for choice in made.choices)
    assert made.loss == pytest.approx(sum(choice.loss for choice in made.choices))
    assert made.density == {choice.name: choice.density for choice in made.choices}
    assert made.bits == {choice.name: choice.bits for choice in made.choices}


@given(instances(), st.integers(0, 300), st.integers(0, 20))
def test_bytes_are_never_above_the_target_and_the_loss_is_near_the_least(
    tensors: list[TensorCurves], target: int, fixed: int
) -> None:
    """Against all combinations: at most one tensor's step worse; too little is refused with the least there is."""
    all_of_them = everything(tensors)
    least = fixed + min(size for size, _ in all_of_them)
    if least > target:
        with pytest.raises(StructureError, match=rf"{target} bytes are too few; the least possible .* are {least}$"):
            allocate(tensors, target_bytes=target, fixed_bytes=fixed)
        return
    made = allocate(tensors, target_bytes=target, fixed_bytes=fixed)
    check(tensors, made, fixed)
    best = min(loss for size, loss in all_of_them if size + fixed <= target)
    gap = max(max(loss for _, loss in options(one)) - min(loss for _, loss in options(one)) for one in tensors)
    assert made.size <= target and best - 1e-9 <= made.loss <= best + gap + 1e-9
    if made.multiplier is None:
        assert made.loss == pytest.approx(min(loss for _, loss in all_of_them))
    assert allocate(tensors, target_bytes=target, fixed_bytes=fixed) == made


@given(instances(), st.integers(0, 100).map(lambda value: value / 16))
def test_the_loss_is_never_above_its_limit_and_the_bytes_are_near_the_fewest(
    tensors: list[TensorCurves], limit: float
) -> None:
    """The other way round, against all combinations too."""
    all_of_them = everything(tensors)
    if min(loss for _, loss in all_of_them) > limit:
        with pytest.raises(StructureError, match="out of reach; the least possible"):
            allocate(tensors, max_loss=limit)
        return
    made = allocate(tensors, max_loss=limit)
    check(tensors, made, 0)
    best = min(size for size, loss in all_of_them if loss <= limit)
    gap = max(max(size for size, _ in options(one)) - min(size for size, _ in options(one)) for one in tensors)
    assert made.loss <= limit and best <= made.size <= best + gap


def test_steps_are_taken_where_a_byte_gains_most_and_the_multiplier_is_that_of_the_next() -> None:
    """Worked out by hand: steps of 1, 1/2 and 1/4 loss a byte; what is left is filled by what fits."""
    one = TensorCurves("one", (1.0, 0.5, 0.1), (4,), ((30,), (20,), (10,)), (0.0, 5.0, 15.0), (0.0,))
    two = TensorCurves("two", (1.0, 0.5), (4,), ((24,), (4,)), (0.0, 5.0), (0.0,))
    places = {
        14: ((0.1, 0.5), 1.0),
        24: ((0.5, 0.5), 0.5),
        34: ((1.0, 0.5), 0.25),
        44: ((0.5, 1.0), 0.25),
        54: ((1.0, 1.0), None),
    }
    for target, (densities, multiplier) in places.items():
        made = allocate([one, two], target_bytes=target)
        if target != 44:  # there the greedy way keeps the better step, which cannot be filled up
            assert tuple(made.density.values()) == densities
        assert made.multiplier == (pytest.approx(multiplier) if multiplier else None)
    assert allocate([one, two], max_loss=5.0).density == {"one": 1.0, "two": 0.5}
    assert allocate([one, two], max_loss=5.0).multiplier == pytest.approx(0.5)


def test_what_is_left_is_filled_off_the_hull() -> None:
    """An option above the convex hull is taken where the next on it does not fit."""
    tensor = TensorCurves("w", (1.0, 0.5, 0.1), (4,), ((30,), (20,), (10,)), (0.0, 9.0, 10.0), (0.0,))
    assert allocate([tensor], target_bytes=25).density == {"w": 0.5}


def test_options_of_infinite_loss_are_left_out() -> None:
    """A density that breaks the model is never chosen, however small; if all do, the tensor is named."""
    tensor = TensorCurves("w", (1.0, 0.5), (4,), ((30,), (20,)), (0.0, math.inf), (0.0,))
    assert allocate([tensor], max_loss=1e9).density == {"w": 1.0}
    with pytest.raises(StructureError, match=r"least possible .* are 30"):
        allocate([tensor], target_bytes=25)
    assert least_bytes([tensor, tensor]) == 60 and allocate([tensor], target_bytes=30).density == {"w": 1.0}
    lost = [
        TensorCurves("w", (1.0,), (4,), ((30,),), *losses) for losses in (((math.nan,), (0.0,)), ((0.0,), (math.inf,)))
    ]
    assert has_options(tensor) and not any(map(has_options, lost))
    with pytest.raises(StructureError, match="w: no option has a finite loss"):
        allocate([TensorCurves("w", (1.0,), (4,), ((30,),), (math.nan,), (0.0,))], max_loss=1.0)


@pytest.mark.parametrize("limits", [{}, {"target_bytes": 9, "max_loss": 1.0}])
def test_exactly_one_limit(limits: dict) -> None:
    """Neither or both is no question."""
    with pytest.raises(StructureError, match="exactly one"):
        allocate([], **limits)


def test_without_tensors_what_is_fixed_is_all() -> None:
    """A model whose tensors are all left alone."""
    assert allocate([], target_bytes=9, fixed_bytes=9) == Allocation((), 9, 0.0, None)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_rising_is_the_nearest_sequence_that_never_falls(values: list[float]) -> None:
    """Against scikit-learn's isotonic regression."""
    made = rising(values)
    assert (np.diff(made) >= 0).all()
    np.testing.assert_allclose(made, isotonic_regression(np.array(values)), atol=1e-9)


def test_rising_takes_what_is_no_number_for_the_worst() -> None:
    """A model that outputs NaN at some density is no better at lower ones."""
    assert rising([1.0, math.nan, 3.0]).tolist() == [1.0, math.inf, math.inf]


def test_curves_join_measured_losses_with_measured_bytes() -> None:
    """Losses rise from the unchanged model's, noise below it counts as none; bytes are those of ``price``."""
    weights = np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)
    sparse = (DensityPoint(0.5, 0.9, 0.9), DensityPoint(0.1, 0.8, 1.5), DensityPoint(0.01, 0.1, 3.0))
    coarse = (BitsPoint(4, 0.9, 1.1), BitsPoint(1, 0.5, 2.0))
    curves = curves_of(TensorSensitivity("w", 600, 1.0, sparse, coarse), 1.0, weights, "huffman", steps=5)
    assert curves.densities[0] == 1.0 and curves.densities[-1] == 0.01 and curves.bits == (4, 1)
    assert curves.bits_loss == pytest.approx((0.1, 1.0))
    assert curves.density_loss[0] == 0.0 and curves.density_loss[-1] == pytest.approx(2.0)
    assert curves.density_loss[2] == pytest.approx(0.5)  # 0.1 is half of the way, in logarithms
    assert curves.sizes[0][0] == price(weights, 1.0, 4, "huffman")
    made = allocate([curves], target_bytes=60)
    assert made.size <= 60 and made.density["w"] < 1
    with pytest.raises(StructureError, match="w: the loss was measured at no density"):
        curves_of(TensorSensitivity("w", 600, 1.0, (), coarse), 1.0, weights, "huffman")
