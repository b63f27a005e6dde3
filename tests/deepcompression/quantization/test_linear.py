"""Linear quantization of weights against the formula written down once more, and what becomes of its grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from deepcompression.codec import grids
from deepcompression.codec.dtypes import unsigned
from deepcompression.errors import StructureError
from deepcompression.network import names
from deepcompression.quantization import linear
from deepcompression.quantization.integers import integers_of
from deepcompression.quantization.linear import Linear, quantize, table
from deepcompression.structure.constraints import constraint
from deepcompression.structure.grid import Grid
from deepcompression.structure.rows import rows_of


def by_hand(row: np.ndarray, bits: int, scheme: str) -> tuple[np.ndarray, float]:
    """Integers and scale of one row of float32 by the formula, one weight after another."""
    low, high = min(float(row.min()), 0.0), max(float(row.max()), 0.0)
    if scheme == "symmetric":
        least, most = -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1
        scale, zero = np.float32(max(-low, high) / most), 0
    else:
        least, most = 0, 2**bits - 1
        zero = round(-low * most / (high - low))
        if 0 < zero < most:
            higher, lower = low * (zero - most) / zero, high * zero / (zero - most)
            low, high = (low, higher) if higher - low > high - lower else (lower, high)
        scale = np.float32((high - low) / most)
    codes = [min(max(int(np.rint(value / scale)) + zero, least), most) - zero for value in row]
    return np.array(codes), float(scale)


def weights(seed: int, shape: tuple[int, ...], kind: str = "normal") -> Tensor:
    """Heavy-tailed weights, a third of them zero, the first channel throughout."""
    random = np.random.default_rng(seed)
    drawn = random.laplace(0.1 if kind == "skewed" else 0, 0.05, shape) * random.uniform(0.1, 3, (shape[0], 1, 1))
    drawn = np.abs(drawn) if kind == "positive" else drawn
    drawn[random.random(shape) < 0.3] = 0
    drawn[0] = 0
    return torch.from_numpy(drawn.astype(np.float32))


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8, 12, 16])
@pytest.mark.parametrize("kind", ["normal", "skewed", "positive"])
def test_integers_and_scales_are_those_of_the_formula(scheme: Any, bits: int, kind: str) -> None:
    """Eq. 9.3.1 with an exact zero, row by row."""
    rows = weights(bits, (4, 6, 9), kind).flatten(1).numpy()[1:]
    found = integers_of(rows, bits, scheme)
    for row, integers, scale in zip(rows, found.integers, found.scales[:, 0], strict=True):
        expected, step = by_hand(row, bits, scheme)
        assert scale == pytest.approx(step, rel=1e-7) and np.array_equal(integers, expected)


def bits_of(tensor: Tensor) -> np.ndarray:
    dtype = str(tensor.dtype).removeprefix("torch.")
    plain = tensor.contiguous().view(torch.int16) if dtype == "bfloat16" else tensor.contiguous()
    return plain.numpy().view(unsigned(dtype))


LAYOUTS = [(None, None), (0, None), (1, None), (0, 6), (1, 16)]


@given(
    st.integers(2, 16),
    st.sampled_from(["symmetric", "asymmetric"]),
    st.sampled_from(LAYOUTS),
    st.sampled_from(["minmax", "mse"]),
    st.booleans(),
    st.sampled_from(["float32", "float64", "float16", "bfloat16"]),
    st.sampled_from(["normal", "skewed", "positive"]),
    st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_grids_are_found_again(
    bits: int,
    scheme: Any,
    layout: tuple[int | None, int | None],
    range: Any,
    correct: bool,
    kind: str,
    how: str,
    n: int,
) -> None:
    """Integers times a scale, bit for bit; 0 is +0.0; zeros stay; the structure's word is true, and held exactly."""
    dtype = getattr(torch, kind)
    less = scheme == "asymmetric"
    bits = min(bits, linear.DIGITS[dtype] - less, 16 - (less and layout[0] is not None))
    weight, grid = weights(n, (4, 6, 8), how).to(dtype), Grid(bits, *layout)
    made = quantize({"w": weight}, {"w": Linear(grid, scheme, range, layout[0] or 0)}, correct=correct)
    after = made.state["w"]
    assert after.dtype == dtype and not bool((after[weight == 0] != 0).any())
    assert not bool((torch.signbit(after) & (after == 0)).any())
    rows = bits_of(rows_of(after, *layout))
    found = grids.recognise(rows, kind)
    assert found is not None and np.array_equal(grids.product(found[1], found[0][:, None], kind), rows)
    assert int(np.ptp(found[1], axis=1).max()) < 2**bits
    assert made.structure["w"] == (grid.word,) and constraint(grid.word) == grid
    assert torch.equal(grid.held(after)(after), after)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_mse_is_near_the_least_squared_error(scheme: Any, bits: int) -> None:
    """No worse than minmax, and within 2 % (asymmetric 10 %) of a search over scales, and zero points, one by one."""
    rows = weights(bits, (5, 8, 32), "skewed").flatten(1).numpy()[1:]
    count = 2**bits - 1
    for row, error, plain in zip(rows, *(_errors(rows, bits, scheme, one) for one in ("mse", "minmax")), strict=True):
        best = np.inf
        zeros = range(count + 1) if scheme == "asymmetric" and bits < 5 else [None]
        widest = np.ptp(np.append(row, 0)) if scheme == "asymmetric" else 2 * np.abs(row).max()
        for zero in zeros:
            low, high = (-(count // 2), count // 2) if zero is None else (-zero, count - zero)
            for scale in widest / count * np.geomspace(0.05, 1.5, 150):
                best = min(best, float(np.square(np.clip(np.rint(row / scale), low, high) * scale - row).sum()))
        assert error <= plain and error <= (1.02 if scheme == "symmetric" else 1.1) * best


def _errors(rows: np.ndarray, bits: int, scheme: Any, how: Any) -> np.ndarray:
    found = integers_of(rows, bits, scheme, how)
    return np.square(found.integers * found.scales.astype(float) - rows).sum(axis=1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_corrections_restore_both_moments(bits: int, layout: tuple[int | None, int | None]) -> None:
    """Of the weights that were not zero: the deviation of a channel, or a tensor of one scale; each channel's mean."""
    weight, axis = weights(bits, (4, 6, 48), "skewed"), layout[0] or 0
    made = quantize({"w": weight}, {"w": Linear(Grid(bits, *layout), channels=axis)}, correct=True)
    after, layer = made.state["w"], made.layers[0]
    for before, now in zip(rows_of(weight, axis).double(), rows_of(after, axis).double(), strict=True):
        alive = before != 0
        if layout[0] is not None and alive.any():
            assert float(now[alive].std() / before[alive].std()) == pytest.approx(1, abs=1e-5)
        assert abs(float((before - now)[alive].sum())) <= 4 * layer.scales[1]
    alive = weight != 0
    if layout[0] is None:
        assert float(after[alive].std() / weight[alive].std()) == pytest.approx(1, abs=1e-5)
    assert layer.corrected.startswith("variance") and layer.corrected.endswith("and mean")


def test_shared_values_stay_shared_and_their_mean_is_left() -> None:
    """A codebook becomes coarser on the tensor's grid; weights of one value are not rounded apart."""
    weight = torch.randn(12, generator=torch.Generator().manual_seed(0))[torch.arange(600) % 12].reshape(20, 30)
    made = quantize({"w": weight}, {"w": Linear(Grid(3))}, {"w": ("zeros", "shared")}, correct=True)
    constraint("shared").check("w", weight, made.state["w"])
    assert made.layers[0].corrected == "variance; not the mean: its weights share values"


class Net(nn.Module):
    """Layers whose channels lie on different axes, and a tied pair."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)
        self.up = nn.ConvTranspose2d(4, 6, 3)
        self.grouped = nn.ConvTranspose2d(4, 6, 3, groups=2)
        self.rows = nn.Embedding(4, 6)
        self.rows.weight = self.fc.weight
        self.half = nn.Linear(3, 3, dtype=torch.bfloat16)


def test_channels_are_where_the_module_has_them() -> None:
    """A transposed convolution's are on axis 1; vectors have one scale."""
    found = table(Net(), {"fc": 4, "up": 5, "up.bias": 8}, per="channel")
    assert {name: how.grid for name, how in found.items()} == {
        "fc.weight": Grid(4, 0), "up.weight": Grid(5, 1), "up.bias": Grid(8)
    }  # fmt: skip
    assert table(Net(), {"fc": 4}, per="group", group=3)["fc.weight"].grid == Grid(4, 0, 3)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {"bits": {"grouped": 8}},
            "grouped.weight: is of a transposed convolution with 2 groups, whose output channels",
        ),
        ({"bits": {"fc": 8}, "per": "group", "group": 4}, "fc.weight: groups of 4 do not divide the 6 elements of a"),
        ({"bits": {"half": 9}}, "half.weight: bits 9 is impossible, symmetric bfloat16 takes 2 to 8"),
        ({"bits": {"half": 8}, "scheme": "asymmetric"}, "asymmetric bfloat16 with several scales takes 2 to 7"),
        ({"bits": {"fc": 16}, "scheme": "asymmetric"}, "asymmetric float32 with several scales takes 2 to 15"),
        ({"bits": {"fc": 17}}, "fc.weight: bits 17 is impossible, symmetric float32 takes 2 to 16"),
        (
            {"bits": {"fc": 8, "rows": 4}},
            "fc and rows are one tensor, fc.weight, and cannot have 8 and 4; name it once",
        ),
    ],
)
def test_what_a_tensor_cannot_take_is_told(keys: dict[str, Any], told: str) -> None:
    """Axis, groups, bits of its dtype, tied names with unlike bits: one line, from the model alone."""
    with pytest.raises(StructureError, match=told):
        table(Net(), **keys)


def test_tied_tensors_with_channels_on_unlike_axes_are_refused() -> None:
    """A transposed convolution of one by one tied to a convolution: what are rows of one are columns of the other."""
    model = nn.ModuleDict({"one": nn.Conv2d(4, 4, 1), "two": nn.ConvTranspose2d(4, 4, 1)})
    model["two"].weight = model["one"].weight
    with pytest.raises(
        StructureError, match=r"one.weight: is tied, and has its channels on axis 0 as one.weight and on"
    ):
        table(model, {"one": 8})
    assert table(model, {"one": 8}, per="tensor")["one.weight"].grid == Grid(8)


@pytest.mark.parametrize(
    ("weight", "how", "words", "told"),
    [
        (torch.full((2, 2), 65504.0).half(), Linear(Grid(4), "asymmetric"), (), ""),
        (torch.tensor([[-2.1e38, 3.4e38]]), Linear(Grid(2), "asymmetric"), (), "overflow float32"),
        (torch.tensor([[-60000.0, 65504.0]]).half(), Linear(Grid(4), "asymmetric"), (), "overflow float16"),
        (torch.ones(2, 2), Linear(Grid(4)), ("grid(5)",), r"is grid\(5\) already, which grid\(4\) would undo"),
        (torch.ones(2, 2), Linear(Grid(4)), ("binary",), "is binary already"),
        (torch.ones(2, 2), Linear(Grid(4, 0)), ("zeros", "shared"), "shares values, which a scale for each channel"),
        (torch.tensor([[1.0, float("nan")]]), Linear(Grid(4)), (), "1 values are NaN or infinite"),
    ],
)
def test_what_values_do_not_allow_is_told(weight: Tensor, how: Linear, words: tuple[str, ...], told: str) -> None:
    """Scales that overflow or vanish in a narrow dtype, other values to keep: one line with the tensor's name."""
    if not told:
        quantize({"w": weight}, {"w": how}, {"w": words})
        return
    with pytest.raises(StructureError, match=f"w: .*{told}"):
        quantize({"w": weight}, {"w": how}, {"w": words})


def test_integers_that_a_dtype_does_not_tell_apart_are_refused() -> None:
    """Corrected weights below the normal numbers of float16 would be rounded to others than the file's integers."""
    weight = (torch.randn(4, 50, generator=torch.Generator().manual_seed(0)) * 1e-6).half()
    quantize({"w": weight}, {"w": Linear(Grid(8), channels=0)})
    with pytest.raises(StructureError, match=r"w: its scale 2\.\S+e-08 is too small for float16, which rounds several"):
        quantize({"w": weight}, {"w": Linear(Grid(8), channels=0)}, correct=True)


def test_what_is_zero_throughout_is_left() -> None:
    """There is no scale to it, and held on a grid it could never learn; a channel of zeros is another matter."""
    made = quantize(
        {"w": torch.zeros(3, 3), "v": weights(0, (3, 2, 2))}, {"w": Linear(Grid(4)), "v": Linear(Grid(4, 0))}
    )
    assert made.left == {"w": "zero throughout"} and list(made.structure) == ["v"]


def test_what_is_on_the_grid_stays() -> None:
    """Quantized once more nothing changes, and there is no noise to tell."""
    once = quantize({"w": weights(0, (4, 6, 8))}, {"w": Linear(Grid(8, 0))})
    again = quantize(once.state, {"w": Linear(Grid(8, 0))}, once.structure)
    assert torch.equal(again.state["w"], once.state["w"]) and again.layers[0].sqnr is None


def test_tied_tensors_stay_tied() -> None:
    """One tensor under two names is quantized once."""
    model = Net()
    state: Any = {name: one.detach() for name, one in model.state_dict(keep_vars=True).items()}
    state["rows.weight"] = state["fc.weight"]
    made = quantize(state, table(model, {"fc": 4}))
    assert (
        made.state["rows.weight"] is made.state["fc.weight"] and names.first_names(model)["rows.weight"] == "fc.weight"
    )
