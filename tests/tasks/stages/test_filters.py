"""The keys of the stage `prune` that filters have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from deepcompression.data.small_images import digits
from deepcompression.errors import StructureError
from deepcompression.models.paper import digits_net
from deepcompression.training.device import Compute
from deepcompression.training.problem import Problem
from tasks.stages.prune import Settings

FPGM: dict[str, Any] = {"stage": "prune", "granularity": "filter", "criterion": "fpgm"}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {**FPGM, "criterion": "magnitude", "density": 0.5},
            "filter goes with criterion: one of fpgm, l1, l2, fpgm-mix, bn_scale, apoz, fisher, wanda, taylor; not mag",
        ),
        (
            {"stage": "prune", "criterion": "l1", "density": 0.5},
            "weight goes with criterion: one of magnitude, wanda, t",
        ),
        ({"stage": "prune", "density": 0.5, "remove": True}, "remove: true goes with granularity: filter"),
        (
            {**FPGM, "density": 0.5, "scope": "global"},
            "filter goes with density, flops or parameters; scope: global with the last two",
        ),
        ({**FPGM, "density": 0.5, "gradual": {}}, "filter goes without gradual; while training it is a method"),
        ({**FPGM}, "expected exactly one of density, flops and parameters"),
        ({**FPGM, "density": 0.5, "flops": 0.5}, "expected exactly one of density, flops and parameters"),
        ({**FPGM, "parameters": 0.5, "flops": 0.5}, "expected exactly one of density, flops and parameters"),
        ({"stage": "prune", "density": 0.5, "multiple": 8}, "multiple goes with granularity: one of filter"),
        ({"stage": "prune", "density": 0.5, "parameters": 0.5}, "parameters goes with granularity: filter"),
        ({"stage": "prune", "density": 0.5, "flops": 0.5}, "flops goes with granularity: filter"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], words: str) -> None:
    """What filters and single weights do not share is said with what goes instead."""
    with pytest.raises(ValidationError, match=words):
        Settings(**keys)


def test_filters_that_cannot_go_are_told_before_anything_trains() -> None:
    """Hours of training must not end in a layer that is the model's output; of single weights it may be pruned."""
    splits = digits()
    run: Any = SimpleNamespace(problem=lambda: Problem(splits.train, splits.test), compute=lambda: Compute("cpu"))
    Settings(**FPGM, density={"conv1": 0.5, "default": 1.0}).fits(run, digits_net())
    Settings(stage="prune", density={"fc2": 0.5}).fits(run, digits_net())
    with pytest.raises(StructureError, match=r"fc2.weight: its channels cannot be removed: "):
        Settings(**FPGM, density={"fc2": 0.5}, remove=True).fits(run, digits_net())
    Settings(**FPGM, flops=0.5).fits(run, digits_net())
    with pytest.raises(StructureError, match=r"prune: flops: 1e-06 is out of reach: with one channel in each group"):
        Settings(**FPGM, flops=1e-6).fits(run, digits_net())


def test_rounds_end_in_what_was_asked_for_whether_filters_stay_as_zeros_or_go() -> None:
    """Zeros are still counted in the next round, what was removed is not."""
    zeroed, removed = (Settings(**FPGM, flops=0.25, rounds=2, remove=remove) for remove in (False, True))
    assert [zeroed.in_round(number).flops for number in range(2)] == [0.5, 0.25]
    assert [removed.in_round(number).flops for number in range(2)] == [0.5, 0.5]
    named = Settings(**FPGM, density={"conv1": 0.25, "default": 1.0}, rounds=2).in_round(0)
    assert named.density == {"conv1": 0.5, "default": 1.0} and named.rounds == 1


def test_channels_that_a_criterion_cannot_tell_of_are_named_before_anything_trains() -> None:
    """A net without BatchNorm has no scales; what keeps all of its channels needs none."""
    splits = digits()
    run: Any = SimpleNamespace(problem=lambda: Problem(splits.train, splits.test), compute=lambda: Compute("cpu"))
    scaled = {**FPGM, "criterion": "bn_scale"}
    with pytest.raises(
        StructureError, match=r"conv1.weight: no BatchNorm scales its channels; name it with density: 1"
    ):
        Settings(**scaled, density={"conv1": 0.5}).fits(run, digits_net())
    Settings(**scaled, density={"conv1": 1.0}).fits(run, digits_net())
    Settings(**{**FPGM, "criterion": "apoz"}, parameters=0.5).fits(run, digits_net())
