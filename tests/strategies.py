"""Hypothesis strategies: tensors as networks have them, and as nobody would want them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from deepcompression.dtypes import DTYPES, unsigned
from deepcompression.io import RawTensor

NUMPY_DTYPES = [name for name in DTYPES if name != "bfloat16" and not name.startswith("float8")]
SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3.4e38], np.float32).view(np.uint32)

shapes = st.one_of(
    st.just(()),
    st.tuples(st.integers(0, 40)),
    st.lists(st.integers(0, 9), min_size=2, max_size=4).map(tuple),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
)


@st.composite
def bit_tensors(draw: st.DrawFn, dtypes: tuple[str, ...] = tuple(DTYPES)) -> RawTensor:
    """A tensor of any dtype and shape: random, of few values, skewed, sparse, constant or special."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(shapes)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = unsigned(dtype)
    top = 2 if dtype == "bool" else 2 ** (8 * kind.itemsize)
    distinct = draw(st.sampled_from([1, 2, 3, 16, 255, 256, 257, 1000, None]))
    bits = random.integers(0, top, shape, dtype=np.uint64).astype(kind)
    if distinct is not None:
        book = random.integers(0, top, distinct, dtype=np.uint64).astype(kind)
        skew = draw(st.sampled_from([0.02, 0.3, 1.0]))
        bits = book[np.minimum(random.geometric(skew, shape) - 1, distinct - 1)]
    if dtype == "float32" and draw(st.booleans()):
        bits = SPECIAL[random.integers(0, len(SPECIAL), shape)]
    density = draw(st.sampled_from([0.0, 0.02, 0.1, 0.5, 1.0]))
    return RawTensor(np.where(random.random(shape) < density, bits, 0).astype(kind), dtype)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    """A numpy array of any of its dtypes; often transposed, strided, reversed or byte-swapped."""
    tensor = draw(bit_tensors(tuple(NUMPY_DTYPES)))
    array = tensor.bits.view(tensor.dtype)
    how = draw(st.sampled_from(["plain", "transposed", "strided", "reversed", "swapped"]))
    if how == "transposed":
        return array.T
    if how == "strided" and array.ndim:
        return array[::2]
    if how == "reversed" and array.ndim:
        return array[::-1]
    if how == "swapped" and array.dtype.itemsize > 1:
        return array.astype(array.dtype.newbyteorder(">"))
    return array


@st.composite
def streams(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """Symbols (n,) of an alphabet of k >= 2, from flat to so skewed that the code must be limited; and k."""
    k = draw(st.sampled_from([2, 3, 16, 32, 255, 256, 257, 700]))
    n = draw(st.sampled_from([1, 2, 100, 16_383, 16_384, 16_385, 40_000, 5 * 16_384 + 7]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = np.exp2(-draw(st.sampled_from([0.0, 0.1, 0.7, 1.5])) * np.arange(k))
    symbols = random.choice(k, n, p=weights / weights.sum())
    return symbols.astype(np.uint8 if k <= 256 else np.uint16), k
