"""Which density and how many bits each tensor gets: least predicted loss for the bytes, or fewest bytes for a loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deepcompression.allocation.pricing import prices
from deepcompression.errors import StructureError

if TYPE_CHECKING:
    from deepcompression.allocation.sensitivity import TensorSensitivity

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class TensorCurves:
    """What can be done to one tensor and what it costs: any density with any number of bits.

    Attributes:
        name: the tensor's.
        densities: (d,) fractions of its weights.
        bits: (b,).
        sizes: (d, b) bytes.
        density_loss: (d,) by how much the loss rises at each density.
        bits_loss: (b,) by how much it rises at each number of bits; both rises add up.
    """

    name: str
    densities: tuple[float, ...]
    bits: tuple[int, ...]
    sizes: tuple[tuple[int, ...], ...]
    density_loss: tuple[float, ...]
    bits_loss: tuple[float, ...]


@dataclass(frozen=True)
class Choice:
    """What one tensor gets, and what that is predicted to cost."""

    name: str
    density: float
    bits: int
    size: int
    loss: float


@dataclass(frozen=True)
class Allocation:
    """What every tensor gets.

    Attributes:
        choices: in the order of the tensors.
        size: predicted bytes of them all and of what is fixed.
        loss: predicted rise of the loss.
        multiplier: by how much the loss would fall for one more byte; None where the limit leaves nothing to gain.
    """

    choices: tuple[Choice, ...]
    size: int
    loss: float
    multiplier: float | None

    @property
    def density(self) -> dict[str, float]:
        """Density by tensor name, as ``prune`` takes it."""
        return {choice.name: choice.density for choice in self.choices}

    @property
    def bits(self) -> dict[str, int]:
        """Bits by tensor name, as ``share`` takes them."""
        return {choice.name: choice.bits for choice in self.choices}


def rising(values: ArrayLike) -> Floats:
    """The sequence (n,) that never falls and is nearest to ``values`` (n,) in squares; NaN counts as infinity.

    Measured losses of ever sparser tensors, freed from what is noise.
    """
    from scipy.optimize import isotonic_regression

    made: Floats = isotonic_regression(np.nan_to_num(np.asarray(values, np.float64), nan=np.inf, posinf=np.inf)).x
    return made


def rises(base: float, losses: Sequence[float]) -> Floats:
    """By how much the loss rises, (n + 1,), first of the unchanged model; never below zero, and never falling."""
    return np.maximum(rising([base, *losses]) - base, 0.0)


def curves_of(
    tensor: TensorSensitivity, base_loss: float, weights: ArrayLike, coder: str, *, steps: int = 33
) -> TensorCurves:
    """The options of one tensor, from how sensitive the model is to it and from what it costs when encoded.

    Args:
        tensor: its measured points.
        base_loss: the unchanged model's.
        weights: its values, float32, any shape.
        coder: as of ``io.encode``.
        steps: densities, from the present one down to the lowest measured, by equal factors; losses between measured
            densities are interpolated.

    Raises:
        StructureError: no point was measured for density or for bits; or as ``prices``.
    """
    sparse = sorted(tensor.by_density, key=lambda point: -point.density)
    coarse = sorted(tensor.by_bits, key=lambda point: -point.bits)
    if not sparse or not coarse:
        raise StructureError(f"{tensor.name}: the loss was measured at no {'bits' if sparse else 'density'}")
    known = np.array([tensor.density, *(point.density for point in sparse)])
    densities = np.geomspace(known[0], known[-1], steps)
    densities[[0, -1]] = known[[0, -1]]  # exactly: rounding could ask for one weight more
    loss = rises(base_loss, [point.loss for point in sparse])
    bits = tuple(point.bits for point in coarse)
    return TensorCurves(
        tensor.name,
        tuple(densities.tolist()),
        bits,
        tuple(tuple(row) for row in prices(weights, densities.tolist(), bits, coder).tolist()),
        tuple(np.interp(-np.log(densities), -np.log(known), loss).tolist()),
        tuple(rises(base_loss, [point.loss for point in coarse])[1:].tolist()),
    )


def least_bytes(tensors: Sequence[TensorCurves]) -> int:
    """The fewest bytes that these tensors can have together, by options of finite loss; each must have one."""
    return sum(round(float(_options(one)[0].min())) for one in tensors)


def has_options(tensor: TensorCurves) -> bool:
    """Whether anything can be done to a tensor at a finite loss."""
    return bool(np.isfinite(tensor.density_loss).any() and np.isfinite(tensor.bits_loss).any())


def allocate(
    tensors: Sequence[TensorCurves],
    *,
    target_bytes: int | None = None,
    max_loss: float | None = None,
    fixed_bytes: int = 0,
) -> Allocation:
    """What each tensor gets, so that all stay within ``target_bytes`` or ``max_loss`` and the other is least.

    From the cheapest options upwards, steps along the lower convex hulls of the tensors' options are taken in the
    order of what they gain for their cost, until one does not fit (Lagrange's multiplier is its rate; Shoham and Gersho
    1988). What is left is filled with the best steps that fit, on the hulls or not. The result is worse than the best
    by less than the gain of the one step that did not fit.

    Args:
        tensors: what can be done to each; options of infinite loss are left out.
        target_bytes: most bytes, ``fixed_bytes`` among them.
        max_loss: most by which the loss may be predicted to rise.
        fixed_bytes: of the file's header, and of all tensors that are not in ``tensors``.

    Raises:
        StructureError: not exactly one limit is given, or none of the options keeps to it: the least is told.
    """
    if (target_bytes is None) == (max_loss is None):
        raise StructureError("allocate: expected exactly one of target_bytes and max_loss")
    sizes, losses = zip(*map(_options, tensors), strict=True) if tensors else ((), ())
    if target_bytes is not None:
        least = fixed_bytes + round(_total(sizes, [int(np.argmin(one)) for one in sizes]))
        if least > target_bytes:
            raise StructureError(
                f"allocate: {target_bytes:,} bytes are too few; the least possible with these options are {least:,}"
            )
        picked, rate = _chosen(sizes, losses, target_bytes - fixed_bytes)
    else:
        assert max_loss is not None
        lowest = _total(losses, [int(np.argmin(one)) for one in losses])
        if not lowest <= max_loss:
            raise StructureError(
                f"allocate: a loss of {max_loss:g} more is out of reach; the least possible with these options is "
                f"{lowest:g}"
            )
        picked, inverse = _chosen(losses, sizes, max_loss)
        rate = 1 / inverse if inverse else None
    choices = tuple(_choice(*one) for one in zip(tensors, picked, sizes, losses, strict=True))
    size = fixed_bytes + sum(choice.size for choice in choices)
    return Allocation(choices, size, _total(losses, picked), rate)


def _options(tensor: TensorCurves) -> tuple[Floats, Floats]:
    """Bytes and losses (d * b,) of all options; both infinite where the loss is not finite."""
    sizes = np.asarray(tensor.sizes, np.float64).reshape(-1)
    losses = np.add.outer(np.asarray(tensor.density_loss), np.asarray(tensor.bits_loss)).reshape(-1)
    if sizes.shape != losses.shape or not np.isfinite(losses).any():
        raise StructureError(f"{tensor.name}: no option has a finite loss, or there are not as many bytes as options")
    wrong = ~np.isfinite(losses)
    return np.where(wrong, np.inf, sizes), np.where(wrong, np.inf, losses)


def _choice(tensor: TensorCurves, place: int, sizes: Floats, losses: Floats) -> Choice:
    i, j = divmod(place, len(tensor.bits))
    return Choice(tensor.name, tensor.densities[i], tensor.bits[j], int(sizes[place]), float(losses[place]))


def _total(costs: Sequence[Floats], picked: Sequence[int]) -> float:
    """The sum over tensors, the same in whatever order it is taken."""
    return math.fsum(float(one[place]) for one, place in zip(costs, picked, strict=True))


def _chosen(costs: Sequence[Floats], values: Sequence[Floats], limit: float) -> tuple[list[int], float | None]:
    """One option of each tensor: least total value with a total cost up to ``limit``, which the cheapest keep to.

    Also the value that the first step beyond the limit would have gained for its cost; None where all fitted.
    """
    fronts = [_front(*pair) for pair in zip(costs, values, strict=True)]
    picked, rate = [int(front[0]) for front in fronts], None
    for slope, tensor, option in _steps(costs, values, fronts):
        trial = [*picked[:tensor], option, *picked[tensor + 1 :]]
        if _total(costs, trial) > limit:
            rate = slope
            break
        picked = trial
    while (better := _filled(costs, values, fronts, picked, limit)) is not None:
        picked = better
    return picked, rate


def _front(costs: Floats, values: Floats) -> NDArray[np.int64]:
    """Options that no other beats: costs rise, values fall, both strictly."""
    order = np.lexsort([values, costs])
    lowest = np.minimum.accumulate(values[order])
    new = np.append(True, lowest[1:] < lowest[:-1])
    return order[new & np.isfinite(values[order])]


def _hull(costs: Floats, values: Floats, front: NDArray[np.int64]) -> list[int]:
    """The options of a front on its lower convex hull: what is gained for a cost falls from one to the next."""
    hull: list[int] = []
    for place in front.tolist():
        while len(hull) > 1 and _slope(costs, values, hull[-2], hull[-1]) <= _slope(costs, values, hull[-1], place):
            hull.pop()
        hull.append(place)
    return hull


def _slope(costs: Floats, values: Floats, one: int, other: int) -> float:
    return float((values[one] - values[other]) / (costs[other] - costs[one]))


def _steps(costs: Any, values: Any, fronts: Sequence[NDArray[np.int64]]) -> list[tuple[float, int, int]]:
    """Steps from one option of a hull to the next, best first: gain for cost, tensor, option."""
    steps = []
    for tensor, front in enumerate(fronts):
        hull = _hull(costs[tensor], values[tensor], front)
        for one, other in itertools.pairwise(hull):
            steps.append((_slope(costs[tensor], values[tensor], one, other), tensor, other))
    return sorted(steps, key=lambda step: -step[0])  # stable: a hull's steps stay in their order


def _filled(
    costs: Sequence[Floats],
    values: Sequence[Floats],
    fronts: Sequence[NDArray[np.int64]],
    picked: list[int],
    limit: float,
) -> list[int] | None:
    """``picked`` after the step of one tensor that gains most for its cost and fits; None where none does."""
    room = limit - _total(costs, picked)
    steps = []
    for tensor, front in enumerate(fronts):
        extra = costs[tensor][front] - costs[tensor][picked[tensor]]
        gain = values[tensor][picked[tensor]] - values[tensor][front]
        fitting = np.flatnonzero((extra > 0) & (extra <= room))
        if len(fitting):
            best = fitting[np.argmax(gain[fitting] / extra[fitting])]
            steps.append((float(gain[best] / extra[best]), tensor, int(front[best])))
    for _, tensor, option in sorted(steps, key=lambda step: -step[0]):
        trial = [*picked[:tensor], option, *picked[tensor + 1 :]]
        if _total(costs, trial) <= limit:
            return trial
    return None
