"""Signs as bits of words of 64: how floats of two values become them, and in how many bits two rows differ."""

from __future__ import annotations

from typing import Any

from numba.core import types

from deepcompression.runtime import vectors as v

WORDS = 8  # at once


def _differing(build: Any, values: list[Any]) -> Any:
    """(address, address, words): the bits that are unlike."""
    one, other, words = values
    wide = v.vector(v.I64, WORDS)
    sum_ = v.of_loop(build, v.number(wide, [0] * WORDS))
    turns = build.udiv(words, v.count(WORDS))
    with v.for_range(build, turns, intp=v.I64) as loop:
        at = build.mul(loop.index, v.count(8 * WORDS))
        build.store(build.add(build.load(sum_), _unlike(build, one, other, at, wide)), sum_)
    rest = v.of_loop(build, v.count(0))
    done = build.mul(turns, v.count(WORDS))
    with v.for_range(build, build.sub(words, done), intp=v.I64) as loop:
        at = build.mul(build.add(done, loop.index), v.count(8))
        build.store(build.add(build.load(rest), _unlike(build, one, other, at, v.I64)), rest)
    whole = v.call(build, f"llvm.vector.reduce.add.v{WORDS}i64", v.I64, [build.load(sum_)])
    return build.add(whole, build.load(rest))


def _unlike(build: Any, one: Any, other: Any, at: Any, kind: Any) -> Any:
    bits = build.xor(*(v.load(build, build.add(base, at), kind) for base in (one, other)))
    name = "llvm.ctpop.i64" if kind is v.I64 else f"llvm.ctpop.v{WORDS}i64"
    return v.call(build, name, kind, [bits])


def _packed(build: Any, values: list[Any]) -> Any:
    """(floats, vectors, low, high, bits): a bit is on where a float is ``high``; how many floats are neither."""
    floats, vectors, low, high, bits = values
    least, most = v.splat(build, low), v.splat(build, high)
    whole = v.number(v.BITS_OF_LANES, 0)
    other = v.of_loop(build, whole)
    with v.for_range(build, vectors, intp=v.I64) as loop:
        value = v.load(build, build.add(floats, build.mul(loop.index, v.count(4 * v.LANES))), v.many(v.F32))
        on = build.fcmp_ordered("==", value, most)
        neither = build.not_(build.or_(on, build.fcmp_ordered("==", value, least)))
        build.store(build.or_(build.load(other), build.bitcast(neither, v.BITS_OF_LANES)), other)
        address = build.add(bits, build.mul(loop.index, v.count(v.LANES // 8)))
        v.store(build, build.bitcast(on, v.BITS_OF_LANES), address)
    return build.zext(build.icmp_unsigned("!=", build.load(other), whole), v.I64)


@v.made  # type: ignore[untyped-decorator]
def differing(typing: Any, one: Any, other: Any, words: Any) -> Any:
    """Bits that are unlike in words at two addresses.

    Args:
        typing: numba's.
        one: an address.
        other: an address.
        words: of 64 bits.
    """
    return v.signature(types.int64, 3), lambda context, build, signature, values: _differing(build, values)


@v.made  # type: ignore[untyped-decorator]
def packed(typing: Any, floats: Any, vectors: Any, low: Any, high: Any, bits: Any) -> Any:
    """Bits of floats that are ``low`` or ``high``, some vectors of them; not 0 where one is neither.

    Args:
        typing: numba's.
        floats: an address.
        vectors: of ``LANES`` floats.
        low: a float.
        high: a float.
        bits: the address that is filled.
    """
    kinds = types.int64, types.int64, types.float32, types.float32, types.int64
    return types.int64(*kinds), lambda context, build, signature, values: _packed(build, values)
