from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcompression import _numba
from deepcompression.codec.dtypes import Bits, to_array, unsigned
from deepcompression.codec.grids import INFINITY, LIMITS, _too_fine, product, recognise

FLOATS = tuple(LIMITS)
QUANTIZERS = {
    "int8": (-128, 127),
    "int8 symmetric": (-127, 127),
    "int4": (-8, 7),
    "int4 symmetric": (-7, 7),
    "ternary": (-1, 1),
    "uint8": (0, 255),
}


def as_scales(values: np.ndarray, dtype: str, narrow: bool = False) -> np.ndarray:
    """Scales for `dtype`: float64, float32, or those of them that the dtype itself holds."""
    if dtype == "float64":
        return values.astype(np.float64)
    values = values.astype(np.float32)
    if not narrow:
        return values
    ones = np.ones(values.shape, np.int32)
    return to_array(product(ones, values, dtype), dtype).astype(np.float32)


def found(bits: Bits, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """What `recognise` finds; it MUST be of the promised types and bounds, and give the bits back."""
    result = recognise(bits, dtype)
    assert result is not None
    scales, integers = result
    assert scales.dtype == (np.float64 if dtype == "float64" else np.float32) and scales.shape == (len(bits),)
    assert integers.dtype == np.int32 and integers.shape == bits.shape
    assert np.isfinite(scales).all() and (scales > 0).all()
    assert np.abs(integers).max() <= 65_536 and int(integers.max()) - int(integers.min()) < 65_536
    again = product(integers, scales[:, None], dtype)
    assert again.dtype == unsigned(dtype) and np.array_equal(again, bits)
    return scales, integers


def assert_no_larger(integers: np.ndarray, origin: np.ndarray, dtype: str) -> None:
    """Group by group; in 16 bits large integers are rounded together, and the next one may stand for them."""
    slack = 1 if dtype.endswith("float16") else 0
    assert (np.abs(integers).max(axis=1) <= np.abs(origin).max(axis=1) + slack).all()


def quantized(random: np.random.Generator, quantizer: str, shape: tuple[int, int]) -> np.ndarray:
    """Integers as a quantizer leaves them, a zero point for each group where it is asymmetric."""
    low, high = QUANTIZERS[quantizer]
    integers = np.clip(np.rint(random.normal((low + high) / 2, (high - low) / 6, shape)), low, high)
    if quantizer == "uint8":
        integers -= random.integers(0, 256, (shape[0], 1))
    return integers.astype(np.int32)


@pytest.mark.parametrize("shape", [(1, 5_000), (64, 300), (200, 32)], ids=["tensor", "channel", "group of 32"])
@pytest.mark.parametrize("narrow", [False, True], ids=["float32 scale", "own scale"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_quantizers_are_recognised(quantizer: str, dtype: str, narrow: bool, shape: tuple[int, int]) -> None:
    """What a quantizer gives back as floats is found, with integers no larger than its own."""
    random = np.random.default_rng(7)
    scales = as_scales(random.uniform(0.001, 0.02, (shape[0], 1)), dtype, narrow)
    given_ = quantized(random, quantizer, shape)
    _, integers = found(product(given_, scales, dtype), dtype)
    assert_no_larger(integers, given_, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
def test_binary_with_scale(dtype: str) -> None:
    """Two values that differ in sign alone are -1 and 1."""
    random = np.random.default_rng(0)
    signs = random.choice(np.array([-1, 1], np.int32), (20, 50))
    _, integers = found(product(signs, as_scales(random.random((20, 1)), dtype), dtype), dtype)
    assert np.array_equal(integers, signs)


@st.composite
def grids(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, str]:
    """Integers (G, m), often few distinct ones, scales (G, 1) tiny to large or powers of two, and a dtype."""
    dtype = draw(st.sampled_from(FLOATS))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    groups, size = draw(st.integers(1, 12)), draw(st.integers(1, 100))
    limits = [1, 7, 127, 255] + [2047] * (dtype != "bfloat16") + [32_767] * dtype.startswith(("float32", "float64"))
    limit = draw(st.sampled_from(limits))
    integers = random.integers(-limit, limit + 1, (groups, size), dtype=np.int32)
    distinct = draw(st.sampled_from([1, 2, 3, 5, size]))
    integers = np.take_along_axis(integers, random.integers(0, min(distinct, size), (groups, size)), axis=1)
    low, high = (-20, 4) if dtype == "float16" else (-27, 27)
    exponents = random.uniform(low, high, (groups, 1))
    if draw(st.booleans()):
        exponents = np.rint(exponents)
    return integers, as_scales(np.exp2(exponents), dtype, draw(st.booleans())), dtype


@settings(deadline=None)
@given(grids())
def test_round_trip(grid: tuple[np.ndarray, np.ndarray, str]) -> None:
    """Every product without -0.0 and infinities is recognised, with scales not smaller but for rounding."""
    integers, scales, dtype = grid
    bits = product(integers, scales, dtype)
    magnitudes = bits & bits.dtype.type(np.iinfo(bits.dtype).max >> 1)
    if (magnitudes >= INFINITY[dtype]).any() or ((magnitudes == 0) & (integers < 0)).any():
        assert recognise(bits, dtype) is None
        return
    again, smaller = found(bits, dtype)
    assert_no_larger(smaller, integers, dtype)
    assert (again[~bits.any(axis=1)] == 1).all()


@pytest.mark.parametrize("dtype", FLOATS)
def test_largest_scale_is_found(dtype: str) -> None:
    """Integers that are all even, or all multiples of 48, come back without their common divisor."""
    random = np.random.default_rng(3)
    few = random.integers(-9, 10, (50, 40)).astype(np.int32)
    divisors = np.array([2, 4, 8, 16, 48], np.int32).repeat(10)[:, None]
    scales = as_scales(2.0 ** random.integers(-9, 0, (50, 1)), dtype)
    _, integers = found(product(few * divisors, scales, dtype), dtype)
    assert [math.gcd(*map(int, row)) for row in integers] == [1] * 50


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_few_integers_far_apart(dtype: str) -> None:
    """A group that holds two of all 16-bit integers is found too, though every gap is thousands of scales."""
    integers = np.array([[12_345, 32_749, 0], [-30_011, 29_989, 29_989]], np.int32)
    scales, again = found(product(integers, as_scales(np.array([[0.3], [7.7]]), dtype), dtype), dtype)
    assert (np.abs(again) <= np.abs(integers)).all() and (scales > 0.29).all()


def test_scale_is_the_shortest_that_serves() -> None:
    """A scale that bfloat16 holds comes back as that, not as a neighbour that serves as well."""
    scales = np.array([[0.013671875], [3.0], [1.5e-8]], np.float32).view(np.uint32) >> 16 << 16
    scales = scales.astype(np.uint32).view(np.float32)
    again, _ = found(
        product(np.arange(-99, 100, dtype=np.int32) + np.zeros((3, 1), np.int32), scales, "float32"), "float32"
    )
    assert np.array_equal(again, scales[:, 0])


@pytest.mark.parametrize("size", [100, 3_000, 400_000])
@pytest.mark.parametrize("dtype", FLOATS)
def test_random_normals_are_refused(dtype: str, size: int) -> None:
    """Weights as training leaves them are on no grid, be they one group or many."""
    weights = np.random.default_rng(1).normal(size=size)
    bits = product(np.ones(size, np.int32), as_scales(weights, dtype), dtype)
    assert recognise(bits.reshape(1, -1), dtype) is None
    assert recognise(bits.reshape(-1, 50), dtype) is None


@pytest.mark.parametrize("where", [(0, 0), (30, 77), (63, 299)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_element_off_the_grid_is_refused(dtype: str, where: tuple[int, int]) -> None:
    """A single unit in the last place, wherever it is, is noticed."""
    random = np.random.default_rng(5)
    bits = product(quantized(random, "int8", (64, 300)), as_scales(random.uniform(0.001, 0.002, (64, 1)), dtype), dtype)
    assert recognise(bits, dtype) is not None
    bits[where] += 1
    assert recognise(bits, dtype) is None


@pytest.mark.parametrize("value", [-0.0, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", FLOATS)
def test_special_values_are_refused(dtype: str, value: float) -> None:
    """No integer times a scale has the bits of -0.0, a NaN or an infinity."""
    bits = product(np.arange(-50, 50, dtype=np.int32).reshape(4, 25), np.ones(1, np.float32), dtype)
    assert recognise(bits, dtype) is not None
    wide = np.array(value, np.float32)
    bits[2, 3] = wide.view(np.uint32) >> 16 if dtype == "bfloat16" else wide.astype(dtype).view(unsigned(dtype))
    assert recognise(bits, dtype) is None


def test_integers_of_more_than_16_bits_are_refused() -> None:
    """65,536 integers are a grid, one more is none, in one group or between two."""
    for last, ok in ((65_535, True), (65_536, False)):
        row = np.array([[0, 1, 2, last]], np.int32)
        both = np.array([[1, 2, last - 30_000], [1, 2, -30_000]], np.int32)
        for integers in (row, both):
            assert (
                recognise(product(integers, np.full((1, 1), 0.1, np.float32), "float32"), "float32") is not None
            ) == ok


@pytest.mark.parametrize("dtype", FLOATS)
def test_zeros_and_nothing(dtype: str) -> None:
    """Groups of zeros have scale 1, also beside others; no element at all is no obstacle."""
    scales, integers = found(
        product(np.array([[0, 0], [3, 1]], np.int32), np.full((2, 1), 0.25, np.float32), dtype), dtype
    )
    assert scales.tolist() == [1, 0.25] and integers.tolist() == [[0, 0], [3, 1]]
    for shape in ((0, 4), (3, 0)):
        empty = recognise(np.zeros(shape, unsigned(dtype)), dtype)
        assert empty is not None and empty[0].shape == shape[:1] and empty[1].shape == shape


@pytest.mark.parametrize("dtype", FLOATS)
def test_least_and_greatest_values(dtype: str) -> None:
    """The ends of a type, subnormal (but for float64's) and just finite, are values like others."""
    least = np.array([[2.0 ** (-1022 if dtype == "float64" else -24 if dtype == "float16" else -133)]])
    found(product(np.array([[1, 2, 5, 0, -7]], np.int32), least, dtype), dtype)
    found(np.array([[INFINITY[dtype] - 1, 0]], unsigned(dtype)), dtype)


def test_pieces_have_no_seams() -> None:
    """A group larger than what is worked on at once is one group, and its last element counts."""
    integers = np.random.default_rng(0).integers(-127, 128, (2, 300_001)).astype(np.int32)
    bits = product(integers, np.array([[0.01], [0.7]], np.float32), "float32")
    assert np.array_equal(found(bits, "float32")[1], integers)
    bits[1, -1] += 1
    assert recognise(bits, "float32") is None


def test_input_is_left_alone() -> None:
    """Neither direction writes into what it was given, and strided bits will do."""
    integers = np.arange(-40, 40, dtype=np.int32).reshape(8, 10)
    scales = np.full((8, 1), 0.3, np.float32)
    for array in (integers, scales):
        array.flags.writeable = False
    bits = np.repeat(product(integers, scales, "bfloat16"), 2, axis=1)[:, ::2]
    bits.flags.writeable = False
    found(bits, "bfloat16")


def test_other_types_are_refused() -> None:
    """Integers and float8 have no grid: the error names what came."""
    with pytest.raises(ValueError, match="not of int8"):
        recognise(np.zeros((1, 1), np.uint8), "int8")
    with pytest.raises(ValueError, match="not of float8_e5m2"):
        product(np.zeros(1, np.int32), np.ones(1, np.float32), "float8_e5m2")


@settings(deadline=None)
@given(st.lists(st.integers(-65_536, 65_536), min_size=1, max_size=50), st.integers(0, 2**32 - 1))
def test_bfloat16_rounds_as_torch_does(integers: list[int], seed: int) -> None:
    """The product in float32, then rounded by torch, has our bits, halfway cases and overflow included."""
    torch = pytest.importorskip("torch")
    scale = np.exp2(np.random.default_rng(seed).uniform(-140, 127.9)).astype(np.float32)
    short = np.float32(math.ldexp(round(math.frexp(float(scale))[0] * 512) / 512, math.frexp(float(scale))[1]))
    for one in (scale, short):
        product32 = torch.tensor(integers, dtype=torch.int32).to(torch.float32) * torch.tensor(one)
        expected = product32.to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        assert np.array_equal(product(np.array(integers, np.int32), one, "bfloat16"), expected)


@pytest.mark.parametrize("dtype", FLOATS)
def test_product_broadcasts(dtype: str) -> None:
    """Scales of any shape that fits are taken, and an array without dimensions stays one."""
    bits = product(np.arange(6, dtype=np.int32).reshape(2, 3), np.array([1, 2, 4], np.float32), dtype)
    assert to_array(bits, dtype).tolist() == [[0, 2, 8], [3, 8, 20]]
    assert product(np.array(3, np.int32), np.array(0.5, np.float32), dtype).shape == ()


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(FLOATS), st.integers(1, 4), st.integers(0, 2**32 - 1), st.integers(-12, 3), st.booleans())
def test_what_is_found_sooner_is_the_same(dtype: str, groups: int, seed: int, power: int, on_grid: bool) -> None:
    """Compiled jumps find the very scales that numpy's do; what is given up at once is on no grid."""
    kernels = pytest.importorskip("deepcompression.codec.kernels")
    random = np.random.default_rng(seed)
    most = int(random.choice([3, 100, 500] if on_grid else [60_000]))
    scales = as_scales(np.exp2(random.normal(size=(groups, 1)) + 2 * power), dtype)
    bits = product(
        random.integers(-most, most + 1, (groups, int(random.integers(2, 90)))).astype(np.int32), scales, dtype
    )
    results = []
    for module, give_up in ((kernels, _too_fine), (None, _too_fine), (None, lambda *_: False)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_numba, "kernels", lambda *_, module=module: module)
            patch.setattr("deepcompression.codec.grids._too_fine", give_up)
            result = recognise(bits, dtype)
        results.append(None if result is None else (result[0].tolist(), result[1].tolist()))
    assert results[0] == results[1] == results[2]
