"""Ranges: what each computes and learns, by the formulas of its paper worked out in float64, and by differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from deepcompression.network.edits import integers as exactly
from deepcompression.quantization.ranges import RANGES, misfit, range_named
from deepcompression.quantization.ranges.range import First, Integers, Range
from deepcompression.quantization.straight_through import PIECE, Grid, on_grid
from deepcompression.quantization.trained_grid import TrainedGrid

SIGNED, UNSIGNED = Integers.of_inputs(4, "symmetric", signed=True), Integers.of_inputs(4, "symmetric", signed=False)


def first(least: float = -3.0, most: float = 2.0, **more: Any) -> First:
    """What some values of an input are like."""
    numbers = [torch.tensor(one, dtype=torch.float64) for one in (least, most, 0.8, 1.0)]
    return First(*numbers, **{"count": 50, "whole": False, **more})


def values(shape: tuple[int, ...] = (64, 7)) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def gradients(range_: Range, x: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """What comes out, and the gradient of the values; those of parameters are in the range."""
    x = x.clone().requires_grad_()
    found = range_(x)
    (found * outer).sum().backward()
    assert x.grad is not None
    return found.detach(), x.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(8, 24, 20, 20), (40, 5), (3,), (0, 4)])
@pytest.mark.parametrize(("low", "high"), [(0, 15), (-7, 7)])
def test_rounding_in_pieces_is_rounding(dtype: torch.dtype, shape: tuple[int, ...], low: int, high: int) -> None:
    """The same bits as the edit that rounds after training, in any memory format; and LSQ's gradients."""
    x, outer = values(shape).to(dtype), torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    x = x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
    one, scale = x.clone().requires_grad_(), torch.tensor(0.37, requires_grad=True)
    found = on_grid(one, Grid(scale, low, high, (low, high)))
    exact = x.to(torch.promote_types(dtype, torch.float32))
    wanted = exactly.on_grid(exact, scale.detach(), 0, low, high).to(dtype)
    assert torch.equal(found, wanted) and torch.equal(found.signbit(), wanted.signbit())
    assert found.dtype == dtype and found.stride() == x.stride()
    (found * outer).sum().backward()
    steps, slope = exact.double() / scale.detach().double(), outer.double()
    inside = (steps >= low) & (steps <= high)
    assert torch.equal(one.grad, torch.where(inside, outer, 0.0))
    integers = steps.round().clamp(low, high)
    sums = torch.where(inside, integers - steps, integers) * slope
    assert scale.grad.double() == pytest.approx(float(sums.sum()), rel=1e-4, abs=1e-5 * float(sums.abs().sum()) + 1e-9)


@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_values_are_those_of_the_edit(dtype: torch.dtype, bits: int) -> None:
    """What trains is what is deployed, bit for bit, also where it goes by pieces, and where a range learns or not."""
    x = values((PIECE + 5,)).to(dtype)
    for low, high in ((0, 2**bits - 1), (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)):
        scale = torch.tensor(2.3 / high)
        wanted = exactly.on_grid(x.float(), scale, 0, low, high).to(dtype)
        for learned in (scale, scale.clone().requires_grad_()):
            found = on_grid(x, Grid(learned, low, high, (low, high)))
            assert torch.equal(found, wanted) and torch.equal(found.signbit(), wanted.signbit())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("word", ["lsq", "tqt", "pact", "learned"])
def test_gradients_pass_where_the_quotient_is_inside(word: str, dtype: torch.dtype) -> None:
    """To the last value at each end, though large values are not divided."""
    integers = Integers(0, 15, moves=True) if word == "learned" else UNSIGNED
    generator = torch.Generator().manual_seed(2)
    for size in (0.1, 3.0, *torch.rand(6, generator=generator).tolist()):
        grid = range_named(word)(first(-0.4 * size, size, scale=torch.tensor(size / 7)), integers).grid()
        ends = torch.tensor(grid.inside, dtype=torch.float32) * grid.scale.detach()
        bits = torch.arange(-40, 41, dtype=torch.int32) << (16 if dtype == torch.bfloat16 else 0)
        near = (ends[ends != 0][:, None].view(torch.int32) + bits).view(torch.float32).flatten()
        near = torch.cat([near, ends, -(2.0**-149) * torch.ones(1), torch.zeros(1)])
        x = near.to(dtype).repeat(PIECE // near.numel() + 2).requires_grad_()
        on_grid(x, grid).sum().backward()
        quotient = x.detach().float() / grid.scale.detach()
        inside = (quotient >= grid.inside[0]) & (quotient <= grid.inside[1])
        assert torch.equal(x.grad, inside.to(dtype)) and 0 < int(inside.sum()) < inside.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("moves", [False, True])
@pytest.mark.parametrize("word", ["lsq", "tqt", "pact", "pact2", "learned"])
def test_large_values_teach_what_their_parts_teach(word: str, moves: bool, dtype: torch.dtype) -> None:
    """The slopes of what is learned, of large values and of as many small ones; each of 8 bits."""
    if moves and not RANGES[word].asymmetric:
        return
    integers = Integers(0, 255, moves=True) if moves else Integers.of_inputs(8, "symmetric", signed=word != "pact")
    x = values((3, PIECE // 2)).to(dtype)
    outer = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    grid = range_named(word)(first(), integers).grid()
    learned = [one.detach().requires_grad_(one.requires_grad) for one in (grid.scale, *(grid.ends or ()))]
    grid = grid._replace(scale=learned[0], ends=(learned[1], learned[2]) if grid.ends else None)
    wanted = [one for one in learned if one.requires_grad]
    found = torch.autograd.grad(on_grid(x.requires_grad_(), grid), wanted, outer)
    each = [torch.autograd.grad(on_grid(one, grid), wanted, by) for one, by in zip(x, outer, strict=True)]
    for one, some in zip(found, zip(*each, strict=True), strict=True):
        assert float(one) == pytest.approx(float(sum(some)), abs=1e-5 * float(outer.abs().sum()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_that_is_no_number_is_passed_on(dtype: torch.dtype) -> None:
    """A training that went wrong is told of by its loss."""
    x, scale = values((PIECE + 5,)).to(dtype).requires_grad_(), torch.tensor(float("nan"), requires_grad=True)
    found = on_grid(x, Grid(scale, 0, 15, (0, 15)))
    found.sum().backward()
    assert bool(found.isnan().all()) and bool(scale.grad.isnan())


def test_several_scales_are_as_many_tensors() -> None:
    """By channel the same as each channel alone, on any axis."""
    x, outer = values((5, 3, 4)), torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(1))
    for axis in (0, 1, 2):
        shape = [1 if one != axis else -1 for one in range(3)]
        scale = torch.linspace(0.1, 0.5, x.shape[axis]).reshape(shape).requires_grad_()
        whole = x.clone().requires_grad_()
        found = on_grid(whole, Grid(scale, -7, 7, (-7, 7)))
        (found * outer).sum().backward()
        for at in range(x.shape[axis]):
            part, own = (
                x.select(axis, at).clone().requires_grad_(),
                scale.detach().flatten()[at].clone().requires_grad_(),
            )
            (on_grid(part, Grid(own, -7, 7, (-7, 7))) * outer.select(axis, at)).sum().backward()
            assert torch.equal(whole.grad.select(axis, at), part.grad)
            assert float(scale.grad.flatten()[at]) == pytest.approx(float(own.grad), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("integers", [SIGNED, UNSIGNED, Integers.of_weights(2, "symmetric")])
def test_tqt_follows_the_paper(integers: Integers) -> None:
    """Section 3.3: powers of two; s ln 2 times (rounding error inside, end outside), inside by the rounded value."""
    x, outer = values(), torch.randn(64, 7, generator=torch.Generator().manual_seed(1))
    made = range_named("tqt")(first(), integers)
    made.log.data.fill_(0.3)
    low, high = integers.low, integers.high
    scale = 2.0 ** np.ceil(0.3) / (2 ** (int(high).bit_length()))
    integer = np.rint(x.double().numpy() / scale)
    inside = (integer >= low) & (integer <= high)
    slope = np.where(inside, integer - x.double().numpy() / scale, np.clip(integer, low, high)) * scale * np.log(2)
    found, passed = gradients(made, x, outer)
    assert np.allclose(found, np.clip(integer, low, high) * scale)
    assert torch.equal(passed, torch.where(torch.from_numpy(inside), outer, 0.0))
    assert float(made.log.grad) == pytest.approx(np.sign((slope * outer.numpy()).sum()) * np.tanh(1), rel=1e-4)
    assert float(made.norm) == pytest.approx(0.01 * (slope * outer.numpy()).sum() ** 2, rel=1e-3)


@pytest.mark.parametrize(("least", "deviation", "threshold"), [(-9.0, 1.0, 3.0), (-2.0, 1.0, 2.5)])
def test_tqt_begins_at_three_deviations_or_the_largest(least: float, deviation: float, threshold: float) -> None:
    """What is far out does not decide the first step."""
    made = range_named("tqt")(first(least, 2.5), SIGNED)
    assert float(made.log.detach().exp2()) == pytest.approx(threshold)


def test_pact_follows_the_paper() -> None:
    """Equations 1 to 3: values from the level on move it, the others learn; the square of the level is the penalty."""
    made = range_named("pact")(first(0.0, 1.5), UNSIGNED)
    x, outer = torch.tensor([-1.0, 0.0, 0.44, 1.49, 1.5, 7.0]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    found, passed = gradients(made, x, outer)
    assert torch.allclose(found, torch.tensor([0.0, 0.0, 0.4, 1.5, 1.5, 1.5]))
    assert passed.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0, 0.0]
    assert float(made.level.times.grad) * 1.5 == pytest.approx(11.0)  # the level is 1.5 times what is trained
    made.level.times.grad = None
    made.penalty().backward()
    assert float(made.penalty().detach()) == pytest.approx(1.5**2)
    assert float(made.level.times.grad) * 1.5 == pytest.approx(2 * 1.5)


def test_pact2_cuts_both_sides() -> None:
    """Values beyond a level move it by their side's slope: 1 above, and below what the lowest integer is of it."""
    made = range_named("pact2")(first(-1.0, 1.4), SIGNED)
    x, outer = torch.tensor([-4.0, -1.5, -0.2, 0.3, 1.4, 9.0]), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    found, passed = gradients(made, x, outer)
    assert torch.allclose(found, torch.tensor([-1.6, -1.6, -0.2, 0.4, 1.4, 1.4]))
    assert passed.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0, 0.0]
    assert float(made.level.times.grad) * 1.4 == pytest.approx(5 + 6 - 8 / 7)


@pytest.mark.parametrize("word", ["lsq", "learned", "pact2"])
@pytest.mark.parametrize("moves", [False, True])
def test_beyond_the_ends_gradients_are_slopes(word: str, moves: bool) -> None:
    """Where values are cut, what comes out is smooth in what is learned: central differences tell the same."""
    if moves and not RANGES[word].asymmetric:
        return
    made = range_named(word)(first(), Integers(0, 15, moves=True) if moves else SIGNED)
    x, outer = torch.tensor([-60.0, -50.0, 40.0, 55.0, 70.0]), torch.tensor([1.0, -0.3, 2.0, 0.5, 0.25])
    gradients(made, x, outer)
    for size in (one for one in made.children()):
        learned, gain = size.times, size.gain
        slope, at = float(learned.grad) / gain * float(size.start) ** 2, float(learned)
        ends = []
        for value in (at + 0.01, at - 0.01):
            learned.data.fill_(value)
            ends.append(float((made(x) * outer).sum()))
        learned.data.fill_(at)
        tolerance = 0.6 * float(made.scale()) * 3.5 / 0.02 if moves else 1e-3
        assert slope == pytest.approx((ends[0] - ends[1]) / 0.02, rel=1e-3, abs=tolerance)


def test_a_learned_range_follows_its_rounding_inside() -> None:
    """(x^ - x) / width goes to both ends' difference; 0 is exactly on the grid."""
    made = range_named("learned")(first(-1.0, 3.0), Integers(0, 15, moves=True))
    x = torch.linspace(-0.7, 2.5, 33)
    found, passed = gradients(made, x, torch.ones(33))
    assert torch.equal(passed, torch.ones(33)) and float(made(torch.zeros(1))) == 0.0
    error = float(((found - x).double() / 4.0).sum())
    assert float(made.above.times.grad) * 3.0 == pytest.approx(error, abs=1e-4)
    assert float(made.below.times.grad) == pytest.approx(error, abs=1e-4)
    assert int(made.zero_point()) == 4


def test_minmax_of_inputs_is_a_moving_average() -> None:
    """Of each batch's least and greatest value, while training; no gradient of its own."""
    made = range_named("minmax")(first(-1.0, 1.0), Integers(0, 255, moves=True))
    least = -1.0
    for batch in (values(), 3 * values()):
        made(batch)
        least = 0.99 * least + 0.01 * float(batch.min())
    assert float(made.least) == pytest.approx(least)
    made.eval()(100 * values())
    assert float(made.least) == pytest.approx(least) and not list(made.parameters())
    zero = int(made.zero_point())
    assert zero == round(-least / float(made.scale())) and float(made(torch.zeros(1))) == 0.0


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_minmax_of_weights_holds_them(scheme: str, axis: int | None) -> None:
    """The largest weights of each scale are at the end of its integers, whatever they were before."""
    weight = values((6, 5)).abs() + 0.5 if scheme == "asymmetric" else values((6, 5))
    weight[0, 0] = 0.0
    grid = TrainedGrid(weight, 4, axis, "minmax", scheme)
    for one in (weight, 3 * weight):
        assert float((grid(one) - one).abs().max()) <= float(grid.range.scale().max()) * 0.5001
        rows = one.reshape(1, -1) if axis is None else one.movedim(axis, 0)
        wanted = rows.abs().amax(1) / (15 if scheme == "asymmetric" else 7)
        assert torch.allclose(grid.range.scale().flatten(), wanted)
    assert float(grid(weight)[0, 0]) == 0.0


@pytest.mark.parametrize("word", [word for word, one in RANGES.items() if one.weights])
def test_a_channel_of_zeros_stays(word: str) -> None:
    """It has no size of its own; nothing divides by zero, nothing comes out of it."""
    weight = values((4, 9))
    weight[2] = 0.0
    layer = nn.Linear(9, 4)
    layer.weight.data.copy_(TrainedGrid(weight, 4, 0, word, "symmetric")(weight))
    assert bool(layer.weight.isfinite().all()) and not bool(layer.weight[2].any())


def test_what_goes_with_what() -> None:
    """Misfits are told with what there is instead."""
    assert misfit("weights", "pact", "symmetric") == "range 'pact' is none of minmax, lsq, tqt, learned"
    assert misfit("activations", "lsq", "asymmetric").endswith("scheme: asymmetric goes with minmax or learned")
    assert all(not misfit("activations", word, "symmetric") for word in RANGES)
