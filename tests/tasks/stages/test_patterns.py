"""Keys of pruning in patterns, and what the stage makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from quiet_runs import SMALL, quiet_run

from tasks.execution.execute import execute
from tasks.execution.settings import Model
from tasks.stages import settings_of, work_of


@pytest.mark.parametrize(
    ("stage", "keys", "words"),
    [
        ("prune", {"granularity": "4:4"}, "expected N:M with N below M, got '4:4', which prunes nothing"),
        ("prune", {"granularity": "1x1", "density": 0.5}, "expected blocks of more than one weight, got '1x1'"),
        ("prune", {"granularity": "2:4", "density": 0.5}, "granularity: 2:4 says how many weights stay: leave density"),
        ("prune", {"granularity": "2:4", "rounds": 2}, "granularity: 2:4 says how many weights stay"),
        ("prune", {"granularity": "1x4"}, "expected exactly one of density and quality"),
        ("prune", {"granularity": "1x4", "density": {"fc1": 0.5}}, "granularity: 1x4 takes one density"),
        ("prune", {"granularity": "2:4", "gradual": {}}, r"methods: \[{prune: {granularity: '2:4'}}\]"),
        ("prune", {"granularity": "2:4", "remove": True}, "remove: true goes with granularity: filter"),
        (
            "prune",
            {"granularity": "2:4", "criterion": "fpgm"},
            "granularity: 2:4 goes with criterion: one of magnitude",
        ),
        (
            "prune",
            {"granularity": "two", "density": 0.5},
            "expected weight, filter, channel, head, layer, kernel, N:M, such as 2:4, or ROWSxCOLUMNS, such as 1x4",
        ),
        ("prune", {"density": 0.5, "layers": ["fc1"]}, "layers goes with a granularity such as 2:4 or 1x4"),
        ("train", {"methods": [{"prune": {}}]}, "expected a density, or a granularity such as 2:4"),
        ("train", {"methods": [{"prune": {"granularity": "4:2"}}]}, "expected N:M with N below M, got '4:2'"),
        ("train", {"methods": [{"prune": {"granularity": "2:4", "ramp": 0.5}}]}, "granularity: 2:4 goes without ramp"),
        (
            "train",
            {"methods": [{"prune": {"density": 0.5, "decay": 1.0}}]},
            "decay goes with a granularity such as 2:4",
        ),
    ],
)
def test_keys_that_do_not_go_together_are_told(stage: str, keys: dict[str, Any], words: str) -> None:
    """By their names, before a model is there."""
    with pytest.raises(ValidationError, match=words):
        settings_of(stage).model_validate({"stage": stage, **keys})


def test_the_stage_makes_patterns_says_what_it_left_and_what_must_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """N:M and blocks by default: structure, and half of the weights."""
    with quiet_run(tmp_path, monkeypatch, "tpt_mine", SMALL, Model(factory="tpt_mine:net")) as run:
        begun = settings_of("baseline").model_validate({"train": {"epochs": 1}})
        dense = execute(run, "baseline", 1, begun, None, work_of("baseline"))[0]
        for keys, words in (
            ({"granularity": "1:2"}, ("zeros", "n_m(1, 2)")),
            ({"granularity": "1x2", "density": 0.5}, ("zeros",)),
        ):
            settings = settings_of("prune").model_validate({"stage": "prune", **keys})
            settings.fits(run, run.blank_model())
            settings.follows(run.blank_model(), {})
            reference = execute(run, "prune", 1, settings, dense, work_of("prune"))[0]
            assert reference.structure == dict.fromkeys(("0.weight", "2.weight", "4.weight"), words)
            state = run.model_with(reference).state_dict()
            assert all(float((state[name] != 0).float().mean()) == 0.5 for name in reference.structure)
