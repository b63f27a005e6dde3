"""A chain whose layers compute with integers: weights of 8 bits, sums of 32, and what takes sums to the next grid.

Between a layer's sums and the next layer's grid a value is an integer of 32 bits with ``bits`` behind the point: the
sum times the factor of its channel, plus its summand, shifted. Both are integers, chosen so that nothing overflows
whatever the input is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec import grids
from deepcompression.export.c_network import Clamp, Grid, Norm, Numbers, Op, Pool, Step

MOST_WEIGHT = 127
MOST_BITS = 16  # behind the point
MOST_OUTPUT_BITS = 24
LEAST_BITS = 4
OUTPUT = ""
HIGHEST = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Rescale:
    """Sums become ``(sum * factors + summands) >> shift``, of each channel."""

    factors: NDArray[np.int32]
    summands: NDArray[np.int64]
    shift: int


@dataclass(frozen=True)
class Narrow:
    """``bits`` behind the point are rounded away, and what is left is cut to these ends."""

    bits: int
    low: int
    high: int


@dataclass(frozen=True)
class Cut:
    """Integers are cut to these ends."""

    low: int
    high: int


@dataclass(frozen=True, eq=False)
class IntegerStep:
    """A layer on integers: its weights (out, in / groups, rows, columns), what stands for 0 before and behind it."""

    step: Step
    weight: NDArray[np.int8]
    zero: tuple[int, int]
    ops: Sequence[Rescale | Narrow | Cut | Pool]


@dataclass(frozen=True)
class Integers:
    """All layers, the grid of the samples, and what an output of 1 stands for."""

    steps: Sequence[IntegerStep]
    grid: Grid
    step: float


class Unfit(Exception):
    """Why layers cannot compute with integers."""


def integers_of(steps: Sequence[Step]) -> Integers | str:
    """The chain on integers; or why it stays in floats."""
    try:
        return _integers(steps)
    except Unfit as why:
        return str(why)


def _integers(steps: Sequence[Step]) -> Integers:
    if not any(isinstance(op, Grid) for step in steps for op in step.ops):
        raise Unfit("what goes into layers is not quantized")
    first, *layers = steps
    if first.weight is not None or len(first.ops) != 1 or not layers:
        raise Unfit("the sample is not quantized as it comes")
    grid = into = _narrow(first.ops[0], "the sample")
    made: list[IntegerStep] = []
    bits = 0
    for place, step in enumerate(layers):
        into, bits, one = _layer(step, into, place == len(layers) - 1)
        made.append(one)
    if into.site != OUTPUT:
        raise Unfit("the output is quantized")
    return Integers(made, grid, 2.0**-bits)


def _narrow(op: Op, where: str) -> Grid:
    if not isinstance(op, Grid):
        raise Unfit(f"{where} is not quantized as it comes")
    if op.bits > 8:
        raise Unfit(f"{op.site} has {op.bits} bits, more than 8")
    return op


def _layer(step: Step, into: Grid, last: bool) -> tuple[Grid, int, IntegerStep]:
    """The grid that the next layer takes, the bits behind the point of what is made until there, and the layer."""
    if step.weight is None:
        raise Unfit("between two layers values are normalised or pooled anew")
    weight, scales = _weights(step)
    sums = np.abs(weight.reshape(len(weight), -1).astype(np.int64)).sum(axis=1) * max(-into.low, into.high)
    if sums.max() > HIGHEST:
        raise Unfit(f"{step.name}: sums may pass 32 bits")
    factors, summands, rest = _merged(step, scales * into.scale)
    grid = _next(step, rest, last)
    most = float((np.abs(factors) * sums + np.abs(summands)).max()) / grid.scale * _area(rest)
    bits = min(MOST_OUTPUT_BITS if last else MOST_BITS, 30 - math.frexp(most)[1])
    if bits < (0 if last else LEAST_BITS):
        raise Unfit(f"{step.name}: outputs may be {most:.3g} steps of the next grid")
    unit = grid.scale / 2.0**bits
    ops = [_rescale(step, factors / unit, summands / unit), *_integers_after(rest, unit, bits)]
    return grid, bits, IntegerStep(step, weight, (-into.low, -grid.low), ops)


def _next(step: Step, rest: Sequence[Op], last: bool) -> Grid:
    """The grid behind a layer; of the last one, steps of 1."""
    found = [op for op in rest if isinstance(op, Grid)]
    if len(found) > 1 or (not found and not last):
        raise Unfit(f"what comes out of {step.name} is {'quantized twice' if found else 'not quantized'}")
    return _narrow(found[0], step.name) if found else Grid(OUTPUT, 1.0, 0, 0, 8)


def _weights(step: Step) -> tuple[NDArray[np.int8], Numbers]:
    """Integers and the scale of each row, or of all."""
    assert step.weight is not None
    values = step.weight.contiguous().numpy()
    bits = values.reshape(len(values), -1).view(np.uint32)
    found = grids.recognise(bits, "float32")
    if found is None or int(np.abs(found[1]).max()) > MOST_WEIGHT:
        raise Unfit(f"{step.name}: weights are no integers of 8 bits times a scale for each output")
    return found[1].astype(np.int8).reshape(values.shape), found[0].astype(np.float64)


def _merged(step: Step, factors: Numbers) -> tuple[Numbers, Numbers, Sequence[Op]]:
    """Factors and summands of each channel, with the bias and the norms right behind the layer; the ops behind."""
    rest, summands = list(step.ops), np.zeros(len(factors))
    if step.bias is not None:
        summands = summands + step.bias.double().numpy()
    while rest and isinstance(norm := rest[0], Norm):
        factors, summands = factors * norm.scale, summands * norm.scale + norm.shift
        rest = rest[1:]
    return factors, summands, rest


def _area(ops: Sequence[Op]) -> int:
    """The most values that a mean sums up."""
    return max([1, *(math.prod(op.kernel) for op in ops if isinstance(op, Pool) and op.mean)])


def _rescale(step: Step, factors: Numbers, summands: Numbers) -> Rescale:
    """Factors of up to 31 bits; half of what the shift drops is added, so that it rounds."""
    shift = min(31, 30 - math.frexp(float(np.abs(factors).max()))[1])
    if shift < 1:
        raise Unfit(f"{step.name}: a step of its sums is {np.abs(factors).max():.3g} of the next")
    scaled = np.rint(summands * 2.0**shift).astype(np.int64) + (1 << (shift - 1))
    return Rescale(np.rint(factors * 2.0**shift).astype(np.int32), scaled, shift)


def _integers_after(ops: Sequence[Op], unit: float, bits: int) -> list[Rescale | Narrow | Cut | Pool]:
    """The ops behind a rescaling."""
    made: list[Rescale | Narrow | Cut | Pool] = []
    narrow = False
    for op in ops:
        if isinstance(op, Norm) or (narrow and not _exact(op)):
            raise Unfit(f"{op.name if isinstance(op, Norm) else 'a pool'} follows what is no layer")
        if isinstance(op, Clamp):
            made.append(Cut(_fixed(op.low, unit), _fixed(op.high, unit)))
        elif isinstance(op, Grid):
            narrow = True
            made.append(Narrow(bits, op.low, op.high))
        else:
            made.append(op)
    return made


def _exact(op: Op) -> bool:
    """Whether integers of a grid stay on it."""
    if isinstance(op, Clamp):
        return (op.low, op.high) == (0, math.inf)
    return isinstance(op, Pool) and not op.mean


def _fixed(value: float, unit: float) -> int:
    return round(min(max(value / unit, -HIGHEST), HIGHEST))
