"""Many outputs of a sparse layer at once: rows of inputs, times a weight each, added to a row of outputs in registers.

Vectors of no kind of processor in particular: each gets what it has of them.
"""

from __future__ import annotations

from typing import Any

from numba.core import types

from deepcompression.runtime import vectors as v


def _tile(build: Any, values: list[Any], wide: int, abreast: int, own: bool) -> None:
    """The instructions of a tile.

    Args:
        build: where they go.
        values: as ``of_codes`` and ``of_floats`` take them.
        wide: vectors of outputs.
        abreast: entries whose sums are apart, so that none waits for the one before.
        own: whether each entry has its weight, or a code of it.
    """
    first, entries, low, weights, table, step, inputs, outputs = values
    columns = build.sub(build.shl(v.count(1), low), v.count(1))
    starts = [v.load(build, _beyond(build, outputs, place), v.many(v.F32)) for place in range(wide)]
    sums = [[v.of_loop(build, start if not lane else v.zeros(v.F32)) for start in starts] for lane in range(abreast)]

    def add(at: Any, lane: int) -> None:
        entry = build.zext(v.load(build, build.add(first, build.shl(at, v.count(1))), v.I16), v.I64)
        column = build.shl(build.and_(entry, columns), v.count(2))
        offset = build.mul(build.sext(v.load(build, build.add(table, column), v.I32), v.I64), step)
        which = at if own else build.lshr(entry, low)
        weight = v.splat(build, v.load(build, build.add(weights, build.shl(which, v.count(2))), v.F32))
        row = build.add(inputs, offset)
        for place, sum_ in enumerate(sums[lane]):
            found = v.load(build, _beyond(build, row, place), v.many(v.F32))
            build.store(v.added(build, build.load(sum_), found, weight), sum_)

    turns = build.udiv(entries, v.count(abreast))
    with v.for_range(build, turns, intp=v.I64) as loop:
        for lane in range(abreast):
            add(build.add(build.mul(loop.index, v.count(abreast)), v.count(lane)), lane)
    done = build.mul(turns, v.count(abreast))
    with v.for_range(build, build.sub(entries, done), intp=v.I64) as loop:
        add(build.add(done, loop.index), 0)
    for place in range(wide):
        sum_ = build.load(sums[0][place])
        for lane in range(1, abreast):
            sum_ = build.fadd(sum_, build.load(sums[lane][place]))
        v.store(build, sum_, _beyond(build, outputs, place))


def _beyond(build: Any, address: Any, vectors: int) -> Any:
    return build.add(address, v.count(4 * v.LANES * vectors))


def _tile_of(wide: int, abreast: int, own: bool) -> Any:
    def generate(context: Any, build: Any, signature: Any, values: list[Any]) -> Any:
        _tile(build, values, wide, abreast, own)
        return context.get_dummy_value()

    def typed(typing: Any, first: Any, n: Any, low: Any, weights: Any, table: Any, step: Any, x: Any, y: Any) -> Any:
        return v.signature(types.void, 8), generate

    return v.made(typed)


# outputs += sum over entries of weight x inputs[step x table[column] ...], for 8, 4, 2 or 1 vectors of outputs; of
# (first entry, entries, low bits, weights, table, step, inputs, outputs), addresses, counts and bytes.
codes_8, codes_4, codes_2, codes_1 = (_tile_of(*how, own=False) for how in ((8, 1), (4, 2), (2, 4), (1, 6)))
floats_8, floats_4, floats_2, floats_1 = (_tile_of(*how, own=True) for how in ((8, 1), (4, 2), (2, 4), (1, 6)))
