"""A weight inside a Core ML program, in the form that takes the fewest bytes: bits are those of the weight.

Core ML's own compressed constants (iOS 18, macOS 15): a mask of bits and the values that are not zero, a palette and
codes of few bits, both together, integers times a scale for each output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression.export.exported import Array
from deepcompression.export.onnx_layers import integers_of

WIDTHS = (1, 2, 3, 4, 6, 8)  # bits that a code of a palette may have
LEAST_BYTES = 256  # of a tensor; what a form adds to the program is more
OVERHEAD = 64  # bytes of a stored array, where it begins at a multiple of 64


@dataclass(frozen=True)
class Form:
    """How a weight is held: in words, in bytes, and what makes its operations, given a name and where to put them."""

    name: str
    bytes: int
    make: Callable[..., Any]


def smallest(values: Array) -> Form | None:
    """The smallest form; None where that is the values themselves.

    Args:
        values: float32, two dimensions or more.
    """
    forms = [form for form in _forms(values) if form.bytes < values.nbytes]
    return min(forms, key=lambda form: form.bytes) if values.nbytes > LEAST_BYTES and forms else None


def _forms(values: Array) -> Iterator[Form]:
    bits = np.ascontiguousarray(values).view(np.uint32)
    kept = bits != 0  # -0.0 is a value
    table, codes = np.unique(bits, return_inverse=True)
    if _width(len(table)):
        yield _palette(table, codes.reshape(bits.shape))
    if kept.any() and not kept.all():
        yield _sparse(values, kept)
        table, codes = np.unique(bits[kept], return_inverse=True)
        if _width(len(table)):
            yield _sparse_palette(table, codes.reshape(-1), kept)
    for axis in (0, values.ndim - 1):
        found = integers_of(values, axis)
        if found is not None and not found.zero:
            yield _integers(found.codes, found.along(found.scales.astype(np.float32)))
            return


def _width(values: int) -> int:
    """Bits of a code of a palette of so many values; 0 where there is no such."""
    return next((bits for bits in WIDTHS if values <= 1 << bits), 0)


def _lut(table: NDArray[np.uint32], rank: int) -> tuple[int, Array]:
    """The width of codes, and the palette: 2^width values, of which those at the end may be the last one again."""
    width = _width(len(table))
    whole = np.concatenate([table, np.repeat(table[-1:], (1 << width) - len(table))]).view(np.float32)
    return width, whole.reshape(*[1] * rank, -1, 1)


def _unsigned(codes: Array, width: int) -> Array:
    from coremltools.converters.mil.mil import types

    return codes.astype(types.nptype_from_builtin(types.string_to_builtin(f"uint{width}")))


def _palette(table: NDArray[np.uint32], codes: Array) -> Form:
    width, lut = _lut(table, codes.ndim)

    def make(**where: Any) -> Any:
        from coremltools.converters.mil.mil import Builder

        return Builder.constexpr_lut_to_dense(indices=_unsigned(codes, width), lut=lut, **where)

    return Form(f"palette, codes of {width} bits", _bytes(codes.size, width) + lut.nbytes + OVERHEAD, make)


def _sparse(values: Array, kept: NDArray[np.bool_]) -> Form:
    def make(**where: Any) -> Any:
        from coremltools.converters.mil.mil import Builder

        return Builder.constexpr_sparse_to_dense(nonzero_data=values[kept], mask=_unsigned(kept, 1), **where)

    return Form("mask, values", _bytes(kept.size, 1) + 4 * int(kept.sum()) + OVERHEAD, make)


def _sparse_palette(table: NDArray[np.uint32], codes: Array, kept: NDArray[np.bool_]) -> Form:
    width, lut = _lut(table, kept.ndim)

    def make(**where: Any) -> Any:
        from coremltools.converters.mil.mil import Builder

        name = where.pop("name")
        mask, found = Builder.constexpr_lut_to_sparse(
            indices_mask=_unsigned(kept, 1),
            indices_nonzero_data=_unsigned(codes, width),
            lut=lut,
            name=f"{name}_values",
            **where,
        )
        return Builder.constexpr_sparse_to_dense(nonzero_data=found, mask=mask, name=name, **where)

    total = _bytes(kept.size, 1) + _bytes(codes.size, width) + lut.nbytes + 2 * OVERHEAD
    return Form(f"mask, palette, codes of {width} bits", total, make)


def _integers(codes: NDArray[np.int32], scales: Array) -> Form:
    width = 4 if codes.min() >= -8 and codes.max() <= 7 else 8

    def make(**where: Any) -> Any:
        from coremltools.converters.mil.mil import Builder, types

        data = codes.astype(types.nptype_from_builtin(types.string_to_builtin(f"int{width}")))
        return Builder.constexpr_blockwise_shift_scale(data=data, scale=scales, **where)

    return Form(f"integers of {width} bits", _bytes(codes.size, width) + scales.nbytes + OVERHEAD, make)


def _bytes(count: int, bits: int) -> int:
    return -(-count * bits // 8)
