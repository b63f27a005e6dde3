"""A layer from codes gives what the dense one gives, whatever its shape."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepcompression import torch as bridge
from deepcompression.runtime import workers
from deepcompression.runtime.coded import Coded
from deepcompression.runtime.entries import book_of, entries_of

pytest.importorskip("numba")
SEEDS = st.integers(0, 2**31)


def compressed(layer: Any, density: float, values: int | None, seed: int) -> Any:
    """A layer whose weight is pruned, and has so many values (None: any)."""
    made = torch.Generator().manual_seed(seed)
    weight = layer.weight.data
    if values:
        book = torch.randn(values, generator=made)
        weight.copy_(book[torch.randint(values, weight.shape, generator=made)])
    weight.mul_(torch.rand(weight.shape, generator=made) < density)  # zeros of both signs
    return layer


def outputs(layer: Any, value: Tensor, form: str = "", threads: int = 1) -> Tensor:
    """Of the layer run from the codes of its file, in a form whose name begins so."""
    with TemporaryDirectory() as folder:
        bridge.save(layer.state_dict(), Path(folder, "layer.dcz"), coder="packed")
        running = bridge.run(nn.Sequential(copy.deepcopy(layer)), _renamed(folder), form="codes", threads=threads)
    assert isinstance(running.model[0], Coded) and running.layers[0].form.startswith(form), running.report()
    with torch.inference_mode():
        return running(value)


def _renamed(folder: str) -> Path:
    state = bridge.load(Path(folder, "layer.dcz"))
    bridge.save({f"0.{name}": one for name, one in state.items()}, Path(folder, "model.dcz"), coder="packed")
    return Path(folder, "model.dcz")


def exact(layer: nn.Module, value: Tensor) -> Tensor:
    """Of the dense layer, in float64."""
    with torch.no_grad():
        made: Tensor = layer.double()(value.double())
    layer.float()
    return made


def assert_near(found: Tensor, layer: nn.Module, value: Tensor) -> None:
    """To float32's rounding of sums of so many products."""
    expected = exact(layer, value)
    assert found.shape == expected.shape and found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5 * (1 + float(expected.norm())))


@given(
    st.integers(1, 40),
    st.sampled_from([1, 7, 100, 300, 2049, 5000]),
    st.sampled_from([1, 2, 9, 70]),
    st.sampled_from([0.0, 0.03, 0.3, 0.5]),
    st.sampled_from([1, 16, 33, 100, 256, None]),
    st.booleans(),
    SEEDS,
)
@settings(max_examples=25)
def test_linear(rows: int, columns: int, batch: int, density: float, values: int | None, bias: bool, seed: int):
    """Any sizes, batch, density and number of values, more than a block's and a table's too; also of no weights."""
    torch.manual_seed(seed)
    layer = compressed(nn.Linear(columns, rows, bias), density, values, seed)
    if values in (256, None) and int((layer.weight != 0).sum()) > layer.weight.numel() // 2:
        return  # kept dense: with 0 they are more than 256 values
    value = torch.randn(batch, columns)
    assert_near(outputs(layer, value), layer, value)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Any, Tensor]:
    """A convolution of one or two dimensions, and images that it takes."""
    dimensions, groups = draw(st.sampled_from([1, 2, 2])), draw(st.sampled_from([1, 1, 2, 4]))
    inputs, rows = groups * draw(st.sampled_from([1, 2, 9])), groups * draw(st.sampled_from([1, 3, 8]))
    kernel = [draw(st.integers(1, 4)) for _ in range(dimensions)]
    stride = [draw(st.integers(1, 3)) for _ in kernel]
    dilation = [draw(st.integers(1, 2)) for _ in kernel]
    padding: Any = [draw(st.integers(0, 3)) for _ in kernel]
    if draw(st.integers(0, 4)) == 0:
        padding, stride = "same", [1] * dimensions
    size = [draw(st.integers(step * (one - 1) + 1, 24)) for step, one in zip(dilation, kernel, strict=True)]
    kind: Any = nn.Conv1d if dimensions == 1 else nn.Conv2d
    layer = kind(inputs, rows, kernel, stride, padding, dilation, groups, draw(st.booleans()))
    seed, density = draw(SEEDS), draw(st.sampled_from([0.1, 0.4]))
    compressed(layer, density, draw(st.sampled_from([16, 256, None])), seed)
    return layer, torch.randn(draw(st.sampled_from([1, 2, 5])), inputs, *size)


@given(convolutions())
@settings(max_examples=50)
def test_convolutions(drawn: tuple[Any, Tensor]):
    """Any kernel, stride, padding, dilation, groups (depthwise with them), size and batch."""
    layer, value = drawn
    if int((layer.weight != 0).sum()) > layer.weight.numel() // 2:
        return
    assert_near(outputs(layer, value), layer, value)


def test_a_grid_of_each_row_is_held_as_integers():
    """Integers of 8 bits times a scale of each row are more values than a table has; and so are exact products."""
    torch.manual_seed(0)
    layer = compressed(nn.Linear(500, 30), 0.3, None, 0)
    scale = layer.weight.data.abs().amax(1, keepdim=True) / 127
    layer.weight.data.copy_((layer.weight.data / scale).round() * scale)
    value = torch.randn(3, 500)
    assert_near(outputs(layer, value), layer, value)


@pytest.mark.parametrize("batch", [1, 40])
def test_threads_change_no_bit(batch: int, monkeypatch: pytest.MonkeyPatch):
    """Rows are parted, sums are not."""
    monkeypatch.setattr(workers, "WORTH", 100)
    layer = compressed(nn.Linear(300, 91), 0.4, 16, 0)
    value = torch.randn(batch, 300)
    assert torch.equal(outputs(layer, value), outputs(layer, value, threads=2))


def test_inputs_of_any_layout_and_number_of_dimensions():
    """As nn.Linear and nn.Conv2d take them: one row, none, several batch dimensions, transposed, without a batch."""
    linear = compressed(nn.Linear(20, 6), 0.3, 16, 0)
    for value in (torch.randn(20), torch.randn(0, 20), torch.randn(2, 3, 20), torch.randn(20, 4).t()):
        assert_near(outputs(linear, value), linear, value)
    conv = compressed(nn.Conv2d(3, 5, 3), 0.3, 16, 0)
    for value in (torch.randn(3, 8, 8), torch.randn(2, 3, 8, 9).to(memory_format=torch.channels_last)):
        assert_near(outputs(conv, value), conv, value)


def test_two_threads_may_call_one_layer():
    """Scratch memory is each thread's own."""
    layer = compressed(nn.Conv2d(8, 16, 3, padding=1), 0.3, 16, 0)
    values = [torch.randn(1, 8, size, size) for size in (9, 30, 17, 5)] * 5
    with TemporaryDirectory() as folder:
        bridge.save(nn.Sequential(layer).state_dict(), Path(folder, "m.dcz"))
        running = bridge.run(nn.Sequential(copy.deepcopy(layer)), Path(folder, "m.dcz"), form="codes")
    with torch.no_grad(), ThreadPoolExecutor(3) as pool:
        found = list(pool.map(running, values))
    for one, value in zip(found, values, strict=True):
        assert_near(one, layer, value)


KINDS = {
    "signs": lambda weight: weight.sign() * weight.abs().mean(1, keepdim=True),
    "integers of 8 bits": lambda weight: (weight * 127 / 3).round().clamp(-127, 127) * torch.tensor(0.037),
    "integers of each row": lambda weight: (
        (weight * 127 / 3).round().clamp(-127, 127) * (0.1 + torch.rand(len(weight), 1))
    ),
    "codes of 4 bits": lambda weight: torch.linspace(-1, 1, 16)[weight.mul(4).long().clamp(0, 15)].square(),
    "codes of 8 bits, 30": lambda weight: torch.linspace(-1, 2, 30).exp()[weight.mul(9).add(15).long().clamp(0, 29)],
    "codes of 8 bits, 60": lambda weight: torch.linspace(-1, 2, 60).exp()[weight.mul(15).add(30).long().clamp(0, 59)],
    "codes of 8 bits, 200": lambda weight: torch.linspace(-1, 2, 200).exp()[
        weight.mul(40).add(99).long().clamp(0, 199)
    ],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 257), (70, 33), (9, 640)])
def test_linear_without_zeros(kind: str, rows: int, columns: int):
    """Binary, on a grid, of few values: none of them pruned; inputs one by one, and many that are decoded for."""
    torch.manual_seed(rows)
    layer = nn.Linear(columns, rows)
    layer.weight.data = KINDS[kind](torch.randn(rows, columns)).contiguous()
    for batch in (1, 3, 20):
        value = torch.randn(batch, columns)
        assert_near(outputs(layer, value, kind.partition(" of each")[0].partition(",")[0]), layer, value)


LEVELS = st.sampled_from([(-1.0, 1.0), (0.0, 0.7), (2.0, 2.0), (-1.0, 3.0), (-1.0, 0.5, 1.0)])


def signed(layer: Any) -> Any:
    """A layer with a scale of each row, or minus it."""
    weight = layer.weight.data
    scale = 0.1 + weight.flatten(1).abs().mean(1).reshape(-1, *[1] * (weight.ndim - 1))
    weight.copy_(torch.where(torch.rand(weight.shape) < 0.5, scale, -scale))
    return layer


def chosen_of(levels: tuple[float, ...], *shape: int) -> Tensor:
    """Inputs that have these values."""
    return torch.tensor(levels)[torch.randint(len(levels), shape)]


@given(st.integers(1, 40), st.sampled_from([1, 15, 64, 200, 1030]), st.sampled_from([1, 7]), LEVELS, SEEDS)
@settings(max_examples=25)
def test_binary_linear(rows: int, columns: int, batch: int, levels: tuple[float, ...], seed: int):
    """Signs times inputs of two values, whichever; of three, by floats."""
    torch.manual_seed(seed)
    layer, value = signed(nn.Linear(columns, rows)), chosen_of(levels, batch, columns)
    assert_near(outputs(layer, value, "signs"), layer, value)


@given(convolutions(), LEVELS, SEEDS)
@settings(max_examples=40)
def test_binary_convolutions(drawn: tuple[Any, Tensor], levels: tuple[float, ...], seed: int):
    """The same with padding, whose zeros have no sign."""
    torch.manual_seed(seed)
    layer, value = signed(drawn[0]), chosen_of(levels, *drawn[1].shape)
    if layer.groups == 1:
        assert_near(outputs(layer, value, "signs"), layer, value)


def test_what_is_no_number_stays_none_in_a_binary_layer():
    """A NaN among signs is not taken for one of them."""
    layer, value = signed(nn.Linear(200, 3)), chosen_of((-1.0, 1.0), 2, 200)
    value[0, 150] = torch.nan
    found = outputs(layer, value)
    assert bool(found[0].isnan().all()) and bool(found[1].isfinite().all())


def test_entries_give_the_matrix_back():
    """Bit for bit, but for the sign of zeros."""
    layer = compressed(nn.Linear(5000, 20), 0.2, 100, 0)
    weight = layer.weight.detach().numpy()
    for book in (book_of(weight), None):
        for near in (False, True):
            held = entries_of(weight, np.ones(20, np.float32), book, near)
            assert np.array_equal(held.dense(), weight)
            assert held.nbytes < weight.nbytes * (0.75 if book is None else 0.25)
