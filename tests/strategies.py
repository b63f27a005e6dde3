"""Hypothesis strategies: tensors as networks have them, and as nobody would want them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from deepcompression.codec.dtypes import DTYPES, RawTensor, unsigned

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
    n = draw(st.sampled_from([0, 1, 2, 100, 16_383, 16_384, 16_385, 40_000, 5 * 16_384 + 7]))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weights = np.exp2(-draw(st.sampled_from([0.0, 0.1, 0.7, 1.5])) * np.arange(k))
    symbols = random.choice(k, n, p=weights / weights.sum())
    return symbols.astype(np.uint8 if k <= 256 else np.uint16), k


def on_grid(integers: np.ndarray, scales: np.ndarray, dtype: str) -> RawTensor:
    """The tensor of integers (rows, columns) times scales (rows, 1), rounded as FORMAT.md has it."""
    wide = integers * scales if dtype == "float64" else (integers * scales).astype(np.float32)
    if dtype != "bfloat16":
        return RawTensor(wide.astype(dtype).view(unsigned(dtype)), dtype)
    bits = wide.view(np.uint32).astype(np.uint64)
    return RawTensor(((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16), dtype)


@st.composite
def layers(draw: st.DrawFn) -> RawTensor:
    """A matrix as quantizers and pruners leave it: on a grid or a codebook, of the tensor, of two rows, of rows or of
    groups; sparse or not; with dead rows and columns or not."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, groups = draw(st.sampled_from([(1, 3), (6, 1), (5, 2), (24, 1), (8, 4)]))
    size = draw(st.sampled_from([32, 64, 100]))
    dtype = draw(st.sampled_from(["float32", "float16", "bfloat16", "float64", "int64", "uint64", "int16"]))
    shared = draw(st.sampled_from(["tensor", "rows", "row", "group"]))
    each = {"tensor": rows * groups, "rows": groups * (2 - rows % 2), "row": groups, "group": 1}[shared]
    shape = rows * groups // each, each * size
    if DTYPES[dtype].floating and draw(st.booleans()):
        lowest, highest = draw(st.sampled_from([(-8, 7), (-7, 7), (0, 15), (1, 15), (-127, 127), (-3, -1), (200, 455)]))
        scales = random.uniform(0.5, 2, (shape[0], 1)) * draw(st.sampled_from([1e-3, 1.0]))
        scales = scales if dtype == "float64" else scales.astype(np.float32)
        bits = on_grid(random.integers(lowest, highest + 1, shape), scales, dtype).bits
    else:
        k = draw(st.sampled_from([1, 2, 7, 16, 40]))
        books = random.integers(0, 2 ** (8 * unsigned(dtype).itemsize), (shape[0], k), dtype=np.uint64)
        bits = np.take_along_axis(books, random.integers(0, k, shape), axis=1).astype(unsigned(dtype))
    bits = bits.reshape(rows, groups * size).copy()
    bits[random.random(bits.shape) >= draw(st.sampled_from([0.1, 0.5, 1.0]))] = 0
    if draw(st.booleans()):
        bits[random.random(rows) < 0.5] = 0
    if draw(st.booleans()):
        bits[:, random.random(groups * size) < 0.5] = 0
    if DTYPES[dtype].floating and draw(st.booleans()):
        bits[(bits == 0) & (random.random(bits.shape) < 0.5)] = 1 << (8 * bits.itemsize - 1)  # -0.0
    return RawTensor(draw(st.sampled_from(TURNS))(tiled(draw, random, bits)), dtype)


# As convolutions that are transposed have their channels, and layers whose inputs come first.
TURNS = (
    lambda bits: bits,
    lambda bits: np.ascontiguousarray(bits.T),
    lambda bits: np.ascontiguousarray(bits.reshape(len(bits), -1, 4).swapaxes(0, 1)),
    lambda bits: bits.reshape(len(bits), 2, -1, 2),
)


def tiled(draw: st.DrawFn, random: np.random.Generator, bits: np.ndarray) -> np.ndarray:
    """The same matrix, or with zeros by whole blocks, or by so many of every M in a row or a column."""
    height, width, most = draw(st.sampled_from([(1, 1, 0), (1, 4, 0), (4, 4, 0), (1, 4, 2), (4, 1, 2), (1, 8, 4)]))
    if bits.shape[0] % height or bits.shape[1] % width:
        return bits
    tiles = bits.reshape(bits.shape[0] // height, height, -1, width)
    kept = random.random((len(tiles), 1, tiles.shape[2], 1)) < draw(st.sampled_from([0.2, 0.5, 1.0]))
    if most:
        kept = random.random(tiles.shape).argsort(axis=3 if height == 1 else 1) < most
    return np.where(kept, tiles, 0).reshape(bits.shape).astype(bits.dtype)
