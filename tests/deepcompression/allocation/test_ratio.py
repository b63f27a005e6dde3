"""Which ratio is tried next where nothing trains."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepcompression.allocation.ratio import CLOSE, FIRST, FURTHER, LEAP, Tried, next_ratio


def searched(loss_of: object, most: float, tried: list[Tried], steps: int = 12) -> list[Tried]:
    """What a search finds where a ratio loses so much."""
    tried = list(tried)
    for _ in range(steps):
        ratio = next_ratio(most, tried)
        if ratio is None:
            break
        loss = loss_of(ratio)  # type: ignore[operator]
        tried.append(Tried(ratio, loss, loss <= most))
    return tried


@given(st.floats(15, 130), st.floats(4.5, 30), st.floats(0.1, 5))
@settings(max_examples=40, deadline=None)
def test_few_steps_lead_to_what_may_just_be_lost(bend: float, best: float, most: float) -> None:
    """Of losses that grow as rounding errors do, fast or slowly, what is found is nearly as small as may be."""
    found = searched(lambda ratio: most * math.exp(bend * (1 / best - 1 / ratio)), most, [Tried(4.0, 0.0, True)])
    kept = max(one.ratio for one in found if one.kept)
    assert len(found) <= 12 and kept <= best * 1.001 and (kept > best / 1.12 or best < 4.0 * CLOSE)


def test_it_begins_where_most_nets_lose_little_and_leaps_where_nothing_is_lost() -> None:
    """Without anything tried, and where what was tried lost nothing."""
    assert next_ratio(1.0, []) == FIRST and next_ratio(1.0, [Tried(4.0, 0.0, True)]) == LEAP * 4.0
    assert next_ratio(1.0, [Tried(8.0, 0.0, True)]) == 8.0 * LEAP
    assert next_ratio(1.0, [Tried(8.0, 0.05, True)]) <= 8.0 * FURTHER


@pytest.mark.parametrize("loss", [math.nan, math.inf, 50.0])
def test_what_is_no_number_is_too_much(loss: float) -> None:
    """A file whose loss is not a number is larger next time; between it and what is kept the search goes on."""
    assert next_ratio(1.0, [Tried(6.0, loss, False)]) < 6.0
    assert 4.0 < next_ratio(1.0, [Tried(4.0, 0.0, True), Tried(8.0, loss, False)]) < 8.0
    assert next_ratio(1.0, [Tried(4.0, 0.0, True), Tried(4.1, loss, False)]) is None
