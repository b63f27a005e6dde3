from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import NUMPY_DTYPES, bit_tensors

from deepcompression.codec import dtypes
from deepcompression.codec.dtypes import DTYPES, RawTensor


def patterns(name: str) -> np.ndarray:
    """Bit patterns of a type: all where they are few, else random ones and the special ones."""
    kind = dtypes.unsigned(name)
    if kind.itemsize <= 2:
        return np.arange(2 ** (8 * kind.itemsize)).astype(kind)
    random = np.random.default_rng(0).integers(0, 2 ** (8 * kind.itemsize), 5000, dtype=np.uint64).astype(kind)
    return np.concatenate([random, np.array([0, 1, kind.type(2 ** (8 * kind.itemsize - 1))]).astype(kind)])


def test_numbers_are_those_of_the_format() -> None:
    """A type's number never changes: files name types by it."""
    numbers = [DTYPES[name].number for name in ("float32", "bool", "int64", "float8_e4m3fn", "float8_e8m0fnu")]
    assert numbers == [1, 5, 13, 15, 19]
    assert sorted(dtypes.NAMES) == [*range(1, 14), *range(15, 20)]
    for name in NUMPY_DTYPES:
        assert np.dtype(name).itemsize == DTYPES[name].itemsize


@pytest.mark.parametrize("name", sorted(dtypes.FOREIGN))
def test_foreign_values_are_torchs(name: str) -> None:
    """What numpy lacks is widened to the float32 values that torch reads from the same bits."""
    torch = pytest.importorskip("torch")
    bits = patterns(name)
    theirs = torch.from_numpy(bits.copy()).view(getattr(torch, name)).to(torch.float32).numpy()
    assert np.array_equal(dtypes.to_array(bits, name), theirs, equal_nan=True)


@pytest.mark.parametrize("name", [name for name in DTYPES if name != "bool"])
def test_order_ascends_as_the_values_do(name: str) -> None:
    """Keys are distinct and ascend with the values; NaNs lie beyond both ends."""
    bits = patterns(name)
    keys = dtypes.order(bits, name)
    assert keys.dtype == bits.dtype
    assert len(np.unique(keys)) == len(np.unique(bits))
    values = dtypes.to_array(bits, name)[np.argsort(keys, kind="stable")]
    values = values[~np.isnan(values)] if values.dtype.kind == "f" else values
    if name != "float8_e8m0fnu":  # it has no sign: its top bit is the exponent's
        assert (values[1:] >= values[:-1]).all()


@given(bit_tensors())
def test_narrow_and_widen(tensor: RawTensor) -> None:
    """Whatever type is chosen, it is allowed, it holds every bit, and no earlier choice would have."""
    bits = tensor.bits.reshape(-1)
    stored, small = dtypes.narrow(bits, tensor.dtype)
    assert small.dtype == dtypes.unsigned(stored)
    assert np.array_equal(dtypes.widen(small, stored, tensor.dtype), bits)
    choices = dtypes.narrower(tensor.dtype)
    earlier = choices[: choices.index(stored)] if stored != tensor.dtype else choices
    assert all(dtypes.shrink(bits, tensor.dtype, other) is None for other in earlier)


@pytest.mark.parametrize(
    ("name", "values", "stored"),
    [
        ("float32", np.float32([1, 2, 3]), "float16"),
        ("float32", np.float32([1e30, 1]), "float32"),
        ("float32", np.float32([2.0**100, 1]), "bfloat16"),
        ("float32", np.float32([1, np.nan]), "bfloat16"),
        ("float32", np.float32([np.inf, -0.0]), "float16"),
        ("float64", np.float64([2.0**100, 1]), "bfloat16"),
        ("float64", np.float64([1 / 3, 1]), "float64"),
        ("float64", np.float32([1 / 3, 1]).astype(np.float64), "float32"),
        ("float64", np.float64([1, np.nan]), "float64"),
        ("int64", np.int64([-1, 200]), "int16"),
        ("int64", np.int64([-(2**40)]), "int64"),
        ("uint64", np.uint64([2**64 - 1]), "int8"),  # modulo 2**64
        ("int16", np.int16([300]), "int16"),
        ("float16", np.float16([1]), "float16"),
        ("bool", np.array([True]), "bool"),
    ],
)
def test_narrowest_type(name: str, values: np.ndarray, stored: str) -> None:
    """The first type of float16, bfloat16, float32, or the narrowest integer, that holds all exactly."""
    assert dtypes.narrow(values.view(dtypes.unsigned(name)), name)[0] == stored


@given(st.sampled_from([name for name in DTYPES if dtypes.narrower(name)]), st.data())
def test_every_narrow_pattern_widens_to_itself(name: str, data: st.DataObject) -> None:
    """A reader's widened bits, but for NaNs, shrink back to those that were stored: no two patterns meet."""
    source = data.draw(st.sampled_from(dtypes.narrower(name)))
    bits = patterns(source)
    if DTYPES[source].floating:
        bits = bits[~np.isnan(dtypes.to_array(bits, source))]
    wide = dtypes.widen(bits, source, name)
    assert wide.dtype == dtypes.unsigned(name)
    assert np.array_equal(dtypes.shrink(wide, name, source), bits)
