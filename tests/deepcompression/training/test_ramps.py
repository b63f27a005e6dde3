"""Curves of levels by their words, and the one that waits for the metric."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from trainings import Watch, trained

from deepcompression.errors import StructureError
from deepcompression.pruning.filters_in_training import FilterPruning
from deepcompression.pruning.gradual import GradualPruning
from deepcompression.pruning.rb import RB
from deepcompression.training.method import Method, Now
from deepcompression.training.problem import Problem
from deepcompression.training.ramps import ADAPTIVE, CURVES, Ramp, curve_of

SGD = {"factory": "torch.optim:SGD", "kwargs": {"lr": 0.05}}


def levels(curve: str, final: float = 0.1) -> list[float]:
    """Of eleven steps and one more, down from 1."""
    ramp = Ramp(curve, 1.0, 1.0)
    return [ramp.level(Now(step, 11), final) for step in range(12)]


def test_curves_start_and_end_where_they_should_and_never_rise() -> None:
    """Zhu and Gupta 2017, equation 1, worked out by hand at half of the way; other powers and numbers of steps."""
    middle = {"cubic": 0.1 + 0.9 / 8, "quadratic": 0.1 + 0.9 / 4, "linear": 0.55, "exponential": 0.1**0.5}
    middle |= {"steps": 1 - 0.9 * 3 / 4, "constant": 0.1, "polynomial": 0.1 + 0.9 / 8}
    assert set(middle) == set(CURVES) - {ADAPTIVE}
    middle |= {"polynomial(1.5)": 0.1 + 0.9 * 0.5**1.5, "steps(10)": 1 - 0.9 * 0.6, "steps(1)": 0.1}
    for curve, wanted in middle.items():
        found = levels(curve)
        assert found[5] == pytest.approx(wanted) and found[10] == found[11] == 0.1
        assert found == sorted(found, reverse=True)
    assert levels("cubic")[0] == 1.0 and levels("cubic", 1.0) == [1.0] * 12


@pytest.mark.parametrize("word", ["up", "steps()", "steps(2.5)", "steps(0)", "polynomial(0)", "cubic(3)", "linear "])
def test_other_words_are_refused_with_those_that_are_known(word: str) -> None:
    """A number where none belongs is no curve either."""
    with pytest.raises(StructureError, match=r"curve .* is not known; expected one of cubic, .*, steps\(N\), poly"):
        curve_of(word)


def told(metrics: list[float], better: bool = True, epochs: int = 10, part: float = 1.0) -> list[float]:
    """The part of the way after each epoch of ten steps, with these metrics."""
    ramp, found = Ramp(ADAPTIVE, part, 1.0, 0.01, better), []
    for number, metric in enumerate(metrics):
        ramp.after_epoch(Now(10 * (number + 1), 10 * epochs), metric)
        found.append(round(ramp.gone, 4))
    return found


def test_the_way_goes_on_while_the_metric_holds_and_back_where_it_does_not() -> None:
    """Twice as far as needed at first, half as far after each loss; what holds is what is gone back to."""
    stride = 2 / 9
    forward = [round(stride * number, 4) for number in (1, 2, 3, 4)]
    assert told([0.9, 0.9, 0.895, 0.9]) == forward
    assert told([0.9, 0.9, 0.85, 0.9, 0.9]) == [*forward[:2], forward[0], *(round(stride * x, 4) for x in (1.5, 2))]
    assert told([0.9, 0.95, 0.91]) == [*forward[:2], forward[0]]  # of the best so far
    assert told([2.0, 2.01, 2.5], better=False) == [*forward[:2], forward[0]]
    assert told([0.9] * 7)[-1] == 1.0


def test_at_the_end_of_the_ramp_stands_what_the_metric_held() -> None:
    """Also where the last try failed, or was not judged any more; and a resumed way is the same."""
    ramp = Ramp(ADAPTIVE, 0.5, 1.0)
    for step, metric in ((10, 0.9), (20, 0.9), (30, 0.5)):
        ramp.after_epoch(Now(step, 80), metric)
    again = Ramp(ADAPTIVE, 0.5, 1.0)
    again.load_state_dict(ramp.state_dict())
    for one in (ramp, again):
        assert one.level(Now(39, 80), 0.01) == one.level(Now(40, 80), 0.01) == 0.01**0.5
        one.after_epoch(Now(50, 80), 0.9)
        assert one.level(Now(79, 80), 0.01) == 0.01**0.5
    assert ramp.short_of("prune: x") == [
        "prune: x was not reached: beyond 50% of the way the metric fell by more than 0.01 of its best"
    ]
    assert Ramp(ADAPTIVE, 0.5, 1.0).short_of("x") == ["x was not reached: no metric of an epoch was told"]
    assert Ramp("cubic", 0.5, 1.0).short_of("x") == []


class Judge:
    """A metric that is lost below a density of the first layer's weights."""

    name, higher_is_better = "judged", True

    def __init__(self, model: nn.Module, least: float) -> None:
        self.model, self.least = model, least

    def __call__(self, outputs: Any, targets: Any) -> float:
        density = float((self.model[0].weight != 0).float().mean())
        return 1.0 if density >= self.least else 0.5


@pytest.mark.parametrize(
    "method",
    [
        GradualPruning(0.1, curve=ADAPTIVE, ramp=0.9),
        FilterPruning(0.1, curve=ADAPTIVE, ramp=0.9, criterion="l1"),
        RB(0.1, ramp=0.9, curve=ADAPTIVE, speed=300.0),
    ],
)
def test_every_level_waits_for_the_metric_and_zeros_come_back(method: Method) -> None:
    """The training ends above what loses the metric, though it was below in between, and says so."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3))
    x = torch.randn(64, 6)
    seen: list[float] = []
    watch = Watch(lambda *_: seen.append(float((model[0].weight != 0).float().mean())))
    problem = Problem((x, x[:, :3].argmax(1)), (x, x[:, :3].argmax(1)), metric=Judge(model, 0.4), batch_size=16)
    done = trained(model, problem, [method, watch], epochs=10, optimizer=SGD)
    density = float((model[0].weight != 0).float().mean())
    assert min(seen) < 0.4 and (isinstance(method, RB) or 0.4 <= density < 0.9)  # gates follow their level as they can
    notes = done.accounts[0][1].notes
    assert any("was not reached: beyond" in note for note in notes)
