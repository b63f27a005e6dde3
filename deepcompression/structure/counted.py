"""A tensor's values counted by at most 65,536 patterns: what thresholds and codebooks are found from.

A pattern is an element's upper 16 bits, sign, exponent and the first bits of the mantissa: of types of 8 and 16 bits
the value itself, of float32 a bin of 1/128 of the value or less. So outliers cost nothing, and one pass counts all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression._parallel import mapped
from deepcompression.codec.dtypes import DTYPES, Bits, RawTensor, order, to_array, unsigned

Floats = NDArray[np.float64]
SLICE = 1 << 20  # elements whose intermediate results stay small
KINDS = frozenset(name for name, dtype in DTYPES.items() if dtype.floating and name != "float8_e8m0fnu")


@dataclass(frozen=True, eq=False)
class Counted:
    """How often each pattern occurs in a tensor.

    Attributes:
        dtype: of the patterns: the tensor's own, or bfloat16 for float32.
        counts: (256,) or (65536,) int64, by pattern.
        sums: of the elements of each pattern, float64; not finite where they are not.
        zeros: how many elements are zero; of float32, those too small for bfloat16 are in the patterns of zero.
    """

    dtype: str
    counts: NDArray[np.int64]
    sums: Floats
    zeros: int

    @property
    def finite(self) -> bool:
        """Whether no element is NaN or infinite."""
        return bool(np.isfinite(values_of(self.dtype)[self.counts > 0]).all())

    @property
    def elements(self) -> int:
        """Of the tensor."""
        return int(self.counts.sum())


def narrowed(raw: RawTensor) -> Bits:
    """The elements (n,) as they are looked at: bits of the tensor, or of float32 for float64."""
    flat = np.ascontiguousarray(raw.bits).reshape(-1)
    if raw.dtype != "float64":
        return flat
    with np.errstate(over="ignore", invalid="ignore"):
        return flat.view(np.float64).astype(np.float32).view(np.uint32)


def patterns(part: Bits) -> Bits:
    """The pattern of each element of `part` (m,)."""
    return part if part.itemsize <= 2 else (part >> np.uint32(16)).astype(np.uint16)


def pattern_type(dtype: str) -> str:
    """The type whose values the patterns of type `dtype` are, or begin with."""
    return dtype if DTYPES[dtype].itemsize <= 2 else "bfloat16"


def counted(flat: Bits, dtype: str, threads: int = 1) -> Counted:
    """The elements `flat` (n,), as `narrowed` gives them, counted.

    Args:
        flat: (n,) bits.
        dtype: of the tensor, one of KINDS.
        threads: at most so many; the counts do not depend on it.
    """
    kind = pattern_type(dtype)
    size = 1 << (8 * unsigned(kind).itemsize)
    pieces = range(0, flat.size, SLICE)
    if flat.itemsize <= 2:
        counts = _summed(mapped(lambda at: np.bincount(flat[at : at + SLICE], minlength=size), pieces, threads), size)
        used = np.where(counts > 0, values_of(kind), 0.0)
        return Counted(kind, counts, used * counts, int(counts[values_of(kind) == 0].sum()))
    made = mapped(lambda at: _wide(flat[at : at + SLICE], size), pieces, threads)
    sums: Floats = np.sum([sums for _, sums, _ in made], axis=0, dtype=np.float64) if made else np.zeros(size)
    return Counted(kind, _summed([one for one, _, _ in made], size), sums, sum(zeros for _, _, zeros in made))


def _summed(parts: list[NDArray[np.int64]], size: int) -> NDArray[np.int64]:
    return np.sum(parts, axis=0, dtype=np.int64) if parts else np.zeros(size, np.int64)


def _wide(part: Bits, size: int) -> tuple[NDArray[np.int64], Floats, int]:
    zeros = part.size - int(np.count_nonzero(part & np.uint32(0x7FFFFFFF)))
    found = patterns(part)
    counts: NDArray[np.int64] = np.bincount(found, minlength=size).astype(np.int64, copy=False)
    return counts, np.bincount(found, part.view(np.float32), minlength=size).astype(np.float64, copy=False), zeros


@cache
def values_of(kind: str) -> Floats:
    """The value of each pattern of a type of 8 or 16 bits."""
    size = 8 * unsigned(kind).itemsize
    with np.errstate(invalid="ignore"):
        return to_array(np.arange(1 << size, dtype=unsigned(kind)), kind).astype(np.float64)


@cache
def ascending_patterns(kind: str) -> Bits:
    """All finite patterns, ascending by value."""
    every = np.arange(len(values_of(kind)), dtype=unsigned(kind))
    ascending = every[np.argsort(order(every, kind), kind="stable")]
    return ascending[np.isfinite(values_of(kind)[ascending])]


@cache
def nearest_borders(kind: str) -> Floats:
    """Between the values of neighbours in `ascending_patterns`."""
    known = values_of(kind)[ascending_patterns(kind)]
    return (known[1:] + known[:-1]) / 2


@cache
def least_pattern(kind: str) -> Any:
    """The pattern of the smallest value above zero."""
    positive = np.flatnonzero(values_of(kind) > 0)
    return unsigned(kind).type(positive[np.argmin(values_of(kind)[positive])])
