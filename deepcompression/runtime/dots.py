"""One output of a sparse layer: the sum of weights times inputs, over entries of 16 bits.

An entry has the column within its block in its low bits, and the code of the weight above them. The places of a vector
take 16 entries at once: inputs are gathered, weights come from a table in registers where there are at most 64.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from deepcompression._numba import compiled
from deepcompression.runtime import vectors as v

TURN = 4  # vectors between two looks at the end: gathers are slow to answer, and several can wait
Weights = Callable[[Any, Any, Any, Any], Any]
_array: Any = numba.carray  # type: ignore[attr-defined]


def _loop(build: Any, entries: Any, step: Callable[[Any, Any, Any], None]) -> Any:
    """The sum of what ``step(entry, sum, mask)`` adds for all entries."""
    sums = [v.of_loop(build, v.zeros(v.F32)) for _ in range(TURN)]
    turn = v.count(TURN * v.LANES)
    turns = build.udiv(entries, turn)
    with v.for_range(build, turns, intp=v.I64) as loop:
        for place, sum_ in enumerate(sums):
            step(build.add(build.mul(loop.index, turn), v.count(place * v.LANES)), sum_, None)
    done = build.mul(turns, turn)
    left = build.sub(entries, done)
    lanes = v.number(v.many(v.I32), list(range(v.LANES)))
    with v.for_range(build, build.udiv(build.add(left, v.count(v.LANES - 1)), v.count(v.LANES)), intp=v.I64) as loop:
        at = build.mul(loop.index, v.count(v.LANES))
        mask = build.icmp_unsigned("<", lanes, v.splat(build, build.trunc(build.sub(left, at), v.I32)))
        step(build.add(done, at), sums[0], mask)
    return v.total(build, [build.load(sum_) for sum_ in sums])


def _dot(build: Any, values: list[Any], weights: Weights) -> Any:
    """The instructions of a dot; ``weights`` gives those of some entries."""
    first, entries, low, _, inputs = values
    below = build.sub(build.shl(v.count(1), low), v.count(1))
    columns, shift = (v.splat(build, build.trunc(one, v.I32)) for one in (below, low))

    def step(at: Any, sum_: Any, mask: Any) -> None:
        address = build.add(first, build.shl(at, v.count(1)))
        entry = build.zext(v.load(build, address, v.many(v.I16)), v.many(v.I32))
        if mask is not None:
            entry = build.select(mask, entry, v.zeros(v.I32))
        on = v.number(v.many(v.BIT), [1] * v.LANES) if mask is None else mask
        found = v.gather(build, inputs, build.and_(entry, columns), on)
        build.store(v.added(build, build.load(sum_), found, weights(build.lshr(entry, shift), at, on, build)), sum_)

    return _loop(build, entries, step)


def _of_registers(build: Any, values: list[Any], tables: int) -> Any:
    held = [v.load(build, build.add(values[3], v.count(64 * place)), v.many(v.F32)) for place in range(tables)]
    return _dot(build, values, lambda code, at, mask, build: v.looked_up(build, held, code))


def _of_memory(build: Any, values: list[Any]) -> Any:
    return _dot(build, values, lambda code, at, mask, build: v.gather(build, values[3], code, mask))


def _of_entries(build: Any, values: list[Any]) -> Any:
    def weights(code: Any, at: Any, mask: Any, build: Any) -> Any:
        return v.load(build, build.add(values[3], build.shl(at, v.count(2))), v.many(v.F32))

    return _dot(build, values, weights)


def _dot_of(body: Callable[..., Any]) -> Any:
    """A dot as numba calls it: (first entry, entries, low bits, weights, inputs), addresses and counts, to a float."""

    def typed(typing: Any, first: Any, entries: Any, low: Any, weights: Any, inputs: Any) -> Any:
        return v.signature(types.float32, 5), lambda context, build, signature, values: body(build, values)

    return v.made(typed)


@compiled
def _looked_up_one_by_one(first: int, entries: int, low: int, weights: int, inputs: int) -> Any:
    """The same without AVX-512: four sums side by side."""
    entry = _array(v.halves_at(first), entries)
    weight, value = _array(v.floats_at(weights), 1 << (16 - low)), _array(v.floats_at(inputs), 1 << low)
    mask = (1 << low) - 1
    a = b = c = d = np.float32(0)
    whole = entries // 4 * 4
    for j in range(0, whole, 4):
        a += weight[entry[j] >> low] * value[entry[j] & mask]
        b += weight[entry[j + 1] >> low] * value[entry[j + 1] & mask]
        c += weight[entry[j + 2] >> low] * value[entry[j + 2] & mask]
        d += weight[entry[j + 3] >> low] * value[entry[j + 3] & mask]
    for j in range(whole, entries):
        a += weight[entry[j] >> low] * value[entry[j] & mask]
    return (a + b) + (c + d)


@compiled
def _of_entries_one_by_one(first: int, entries: int, low: int, weights: int, inputs: int) -> Any:
    """The same of weights of their own."""
    entry, weight = _array(v.halves_at(first), entries), _array(v.floats_at(weights), entries)
    value = _array(v.floats_at(inputs), 1 << low)
    a = b = c = d = np.float32(0)
    whole = entries // 4 * 4
    for j in range(0, whole, 4):
        a += weight[j] * value[entry[j]]
        b += weight[j + 1] * value[entry[j + 1]]
        c += weight[j + 2] * value[entry[j + 2]]
        d += weight[j + 3] * value[entry[j + 3]]
    for j in range(whole, entries):
        a += weight[j] * value[entry[j]]
    return (a + b) + (c + d)


of_32: Any = _looked_up_one_by_one  # codes below 32, whose weights lie in 32 floats
of_64: Any = _looked_up_one_by_one  # below 64, likewise
of_any: Any = _looked_up_one_by_one
of_entries: Any = _of_entries_one_by_one  # each entry has its weight, a float
if v.WIDE:
    of_32 = _dot_of(lambda build, values: _of_registers(build, values, 2))
    of_64 = _dot_of(lambda build, values: _of_registers(build, values, 4))
    of_any, of_entries = _dot_of(_of_memory), _dot_of(_of_entries)
