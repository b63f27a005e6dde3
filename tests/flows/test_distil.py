"""Stages that learn from a teacher, and weights that share while they train, in whole runs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import once
from mlflow import MlflowClient

from deepcompression import torch as files
from deepcompression.errors import RecipeError
from flows.compress import compress
from flows.recipe import load as recipes

pytestmark = pytest.mark.usefixtures("prefect_server")
Tiny = Callable[..., dict[str, Any]]

GRADUAL = {"epochs": 2, "batch_size": 64}
STAGES = [
    {"stage": "prune", "density": 0.2, "scope": "global", "gradual": {**GRADUAL, "distil": {"temperature": 2}}},
    {"stage": "share", "bits": {"default": 3, "fc1.bias": 3}, "rate": 0.2, "train": {**GRADUAL, "distil": {}}},
    {"stage": "quantize", "codebook": "float16", "rest": "bfloat16"},
    {"stage": "encode", "coder": "adaptive"},
]


@pytest.fixture(scope="module")
def learned(tiny_in: Tiny, prefect_server: str) -> dict[str, Any]:
    """A run of these stages, and the recipe."""

    def make(folder: Path) -> dict[str, Any]:
        recipe = tiny_in(folder, stages=STAGES)
        return {"recipe": recipe, "summary": compress(recipe)}

    found: dict[str, Any] = once("distilled-run", make)
    return found


def test_a_recipe_learns_from_its_dense_model(learned: dict[str, Any]) -> None:
    """Pruned over all layers together, shared while training: few values are left, fewer weights than pruning left."""
    summary = learned["summary"]
    rows = {row["stage"]: row for row in summary["stages"]}
    assert rows["prune"]["density"] == pytest.approx(0.2, abs=1e-3)
    assert rows["share"]["density"] < rows["prune"]["density"]
    state = files.load(summary["file"])
    for name in ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight", "fc1.bias"):
        assert len(torch.unique(state[name][state[name] != 0])) <= 8
    assert summary["final"]["accuracy"] > 0.5


@pytest.mark.slow
def test_another_teacher_is_trained_once_and_counts(learned: dict[str, Any], tmp_path: Path) -> None:
    """A teacher of the recipe's own is a task that is reused; what learns from another teacher is made anew."""
    teacher = {"factory": "deepcompression.models:digits_net", "train": {"epochs": 1, "batch_size": 64}}
    shutil.copytree(learned["recipe"]["store"], tmp_path / "store")
    places = {"store": str(tmp_path / "store"), "runs": str(tmp_path / "runs"), "teacher": teacher}
    first = compress({**learned["recipe"], **places})
    assert isinstance(first, dict)
    assert first["reused"] == ["baseline"]
    assert [row["stage"] for row in first["stages"]] == [row["stage"] for row in learned["summary"]["stages"]]
    again = compress({**learned["recipe"], **places})
    assert isinstance(again, dict) and len(again["reused"]) == 5
    metrics = MlflowClient(first["tracking_uri"]).get_run(first["mlflow_run_id"]).data.metrics
    assert metrics["size_bytes/teacher"] > 200_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": {"epochs": 1, "distil": {}}}, "train.distil needs a teacher"),
        (
            {"teacher": {"factory": "deepcompression.models:digits_net", "train": {"distil": {}}}},
            "the teacher itself learns from labels",
        ),
        ({"stages": [{"stage": "quantize", "rest": "bfloat16"}, STAGES[1]]}, "trains after quantize"),
        ({"stages": [{"stage": "share", "bits": 3, "rate": -1}]}, "rate"),
    ],
)
def test_what_cannot_be_is_refused(tiny: Tiny, changes: dict[str, Any], message: str) -> None:
    """A dense model cannot learn from itself, a teacher has no teacher, sharing that trains stands before rounding."""
    with pytest.raises(RecipeError, match=message):
        recipes.load(tiny(**changes))
