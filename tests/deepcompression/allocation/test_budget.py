"""Where a budget's search goes next, and what it keeps to."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepcompression.allocation.budget import (
    Budget,
    Candidate,
    Clock,
    Next,
    Stop,
    best_of,
    expected_loss,
    first_sizes,
    keeps,
    loss_of,
    margin_of,
    next_step,
    predicted_loss,
)
from deepcompression.allocation.sensitivity import BitsPoint, DensityPoint, TensorSensitivity
from deepcompression.errors import BudgetError

DENSE = 1_000_000


def test_losses_are_in_the_metrics_unit():
    """Points of accuracy where samples are right or wrong; the metric's own unit, with its sign, elsewhere."""
    assert loss_of(0.97, 0.98, higher_is_better=True, in_points=True) == pytest.approx(1.0)
    assert loss_of(3.5, 3.0, higher_is_better=False, in_points=False) == pytest.approx(0.5)
    assert loss_of(0.99, 0.98, higher_is_better=True, in_points=True) == pytest.approx(-1.0)


def test_a_budget_of_less_than_a_sample_is_refused():
    """It could not be told from chance; the message has the smallest usable one, which is usable."""
    with pytest.raises(BudgetError, match=r"0\.01 points are 0\.5 of 5,000 .* smallest usable is 0\.02"):
        margin_of(0.01, 4900, 5000)
    assert 0 < margin_of(0.02, 4900, 5000) <= 0.005
    for total in (7, 215, 333, 5000, 59_999):
        with pytest.raises(BudgetError) as caught:
            margin_of(1e-3, total - 1, total)
        smallest = float(str(caught.value).rpartition(" ")[2])
        assert margin_of(smallest, total - 1, total) > 0


def test_the_margin_is_a_standard_error_or_a_quarter():
    """One standard error of the dense metric is kept back, at most a quarter of what may be lost."""
    assert margin_of(1.0, 4900, 5000) == pytest.approx(100 * math.sqrt(0.02 * 0.98 / 5000))
    assert margin_of(0.1, 4900, 5000) == pytest.approx(0.025)
    assert margin_of(0.2, None, 5000) == pytest.approx(0.05)


def test_what_is_kept_to():
    """A loss up to the budget, and one that is expected up to the budget less its margin; bytes up to the limit.

    So a candidate that lost nothing yet, but is expected to, does not keep to it.
    """
    budget = Budget(metric_loss=0.5, margin=0.2)
    assert keeps(budget, 10**9, 0.3) and not keeps(budget, 1, 0.31)
    assert keeps(budget, 1, 0.5, expected=0.3)
    assert not keeps(budget, 1, 0.51, expected=0.1) and not keeps(budget, 1, 0.1, expected=0.31)
    assert keeps(Budget(most_bytes=100), 100, 99.0) and not keeps(Budget(most_bytes=100), 101, -1.0)


def of(*points: tuple[int, float, bool]) -> list[Candidate]:
    return [Candidate(*point) for point in points]


def test_the_best_is_smallest_or_least_lost():
    """The smallest that is kept; where bytes are given the best within them; of none the nearest."""
    some = of((500, 0.1, True), (300, 0.4, True), (200, 0.9, False))
    assert best_of(Budget(metric_loss=0.5), some) == 1
    assert best_of(Budget(metric_loss=0.01), of((500, 0.1, False), (300, 0.4, False))) == 0
    assert best_of(Budget(most_bytes=500), some) == 0
    assert best_of(Budget(most_bytes=100), of((500, 0.1, False), (300, 0.4, False))) == 1


def test_steps_get_smaller_then_closer():
    """By a factor of 2.5 while losses are kept; then the geometric middle, from the smallest that is kept."""
    budget = Budget(metric_loss=1.0)
    first = next_step(budget, [], DENSE, 10)
    assert first == Next(DENSE // 24, None)
    assert next_step(budget, of((60_000, 0.0, True)), DENSE, 10) == Next(24_000, 0)
    middle = next_step(budget, of((60_000, 0.0, True), (30_000, 3.0, False)), DENSE, 10)
    assert middle == Next(int(math.sqrt(60_000 * 30_000)), 0)
    near = next_step(budget, of((60_000, 0.0, True), (57_000, 3.0, False)), DENSE, 10)
    assert isinstance(near, Stop) and "57,000" in near.reason and "60,000" in near.reason
    lucky = of((60_000, 0.0, True), (30_000, 3.0, False), (20_000, 0.5, True))
    assert next_step(budget, lucky, DENSE, 10) == Next(8_000, 2)


def test_where_the_first_steps_lose_too_much_they_become_larger():
    """Until one is kept, or nothing smaller than the model is left."""
    budget, candidates = Budget(metric_loss=0.1), []
    for _ in range(10):
        step = next_step(budget, candidates, DENSE, 20)
        if isinstance(step, Stop):
            break
        assert step.start is None
        candidates.append(Candidate(step.target_bytes, 5.0, False))
    assert isinstance(step, Stop) and [one.file_bytes for one in candidates] == [41_666, 104_165, 260_412, 651_030]


def test_who_lost_little_too_much_is_trained_on_and_then_gets_little_more():
    """A near miss goes on from its own weights, once; what the loss says of new samples counts too."""
    budget = Budget(metric_loss=0.2, margin=0.1)
    near = Candidate(40_000, 0.12, False)
    assert next_step(budget, [near], DENSE, 10) == Next(46_000, 0)
    assert next_step(budget, [near, Candidate(46_000, 0.11, False, start=0)], DENSE, 10) == Next(59_800, None)
    assert next_step(budget, [Candidate(40_000, 0.4, False)], DENSE, 10) == Next(80_000, None)
    assert next_step(budget, [Candidate(40_000, 0.0, False, 0.4)], DENSE, 10) == Next(80_000, None)
    kept = Candidate(80_000, 0.0, True)
    larger = Candidate(82_000, 0.15, False, start=0)
    assert next_step(budget, [kept, larger], DENSE, 10) == Next(32_000, 0)
    made_up = [kept, Candidate(40_000, 0.15, False, start=0), Candidate(41_000, 0.05, True, start=1)]
    assert next_step(budget, made_up, DENSE, 10) == Next(16_400, 2)
    assert next_step(budget, [kept, Candidate(40_000, 0.15, False, start=0)], DENSE, 10) == Next(46_000, 1)


def test_bytes_are_gone_towards_and_then_it_stops():
    """A small file is reached in steps of 2.5 at most, the last at what is asked for."""
    budget = Budget(most_bytes=10_000)
    assert next_step(budget, [], DENSE, 10) == Next(41_666, None)
    assert next_step(budget, of((60_000, 0.0, False)), DENSE, 10) == Next(24_000, 0)
    assert next_step(budget, of((60_000, 0.0, False), (15_000, 0.0, False)), DENSE, 10) == Next(10_000, 1)
    done = next_step(budget, of((60_000, 0.0, False), (9_900, 0.0, True)), DENSE, 10)
    assert isinstance(done, Stop) and "9,900" in done.reason
    assert next_step(Budget(most_bytes=900_000), [], DENSE, 10) == Next(900_000, None)


@given(
    st.floats(0.05, 5.0),
    st.lists(st.tuples(st.floats(0.6, 1.4), st.floats(-0.3, 0.3)), min_size=30, max_size=30),
    st.booleans(),
)
def test_every_search_ends(limit: float, noise: list[tuple[float, float]], by_bytes: bool):
    """Whatever files and losses come out, each step is possible and the search stops by itself or by its steps."""
    budget = Budget(most_bytes=20_000) if by_bytes else Budget(metric_loss=limit)
    candidates: list[Candidate] = []
    for scale, error in noise:
        step = next_step(budget, candidates, DENSE, 25)
        if isinstance(step, Stop):
            break
        assert 0 < step.target_bytes <= DENSE and (step.start is None or candidates[step.start])
        made = max(int(step.target_bytes * scale), 200)
        loss = 20_000 / made + error
        candidates.append(Candidate(made, loss, keeps(budget, made, loss)))
    assert isinstance(step, Stop)
    assert 0 <= best_of(budget, candidates) < len(candidates)


def test_the_loss_is_a_second_opinion():
    """Of few samples the loss decides, of many what was observed; a loss that says nothing changes nothing."""
    few = {"wrong_before": 1, "wrong_after": 1, "total": 200, "loss_before": 0.02}
    assert expected_loss(0.0, **few, loss_after=0.02) == pytest.approx(0.0)
    assert expected_loss(0.0, **few, loss_after=0.03) > 0.3
    many = {"wrong_before": 500, "wrong_after": 500, "total": 100_000, "loss_before": 0.02}
    assert abs(expected_loss(0.0, **many, loss_after=0.04)) < 0.1
    assert expected_loss(1.0, **few, loss_after=1e6) < 1.1
    assert expected_loss(0.5, **few | {"loss_before": 0.0}, loss_after=0.1) == pytest.approx(0.5, abs=0.01)


def test_not_a_number_never_wins():
    """A loss that is NaN keeps to no budget, is chosen over nothing, and makes the next candidate larger."""
    for budget in (Budget(metric_loss=1.0), Budget(most_bytes=100)):
        assert not keeps(budget, 10, math.nan) and not keeps(budget, 10, math.inf)
    lost = [Candidate(50, math.nan, False), Candidate(90, 7.0, False), Candidate(40, math.nan, False)]
    assert best_of(Budget(metric_loss=1.0), lost) == 1 == best_of(Budget(metric_loss=1.0), lost[::-1])
    step = next_step(Budget(metric_loss=1.0), [Candidate(40_000, math.nan, False)], DENSE, 10)
    assert step == Next(100_000, None)
    assert next_step(Budget(metric_loss=1.0), [Candidate(40_000, 0.1, False, math.nan)], DENSE, 10) == step


def test_the_first_candidate_is_as_large_as_is_predicted_to_keep():
    """24 times smaller at most; the sizes rise to less than half of the dense model; a given one is taken."""
    sizes = first_sizes(DENSE)
    assert sizes[0] == DENSE // 24 and sizes == sorted(sizes) and DENSE / 4 < sizes[-1] < DENSE / 2
    assert next_step(Budget(metric_loss=1.0), [], DENSE, 10, sizes[2]) == Next(sizes[2], None)
    assert next_step(Budget(most_bytes=100), [], DENSE, 10, sizes[2]) == Next(DENSE // 24, None)


def test_what_is_predicted_is_a_tenth_of_what_pruning_alone_costs():
    """Costs of all tensors add up, in the metric's unit and direction; gains count nothing, NaN is infinite."""
    one = TensorSensitivity(
        "a", 100, 1.0, (DensityPoint(0.5, 0.9, 0), DensityPoint(0.2, 0.6, 0)), (BitsPoint(4, 0.85, 0),)
    )
    other = TensorSensitivity("b", 100, 0.5, (DensityPoint(0.2, 0.95, 0),), (BitsPoint(4, math.nan, 0),))

    def predicted(density: dict[str, float], bits: dict[str, int], higher: bool = True) -> float:
        some = [tensor for tensor in (one, other) if tensor.name in density]
        return predicted_loss(density, bits, some, 0.9, higher_is_better=higher, in_points=True)

    assert predicted({"a": 0.21}, {"a": 4}) == pytest.approx(0.1 * (30 + 5))
    assert predicted({"a": 1.0}, {"a": 4}) == pytest.approx(0.1 * 5)
    assert predicted({"a": 0.2}, {"a": 4}, higher=False) == 0
    assert predicted({"a": 1.0, "b": 0.2}, {"a": 4, "b": 4}) == math.inf
    assert predicted({"b": 0.5}, {"b": 3}) == 0


def test_the_clock_counts_what_stands_beside_training():
    """Sensitivity by tensors, points and samples; a split that cannot be cut is looked at whole."""
    clock = Clock(an_epoch=10.0, a_look=2.0, tensors=50, others=100, samples=20_000, cut=True)
    assert clock.sensitivity(10, 2000) == pytest.approx(50 * 10 * 0.2) and clock.by_effect() == 600
    assert replace(clock, cut=False).sensitivity(10, 2000) == 1000
    assert clock.training(3) == pytest.approx(3 * 14 + 20)


def test_of_two_limits_the_loss_leads_and_the_smallest_must_fit():
    """Files become smaller as long as the loss is kept; bytes alone decide only where nothing else is asked for."""
    both, alone = Budget(1.0, 100_000, 0.25), Budget(None, 100_000)
    assert (both.bytes_alone, alone.bytes_alone) == (None, 100_000)
    assert (both.fits(100_000), both.fits(100_001), Budget(1.0).fits(10**9)) == (True, False, True)
    large, small = Candidate(150_000, 0.2, keeps(both, 150_000, 0.2)), Candidate(40_000, 2.0, keeps(both, 40_000, 2.0))
    assert (large.kept, small.kept) == (True, False) and best_of(both, [large, small]) == 0
    following = next_step(both, [large], DENSE, 12)
    assert isinstance(following, Next) and following.target_bytes < 100_000
