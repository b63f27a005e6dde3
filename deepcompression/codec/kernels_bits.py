"""Compiled: words of a byte array at any place, which numba has no way to ask for."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.cgutils import get_item_pointer
from numba.extending import intrinsic

_intrinsic: Any = intrinsic  # typed for callers that pass the typing context themselves
_pointer: Any = get_item_pointer


def _element(context: Any, builder: Any, array_type: Any, array: Any, index: Any, bits: int) -> Any:
    """A pointer to `bits` bits that begin at a byte of a uint8 array, aligned or not."""
    made = context.make_array(array_type)(context, builder, array)
    pointer = _pointer(context, builder, array_type, made, [index], wraparound=False)
    return builder.bitcast(pointer, ir.IntType(bits).as_pointer())


@_intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, array: Any, at: Any) -> Any:
    """The 64 bits from a byte of an array on, lowest first (on little-endian machines).

    Args:
        typing: the context of compiling, which callers in compiled code leave out.
        array: of uint8.
        at: the byte.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        load = builder.load(_element(context, builder, signature.args[0], values[0], values[1], 64))
        load.align = 1
        return load

    return types.uint64(array, types.int64), generate


@_intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """Write 32 bits to four bytes of an array.

    Args:
        typing: the context of compiling, which callers in compiled code leave out.
        array: of uint8.
        at: the first of the bytes.
        value: whose low bits they are.
    """
    return types.void(array, types.int64, types.uint64), _storing(32)


@_intrinsic  # type: ignore[untyped-decorator]
def store_eight(typing: Any, array: Any, at: Any, value: Any) -> Any:
    """Write 64 bits to eight bytes of an array.

    Args:
        typing: the context of compiling, which callers in compiled code leave out.
        array: of uint8.
        at: the first of the bytes.
        value: the bits.
    """
    return types.void(array, types.int64, types.uint64), _storing(64)


def _storing(bits: int) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = values[2] if bits == 64 else builder.trunc(values[2], ir.IntType(bits))
        builder.store(word, _element(context, builder, signature.args[0], values[0], values[1], bits), align=1)
        return context.get_dummy_value()

    return generate
