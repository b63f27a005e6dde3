"""Words for code that numba does not write itself: vectors of floats in LLVM's own language, at addresses.

Numba makes loops into vectors where it sees how; sums over indexed places it does not see. What stands here is used by
``dots`` and ``tiles`` to say each instruction.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

_codegen: Any = cpu_target.target_context.codegen()
WIDE = "+avx512f" in _codegen.magic_tuple()[2]  # 16 floats at once, and a gather of as many
LANES = 16 if WIDE else 8
F32, BIT, I8, I16, I32, I64 = ir.FloatType(), *(ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
BITS_OF_LANES = ir.IntType(LANES)

made: Any = intrinsic  # typed for callers that pass the typing context themselves
for_range: Any = cgutils.for_range
of_loop: Any = cgutils.alloca_once_value
number: Any = ir.Constant
_declared: Any = cgutils.get_or_insert_function
_pointer_to: Any = types.CPointer


def signature(returned: Any, arguments: int) -> Any:
    """Of a function of so many 64-bit integers: addresses and counts."""
    return returned(*[types.int64] * arguments)


def vector(kind: Any, places: int) -> Any:
    """A vector of a kind."""
    return ir.VectorType(kind, places)


def many(kind: Any) -> Any:
    """The vector of ``LANES`` of a kind."""
    return ir.VectorType(kind, LANES)


def zeros(kind: Any) -> Any:
    """A vector of zeros."""
    return number(many(kind), [0] * LANES if kind is not F32 else [0.0] * LANES)


def count(value: int) -> Any:
    """A 64-bit number."""
    return number(I64, value)


def pointer(build: Any, address: Any, kind: Any) -> Any:
    """To what stands at an address.

    Args:
        build: where the instructions go.
        address: a 64-bit number.
        kind: of what stands there.
    """
    return build.inttoptr(address, ir.PointerType(kind))


def load(build: Any, address: Any, kind: Any) -> Any:
    """A value at an address, aligned or not.

    Args:
        build: where the instructions go.
        address: a 64-bit number.
        kind: of the value.
    """
    return build.load(pointer(build, address, kind), align=1)


def store(build: Any, value: Any, address: Any) -> None:
    """The inverse of ``load``.

    Args:
        build: where the instructions go.
        value: it.
        address: a 64-bit number.
    """
    build.store(value, pointer(build, address, value.type), align=1)


def splat(build: Any, value: Any) -> Any:
    """A vector of one value in all places."""
    kind = many(value.type)
    one = build.insert_element(number(kind, ir.Undefined), value, number(I32, 0))
    return build.shuffle_vector(one, number(kind, ir.Undefined), zeros(I32))


def call(build: Any, name: str, kind: Any, arguments: list[Any], fast: tuple[str, ...] = ()) -> Any:
    """What an intrinsic of LLVM returns.

    Args:
        build: where the instructions go.
        name: of the intrinsic.
        kind: of what it returns.
        arguments: of it.
        fast: what the arithmetic need not keep, such as the order of a sum (reassoc).
    """
    function_type = ir.FunctionType(kind, [one.type for one in arguments])
    return build.call(_declared(build.module, function_type, name), arguments, fastmath=fast)


def gather(build: Any, base: Any, index: Any, mask: Any) -> Any:
    """Floats at ``base`` + 4 x index, 0 where the mask is off; of AVX-512.

    Args:
        build: where the instructions go.
        base: an address.
        index: a vector of 32-bit numbers.
        mask: a vector of bits.
    """
    arguments = [zeros(F32), pointer(build, base, I8), index, mask, number(I32, 4)]
    return call(build, "llvm.x86.avx512.mask.gather.dps.512", many(F32), arguments)


def looked_up(build: Any, tables: list[Any], index: Any) -> Any:
    """Floats by their places in registers: one table of 16, two, or four; of AVX-512.

    Args:
        build: where the instructions go.
        tables: vectors.
        index: a vector of 32-bit numbers, below what there are.
    """
    if len(tables) == 1:
        return call(build, "llvm.x86.avx512.permvar.sf.512", many(F32), [tables[0], index])
    halves = [_of_two(build, tables[at : at + 2], index) for at in range(0, len(tables), 2)]
    if len(halves) == 1:
        return halves[0]
    upper = build.icmp_unsigned(">=", index, splat(build, number(I32, 32)))
    return build.select(upper, halves[1], halves[0])


def _of_two(build: Any, tables: list[Any], index: Any) -> Any:
    return call(build, "llvm.x86.avx512.vpermi2var.ps.512", many(F32), [tables[0], index, tables[1]])


def added(build: Any, sum_: Any, one: Any, other: Any) -> Any:
    """``sum_`` + one x other, rounded once.

    Args:
        build: where the instructions go.
        sum_: a vector.
        one: a vector.
        other: a vector.
    """
    return call(build, f"llvm.fma.v{LANES}f32", many(F32), [one, other, sum_])


def total(build: Any, vectors: list[Any]) -> Any:
    """The sum of all places of all vectors."""
    while len(vectors) > 1:
        vectors = [build.fadd(*vectors[at : at + 2]) for at in range(0, len(vectors), 2)]
    return call(build, f"llvm.vector.reduce.fadd.v{LANES}f32", F32, [number(F32, -0.0), vectors[0]], ("reassoc",))


def _at(kind: Any, of: Any) -> Any:
    def typed(typing: Any, address: Any) -> Any:
        return of(types.int64), lambda context, build, signature, values: pointer(build, values[0], kind)

    return made(typed)


bytes_at: Any = _at(I8, _pointer_to(types.uint8))  # what ``carray`` takes, of an address
halves_at: Any = _at(I16, _pointer_to(types.uint16))
floats_at: Any = _at(F32, _pointer_to(types.float32))
