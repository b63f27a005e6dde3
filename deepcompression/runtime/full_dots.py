"""One row of a weight without zeros: times inputs, or decoded to floats, vector by vector.

A row is integers of 8 bits, codes of 8 or 4 bits whose values lie in a table, or signs, one bit each. Rows and inputs
are padded to whole pairs of vectors of 16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import types

from deepcompression._numba import compiled
from deepcompression.runtime import vectors as v

WHOLE = 32  # columns of a step
PARTS = WHOLE // v.LANES
Decode = Callable[[Any, Any, Any, int], Any]  # (build, address of a row, step, part) to a vector
_array: Any = numba.carray  # type: ignore[attr-defined]


def _integers(build: Any, row: Any, step: Any, part: int) -> Any:
    address = build.add(row, build.add(build.mul(step, v.count(WHOLE)), v.count(part * v.LANES)))
    return build.sitofp(v.load(build, address, v.many(v.I8)), v.many(v.F32))


def _signs(build: Any, row: Any, step: Any, part: int) -> Any:
    """1 where a bit is on, else -1."""
    bytes_ = v.LANES // 8
    address = build.add(row, build.add(build.mul(step, v.count(WHOLE // 8)), v.count(part * bytes_)))
    bits = v.load(build, address, v.I16 if bytes_ == 2 else v.I8)
    ones = v.number(v.many(v.F32), [1.0] * v.LANES)
    return build.select(build.bitcast(bits, v.many(v.BIT)), ones, v.number(v.many(v.F32), [-1.0] * v.LANES))


def _codes8(tables: list[Any]) -> Decode:
    def decode(build: Any, row: Any, step: Any, part: int) -> Any:
        address = build.add(row, build.add(build.mul(step, v.count(WHOLE)), v.count(part * v.LANES)))
        code = build.zext(v.load(build, address, v.many(v.I8)), v.many(v.I32))
        if len(tables) > 1:
            return v.looked_up(build, tables, code)
        return v.gather(build, tables[0], code, v.number(v.many(v.BIT), [1] * v.LANES))

    return decode


def _codes4(table: Any) -> Decode:
    def decode(build: Any, row: Any, step: Any, part: int) -> Any:
        code = build.zext(
            v.load(build, build.add(row, build.mul(step, v.count(WHOLE // 2))), v.many(v.I8)), v.many(v.I32)
        )
        shifted = build.lshr(code, v.splat(build, v.number(v.I32, 4))) if part else code
        return v.looked_up(build, [table], shifted)

    return decode


def _dot(build: Any, values: list[Any], decode: Decode) -> Any:
    """(row, steps, table, inputs): the sum of products."""
    row, steps, _, inputs = values
    sums = [v.of_loop(build, v.zeros(v.F32)) for _ in range(4)]
    with v.for_range(build, build.udiv(steps, v.count(2)), intp=v.I64) as loop:
        for half in range(2):
            step = build.add(build.mul(loop.index, v.count(2)), v.count(half))
            for part in range(PARTS):
                _add(build, sums[(half * PARTS + part) % 4], decode(build, row, step, part), inputs, step, part)
    with v.for_range(build, build.urem(steps, v.count(2)), intp=v.I64) as loop:
        step = build.add(build.sub(steps, v.count(1)), loop.index)
        for part in range(PARTS):
            _add(build, sums[part % 4], decode(build, row, step, part), inputs, step, part)
    return v.total(build, [build.load(sum_) for sum_ in sums])


def _add(build: Any, sum_: Any, weights: Any, inputs: Any, step: Any, part: int) -> None:
    found = v.load(build, _place(build, inputs, step, part), v.many(v.F32))
    build.store(v.added(build, build.load(sum_), found, weights), sum_)


def _place(build: Any, floats: Any, step: Any, part: int) -> Any:
    return build.add(floats, build.add(build.mul(step, v.count(4 * WHOLE)), v.count(4 * part * v.LANES)))


def _row(build: Any, values: list[Any], decode: Decode) -> None:
    """(row, steps, table, outputs): the row as floats."""
    row, steps, _, outputs = values
    with v.for_range(build, steps, intp=v.I64) as loop:
        for part in range(PARTS):
            v.store(build, decode(build, row, loop.index, part), _place(build, outputs, loop.index, part))


def _tables(build: Any, address: Any, many: int) -> list[Any]:
    return [v.load(build, build.add(address, v.count(64 * place)), v.many(v.F32)) for place in range(many)]


def _compiled(decoder: Callable[[Any, Any], Decode]) -> tuple[Any, Any]:
    """Dot and row as numba calls them: (row, steps, table, inputs or outputs), addresses and a count."""

    def dot(typing: Any, row: Any, steps: Any, table: Any, inputs: Any) -> Any:
        def generate(context: Any, build: Any, signature: Any, values: list[Any]) -> Any:
            return _dot(build, values, decoder(build, values[2]))

        return v.signature(types.float32, 4), generate

    def row(typing: Any, row: Any, steps: Any, table: Any, outputs: Any) -> Any:
        def generate(context: Any, build: Any, signature: Any, values: list[Any]) -> Any:
            _row(build, values, decoder(build, values[2]))
            return context.get_dummy_value()

        return v.signature(types.void, 4), generate

    return v.made(dot), v.made(row)


@compiled
def _dot_one_by_one(row: int, steps: int, table: int, inputs: int) -> Any:
    """The same of codes of 8 bits without AVX-512."""
    code, weight = _array(v.bytes_at(row), WHOLE * steps), _array(v.floats_at(table), 256)
    value = _array(v.floats_at(inputs), WHOLE * steps)
    a = b = c = d = np.float32(0)
    for j in range(0, WHOLE * steps, 4):
        a += weight[code[j]] * value[j]
        b += weight[code[j + 1]] * value[j + 1]
        c += weight[code[j + 2]] * value[j + 2]
        d += weight[code[j + 3]] * value[j + 3]
    return (a + b) + (c + d)


@compiled
def _row_one_by_one(row: int, steps: int, table: int, outputs: int) -> None:
    """The same of codes of 8 bits without AVX-512."""
    code, weight = _array(v.bytes_at(row), WHOLE * steps), _array(v.floats_at(table), 256)
    value = _array(v.floats_at(outputs), WHOLE * steps)
    for j in range(WHOLE * steps):
        value[j] = weight[code[j]]


@compiled
def _dot4_one_by_one(row: int, steps: int, table: int, inputs: int) -> Any:
    """The same of codes of 4 bits."""
    code, weight = _array(v.bytes_at(row), 16 * steps), _array(v.floats_at(table), 16)
    value = _array(v.floats_at(inputs), WHOLE * steps)
    a = b = np.float32(0)
    for step in range(steps):
        for j in range(16):
            both = code[16 * step + j]
            a += weight[both & 15] * value[WHOLE * step + j]
            b += weight[both >> 4] * value[WHOLE * step + 16 + j]
    return a + b


@compiled
def _row4_one_by_one(row: int, steps: int, table: int, outputs: int) -> None:
    """The same of codes of 4 bits."""
    code, weight = _array(v.bytes_at(row), 16 * steps), _array(v.floats_at(table), 16)
    value = _array(v.floats_at(outputs), WHOLE * steps)
    for step in range(steps):
        for j in range(16):
            both = code[16 * step + j]
            value[WHOLE * step + j] = weight[both & 15]
            value[WHOLE * step + 16 + j] = weight[both >> 4]


dot_integers, row_integers = _compiled(lambda build, table: _integers)
dot_signs, row_signs = _compiled(lambda build, table: _signs)
dot_32, row_32, dot_64, row_64 = _dot_one_by_one, _row_one_by_one, _dot_one_by_one, _row_one_by_one
dot_any, row_any, dot_16, row_16 = _dot_one_by_one, _row_one_by_one, _dot4_one_by_one, _row4_one_by_one
if v.WIDE:
    dot_16, row_16 = _compiled(lambda build, table: _codes4(*_tables(build, table, 1)))
    dot_32, row_32 = _compiled(lambda build, table: _codes8(_tables(build, table, 2)))
    dot_64, row_64 = _compiled(lambda build, table: _codes8(_tables(build, table, 4)))
    dot_any, row_any = _compiled(lambda build, table: _codes8([table]))
