"""The keys of the stage `prune` that filters have."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from deepcompression.data.small_images import digits
from deepcompression.errors import StructureError
from deepcompression.models.paper import digits_net
from deepcompression.training.problem import Problem
from tasks.stages.prune import Settings

FPGM: dict[str, Any] = {"stage": "prune", "granularity": "filter", "criterion": "fpgm"}


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {**FPGM, "criterion": "magnitude", "density": 0.5},
            "filter goes with criterion: one of fpgm, l1, l2; not mag",
        ),
        ({"stage": "prune", "criterion": "l1", "density": 0.5}, "weight goes with criterion: one of magnitude, wanda"),
        ({"stage": "prune", "density": 0.5, "remove": True}, "remove: true goes with granularity: filter"),
        ({**FPGM, "density": 0.5, "scope": "global"}, "granularity: filter goes with density and scope: layer"),
        ({**FPGM, "density": 0.5, "gradual": {}}, "granularity: filter goes with density and scope: layer"),
        ({**FPGM, "density": 0.5, "remove": True, "rounds": 2}, "remove: true goes with rounds: 1"),
        ({**FPGM}, "expected exactly one of density and flops"),
        ({**FPGM, "density": 0.5, "flops": 0.5}, "expected exactly one of density and flops"),
        ({**FPGM, "flops": 0.5, "rounds": 2}, "flops goes with rounds: 1"),
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
    run: Any = SimpleNamespace(problem=lambda: Problem(splits.train, splits.test))
    Settings(**FPGM, density={"conv1": 0.5, "default": 1.0}).fits(run, digits_net())
    Settings(stage="prune", density={"fc2": 0.5}).fits(run, digits_net())
    with pytest.raises(StructureError, match=r"fc2.weight: its channels cannot be removed: "):
        Settings(**FPGM, density={"fc2": 0.5}, remove=True).fits(run, digits_net())
    Settings(**FPGM, flops=0.5).fits(run, digits_net())
    with pytest.raises(StructureError, match=r"prune: flops: 1e-06 is out of reach: with one channel in each group"):
        Settings(**FPGM, flops=1e-6).fits(run, digits_net())
