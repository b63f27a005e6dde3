"""Which of several numbers of bits each tensor gets: the least predicted loss within a cost, exactly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deepcompression.errors import InvariantError, StructureError

Floats = NDArray[np.float64]
FINE = 1e4  # the best loss in the solver's unit, whose own tolerance is 1e-6
ATTEMPTS = 8  # until a solution is within the limit to the last digit


@dataclass(frozen=True)
class Choices:
    """What one tensor can get, rising: its ``bits``, what each costs and loses, and its ``trace``, by which the order
    rule ranks tensors."""

    name: str
    bits: tuple[int, ...]
    costs: tuple[float, ...]
    losses: tuple[float, ...]
    trace: float = 0.0

    def at(self, bits: int) -> int:
        """The place of so many bits, or of the nearest that the tensor can have, more rather than fewer."""
        return min(range(len(self.bits)), key=lambda place: (abs(self.bits[place] - bits), -self.bits[place]))


@dataclass(frozen=True)
class Assignment:
    """Bits of each tensor, by name, and what they cost and lose together."""

    bits: dict[str, int]
    cost: float
    loss: float


def assign(tensors: Sequence[Choices], limit: float, *, ordered: bool = False) -> Assignment:
    """The bits of least total loss with a total cost of at most ``limit``, by mixed-integer programming.

    Args:
        tensors: what each can get.
        limit: in the unit of the costs.
        ordered: bits must not fall as the trace grows (HAWQ's rule).

    Raises:
        StructureError: nothing that the tensors can get keeps to the limit; tells the least that does.
    """
    if (least := cheapest(tensors, ordered=ordered).cost) > limit:
        raise StructureError(f"a cost of {limit:,.10g} is out of reach; the least is {least:,.10g}")
    losses = [one.losses for one in tensors]
    rough = _within(tensors, losses, limit, ordered)
    bound = _total(losses, rough)
    if bound <= 0:
        return total(tensors, rough)
    fine = [tuple(loss * FINE / bound for loss in some) for some in losses]
    better = _within(tensors, fine, limit, ordered, most=FINE * (1 + 1e-9))
    return total(tensors, min(better, rough, key=lambda picked: _total(losses, picked)))


def cheapest(tensors: Sequence[Choices], *, ordered: bool = False) -> Assignment:
    """The bits of least total cost.

    Raises:
        StructureError: ``ordered``, and the choices have no such order.
    """
    picked = _solved(tensors, [one.costs for one in tensors], None, ordered)
    if picked is None:
        raise StructureError(
            "order: bits cannot rise with the trace by what these tensors may get; widen their choices"
        )
    return total(tensors, picked)


def uniform(tensors: Sequence[Choices], bits: int) -> Assignment:
    """All with so many bits, or the nearest that each can have."""
    return total(tensors, [one.at(bits) for one in tensors])


def front(tensors: Sequence[Choices], points: int = 16, *, ordered: bool = False) -> list[Assignment]:
    """The best assignments at costs from the least possible to the greatest; those of equal loss once, the cheapest.

    Args:
        tensors: what each can get.
        points: limits that are tried, evenly from one end to the other.
        ordered: as of ``assign``.
    """
    low = cheapest(tensors, ordered=ordered).cost
    high = math.fsum(max(one.costs) for one in tensors)
    found: list[Assignment] = []
    for limit in np.linspace(low, high, points).tolist():
        one = assign(tensors, max(limit, low), ordered=ordered)
        if not found or one.loss < found[-1].loss:
            found.append(one)
    return found


def candidates(tensors: Sequence[Choices], limit: float, *, ordered: bool = False) -> list[Assignment]:
    """What is worth trying within a limit: the best as predicted, first; the best at lower costs; the same bits
    everywhere, as far as tensors can have them. Each once.

    Args:
        tensors: what each can get.
        limit: in the unit of the costs.
        ordered: as of ``assign``.

    Raises:
        StructureError: as ``assign``.
    """
    widths = sorted({one for tensor in tensors for one in tensor.bits})
    same = [uniform(tensors, width) for width in widths]
    same = [one for one in same if not ordered or len(set(one.bits.values())) == 1]
    found: dict[tuple[int, ...], Assignment] = {}
    for one in (assign(tensors, limit, ordered=ordered), *front(tensors, ordered=ordered), *same):
        if one.cost <= limit:
            found.setdefault(tuple(one.bits.values()), one)
    return list(found.values())


def neighbours(tensors: Sequence[Choices], start: Assignment, limit: float, most: int = 8) -> list[Assignment]:
    """Allocations in which one tensor has a step fewer bits, and others have what that leaves: the best as predicted.

    Args:
        tensors: what each can get.
        start: what they have, within the limit.
        limit: in the unit of the costs.
        most: so many, of the tensors that are predicted to lose least by a step.
    """
    places = [one.at(start.bits[one.name]) for one in tensors]
    steps = [
        (one.losses[place - 1] - one.losses[place], number)
        for number, (one, place) in enumerate(zip(tensors, places, strict=True))
        if place
    ]
    found = []
    for _, lower in sorted(steps)[:most]:
        some = [
            _between(one, place - 1, place) if number == lower else _between(one, place, len(one.bits))
            for number, (one, place) in enumerate(zip(tensors, places, strict=True))
        ]
        if sum(one.costs[0] for one in some) <= limit:
            found.append(assign(some, limit))
    return found


def _between(one: Choices, low: int, high: int) -> Choices:
    return Choices(one.name, one.bits[low:high], one.costs[low:high], one.losses[low:high], one.trace)


def total(tensors: Sequence[Choices], picked: Sequence[int]) -> Assignment:
    """What the tensors get, cost and lose at these places of theirs."""
    return Assignment(
        {one.name: one.bits[place] for one, place in zip(tensors, picked, strict=True)},
        _total([one.costs for one in tensors], picked),
        _total([one.losses for one in tensors], picked),
    )


def _total(values: Sequence[Sequence[float]], picked: Sequence[int]) -> float:
    return math.fsum(some[place] for some, place in zip(values, picked, strict=True))


def _within(
    tensors: Sequence[Choices], losses: Sequence[Sequence[float]], limit: float, ordered: bool, most: float = math.inf
) -> list[int]:
    """The places of least loss whose cost is within the limit to the last digit: a solver's rows have a tolerance."""
    costs, allowed = [one.costs for one in tensors], limit
    for _ in range(ATTEMPTS):
        picked = _solved(tensors, losses, allowed, ordered, most)
        if picked is None:
            break
        over = _total(costs, picked) - limit
        if over <= 0:
            return picked
        allowed -= 2 * over
    raise InvariantError("allocate: the solver found no solution within a limit that one keeps to")


def _solved(
    tensors: Sequence[Choices],
    values: Sequence[Sequence[float]],
    limit: float | None,
    ordered: bool,
    most: float = math.inf,
) -> list[int] | None:
    """Places of least total value; None where no choice keeps to the limit and the order. Values above ``most``, which
    the best total is known not to pass, are left out."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    ends = np.cumsum([0, *(len(one.bits) for one in tensors)])
    flat = np.concatenate([np.asarray(some, np.float64) for some in values])
    possible = (flat <= most).astype(np.float64)
    scale = max(float(flat[possible > 0].max(initial=0)), 1e-300) if math.isinf(most) else 1.0
    rows = [LinearConstraint(_one_each(ends), 1, 1)]
    if limit is not None:
        costs = np.concatenate([np.asarray(one.costs, np.float64) for one in tensors])
        rows.append(LinearConstraint(costs[None], -np.inf, limit))
    rows += [LinearConstraint(row[None], -np.inf, 0) for row in _order(tensors, ends)] if ordered else []
    answer = milp(
        np.where(possible > 0, flat, 0) / scale,
        integrality=np.ones(len(flat)),
        bounds=Bounds(0, possible),
        constraints=rows,
        options={"mip_rel_gap": 0.0},
    )
    if answer.x is None:
        return None
    return [int(np.argmax(answer.x[start:end])) for start, end in pairwise(ends.tolist())]


def _one_each(ends: NDArray[Any]) -> Floats:
    made = np.zeros((len(ends) - 1, ends[-1]))
    for row, (start, end) in enumerate(pairwise(ends.tolist())):
        made[row, start:end] = 1
    return made


def _order(tensors: Sequence[Choices], ends: NDArray[Any]) -> Iterator[Floats]:
    """Rows that are at most 0: the bits of a tensor less those of the next by trace."""
    ranked = sorted(range(len(tensors)), key=lambda place: tensors[place].trace)
    for lower, higher in pairwise(ranked):
        row = np.zeros(ends[-1])
        row[ends[lower] : ends[lower + 1]] = tensors[lower].bits
        row[ends[higher] : ends[higher + 1]] -= tensors[higher].bits
        yield row
