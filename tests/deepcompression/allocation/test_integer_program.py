"""The solver, against trying everything."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcompression.allocation.integer_program import Choices, assign, cheapest, front, total, uniform
from deepcompression.errors import StructureError

LOSS = st.builds(lambda digits, scale: digits * 10.0**scale, st.integers(0, 99), st.integers(-12, 3))


@st.composite
def tensors(draw: st.DrawFn) -> list[Choices]:
    """One to four, with one to three numbers of bits, costs and losses of any size, some traces alike."""
    made = []
    for number in range(draw(st.integers(1, 4))):
        bits = sorted(draw(st.sets(st.sampled_from([2, 3, 4, 8]), min_size=1, max_size=3)))
        costs = tuple(float(draw(st.integers(1, 10**6))) for _ in bits)
        losses = tuple(draw(LOSS) for _ in bits)
        made.append(Choices(f"t{number}", tuple(bits), costs, losses, draw(st.sampled_from([0.0, 1.0, 2.0]))))
    return made


def everything(some: list[Choices], ordered: bool) -> list[tuple[int, ...]]:
    """Places of every combination, or of those whose bits do not fall as traces grow."""
    ranked = sorted(range(len(some)), key=lambda place: some[place].trace)
    found = itertools.product(*(range(len(one.bits)) for one in some))
    bits = [(picked, [some[place].bits[picked[place]] for place in ranked]) for picked in found]
    return [picked for picked, rising in bits if not ordered or rising == sorted(rising)]


@settings(max_examples=30, deadline=None)
@given(tensors(), st.data(), st.booleans())
def test_nothing_within_the_limit_loses_less(some: list[Choices], data: st.DataObject, ordered: bool) -> None:
    """To nine digits, whatever the sizes of losses; the limit itself may be reached."""
    possible = everything(some, ordered)
    if not possible:
        with pytest.raises(StructureError, match="order: bits cannot rise with the trace"):
            assign(some, 1e9, ordered=ordered)
        return
    limit = total(some, data.draw(st.sampled_from(possible))).cost
    found = assign(some, limit, ordered=ordered)
    best = min(total(some, one).loss for one in possible if total(some, one).cost <= limit)
    assert found.cost <= limit and found.loss <= best * (1 + 1e-9)
    assert cheapest(some, ordered=ordered).cost == min(total(some, one).cost for one in possible)


def test_a_limit_out_of_reach_is_told_with_the_least() -> None:
    """It is not the solver that fails."""
    some = [Choices("a", (2, 4), (10.0, 20.0), (1.0, 0.0)), Choices("b", (8,), (40.0,), (0.0,))]
    with pytest.raises(StructureError, match=r"a cost of 49 is out of reach; the least is 50$"):
        assign(some, 49)
    assert assign(some, 59).bits == {"a": 2, "b": 8} and assign(some, 60).bits == {"a": 4, "b": 8}


def test_uniform_bits_are_the_nearest_that_a_tensor_can_have() -> None:
    """Of two as near the more."""
    some = [Choices("a", (2, 4), (1.0, 2.0), (0.0, 0.0)), Choices("b", (2, 6, 8), (1.0, 2.0, 3.0), (0.0,) * 3)]
    assert uniform(some, 4).bits == {"a": 4, "b": 6} and uniform(some, 16).bits == {"a": 4, "b": 8}


def test_the_front_falls_from_the_cheapest_to_the_best() -> None:
    """Each point costs more than the one before and loses less."""
    some = [Choices(f"t{n}", (2, 4, 8), (2.0 + n, 4.0 + n, 8.0 + n), (16.0 * n, 1.0 * n, 0.0)) for n in range(1, 5)]
    points = front(some)
    assert [points[0].cost, points[-1].loss] == [cheapest(some).cost, 0.0]
    assert all(a.cost < b.cost and a.loss > b.loss for a, b in itertools.pairwise(points))
