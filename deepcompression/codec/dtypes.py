"""Element types by name: their numbers in the file, their bits in numpy, their exact conversions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression.errors import InputError

Bits = NDArray[np.unsignedinteger[Any]]


class DType(NamedTuple):
    """One element type: its number in the file, bytes an element, whether its values are floating-point."""

    number: int
    itemsize: int
    floating: bool


DTYPES = {
    "float32": DType(1, 4, True),
    "float16": DType(2, 2, True),
    "bfloat16": DType(3, 2, True),
    "float64": DType(4, 8, True),
    "bool": DType(5, 1, False),
    "uint8": DType(6, 1, False),
    "int8": DType(7, 1, False),
    "uint16": DType(8, 2, False),
    "int16": DType(9, 2, False),
    "uint32": DType(10, 4, False),
    "int32": DType(11, 4, False),
    "uint64": DType(12, 8, False),
    "int64": DType(13, 8, False),
    "float8_e4m3fn": DType(15, 1, True),
    "float8_e5m2": DType(16, 1, True),
    "float8_e4m3fnuz": DType(17, 1, True),
    "float8_e5m2fnuz": DType(18, 1, True),
    "float8_e8m0fnu": DType(19, 1, True),
}
NAMES = {dtype.number: name for name, dtype in DTYPES.items()}
FOREIGN = frozenset({"bfloat16", *(name for name in DTYPES if name.startswith("float8"))})


def unsigned(name: str) -> np.dtype[Any]:
    """The unsigned integer type that holds one element's bits, e.g. uint32 for "float32"."""
    return np.dtype(f"u{DTYPES[name].itemsize}")


def to_array(bits: Bits, name: str) -> NDArray[Any]:
    """`bits` as an ordinary array of their shape; types that numpy lacks are widened exactly to float32."""
    if name == "bfloat16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if name in FOREIGN:
        return float8_values(name)[bits]
    return bits.view(np.dtype(name))


def float8_values(name: str) -> NDArray[np.float32]:
    """The values (256,) of all patterns of a float8 type, after the OCP 8-bit formats and their fnuz kin."""
    pattern = np.arange(256)
    if name == "float8_e8m0fnu":
        return np.where(pattern == 255, np.nan, np.ldexp(1.0, pattern - 127)).astype(np.float32)
    mantissa_bits = 3 if "e4m3" in name else 2
    unsigned_zero = name.endswith("fnuz")
    bias = (8 if "e4m3" in name else 16) - (0 if unsigned_zero else 1)
    exponent = (pattern & 127) >> mantissa_bits
    mantissa = pattern & ((1 << mantissa_bits) - 1)
    magnitude = np.ldexp(
        mantissa + np.where(exponent > 0, 1 << mantissa_bits, 0),
        np.maximum(exponent, 1) - bias - mantissa_bits,
    )
    values: NDArray[np.float32] = np.where(pattern < 128, magnitude, -magnitude).astype(np.float32)
    if unsigned_zero:
        values[128] = np.nan
    elif name == "float8_e4m3fn":
        values[[127, 255]] = np.nan
    else:
        values[[124, 252]] = np.inf, -np.inf
        values[[125, 126, 127, 253, 254, 255]] = np.nan
    return values


def order(bits: Bits, name: str) -> Bits:
    """Keys (unsigned integers, of the shape and width of `bits`) that ascend as the values of type `name` do."""
    top = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    if DTYPES[name].floating:
        return np.where(bits & top, ~bits, bits ^ top)
    return bits ^ top if name.startswith("int") else bits


def narrower(name: str) -> tuple[str, ...]:
    """Types with fewer bytes in which values of type `name` may be stored, the best first."""
    if name in {"float32", "float64"}:
        kin: tuple[str, ...] = ("float16", "bfloat16", "float32")
    elif name.startswith(("int", "uint")):
        kin = ("uint8", "int8", "uint16", "int16", "uint32", "int32")
    else:
        return ()
    return tuple(other for other in kin if DTYPES[other].itemsize < DTYPES[name].itemsize)


def narrow(bits: Bits, name: str) -> tuple[str, Bits]:
    """The first of `narrower(name)` that holds all of `bits` exactly, else `name` itself; and the bits in that type.

    Bit patterns are compared, so -0.0 survives; a NaN rules out every conversion but float32 to bfloat16, which
    merely drops zero bits.
    """
    some = bits.reshape(-1)[:: max(1, bits.size // 1024)]
    for target in narrower(name):
        likely = shrink(some, name, target) is not None
        small = shrink(bits, name, target) if likely else None
        if small is not None:
            return target, small
    return name, bits


def shrink(bits: Bits, name: str, target: str) -> Bits | None:
    """`bits` of type `name` as bits of type `target`, or None where that is not exact.

    Args:
        bits: of any shape.
        name: their type.
        target: one of `narrower(name)`, or the same.
    """
    if target == name:
        return bits
    if not DTYPES[name].floating:
        small: Bits = bits.astype(unsigned(target))
        return small if np.array_equal(widen(small, target, name), bits) else None
    if name == "float32" and target == "bfloat16":
        small = (bits >> np.uint32(16)).astype(np.uint16)
    else:
        small = _convert(bits, name, target)
    exact = np.array_equal(widen(small, target, name), bits) and not _loses_nan(bits, name, target)
    return small if exact else None


def widen(small: Bits, source: str, name: str) -> Bits:
    """The exact inverse of `shrink`: bits of type `source` as bits of the wider type `name`.

    Args:
        small: of any shape.
        source: their type.
        name: the wider one.
    """
    if source == name:
        return small
    if source == "bfloat16":
        small, source = small.astype(np.uint32) << np.uint32(16), "float32"
    with np.errstate(invalid="ignore"):
        return small if source == name else small.view(source).astype(name).view(unsigned(name))


def _convert(bits: Bits, name: str, target: str) -> Bits:
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        values = bits.view(name)
        if target != "bfloat16":
            return values.astype(target).view(unsigned(target))
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)


def _loses_nan(bits: Bits, name: str, target: str) -> bool:
    """Conversions in hardware may quieten a signalling NaN, in other ways on other machines."""
    return not (name == "float32" and target == "bfloat16") and bool(np.isnan(bits.view(name)).any())


@dataclass(frozen=True, eq=False)
class RawTensor:
    """A tensor of any dtype as bits: unsigned integers of the tensor's shape, as wide as one element.

    For instance `RawTensor(np.array([0x3F80], np.uint16), "bfloat16")` is the bfloat16 tensor [1.0].
    """

    bits: Bits
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InputError(f"dtype {self.dtype!r} cannot be stored; known are {', '.join(DTYPES)}")
        if not isinstance(self.bits, np.ndarray) or self.bits.dtype != unsigned(self.dtype):
            got = self.bits.dtype if isinstance(self.bits, np.ndarray) else type(self.bits).__name__
            raise InputError(f"bits of {self.dtype} are an array of {unsigned(self.dtype)}, not {got}")
        if self.dtype == "bool" and self.bits.size and self.bits.max() > 1:
            raise InputError(f"bits of bool are 0 or 1, not {self.bits.max()}")


def raw_of(name: object, tensor: object) -> RawTensor:
    """A tensor as bits, in native byte order.

    Raises:
        InputError: it, or its name, cannot be stored.
    """
    if not isinstance(name, str):
        raise InputError(f"tensor names are text, not {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(f"the tensor name {name!r} is not valid Unicode") from None
    if isinstance(tensor, RawTensor):
        return tensor
    if not isinstance(tensor, np.ndarray | np.generic):
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        raise InputError(
            f"{name}: expected a numpy array or RawTensor, got {kind}; deepcompression.torch saves torch's"
        )
    array = np.asarray(tensor)
    if array.dtype.name not in DTYPES:
        raise InputError(f"{name}: dtype {array.dtype} cannot be stored; known are {', '.join(DTYPES)}")
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")).reshape(array.shape)
    return RawTensor(array.view(unsigned(array.dtype.name)), array.dtype.name)


@dataclass(frozen=True)
class Writing:
    """What is the same in all layouts that are tried for a tensor: what it is, and how it is to be written."""

    dtype: str
    shape: tuple[int, ...]
    coder: str = "huffman"
    threads: int = 1

    @property
    def columns(self) -> int:
        """Columns of the matrix that the tensor is looked at as: a row an output channel."""
        return math.prod(self.shape[1:]) if len(self.shape) > 1 else math.prod(self.shape)
