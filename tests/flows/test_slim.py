"""The stage `slim` in whole runs on real data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepcompression import torch as files
from deepcompression.data.small_images import digits
from deepcompression.errors import StructureError
from deepcompression.models.paper import digits_net
from deepcompression.network.state import is_zero
from flows.compress import compress
from tasks.storage.store import Store

pytestmark = pytest.mark.usefixtures("prefect_server")
Tiny = Callable[..., dict[str, Any]]
SHARED = [
    {"stage": "prune", "density": {"conv1": 0.5, "default": 0.02}},
    {"stage": "slim"},
    {"stage": "share", "bits": 4},
    {"stage": "slim", "reorder": True},
    {"stage": "quantize", "codebook": "float16", "rest": "float16"},
    {"stage": "slim", "reorder": False},
    {"stage": "encode", "coder": "adaptive"},
]


def entry(summary: dict[str, Any], label: str) -> dict[str, Any]:
    """What the store holds of a stage."""
    key = next(row["key"] for row in summary["stages"] if row["stage"] == label)
    found = Store(str(Path(summary["folder"]).parent.parent / "store")).find(key)
    assert found is not None
    return found


@pytest.mark.slow
def test_slim_stands_anywhere_and_changes_no_result(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruned, slimmed, shared, slimmed, rounded, slimmed: the file is smaller and makes the very same errors."""
    plain = compress(tiny(stages=[stage for stage in SHARED if stage["stage"] != "slim"]))
    summary = compress(tiny(stages=SHARED))
    rows = {row["stage"]: row for row in summary["stages"]}
    assert summary["file_bytes"] < plain["file_bytes"]
    assert rows["slim"]["val_metric"] == rows["prune"]["val_metric"]
    assert rows["slim-2"]["val_metric"] == rows["share"]["val_metric"]
    assert summary["final"]["correct"] == pytest.approx(plain["final"]["correct"], abs=2)

    images, labels = digits().test
    model = files.load_into(digits_net(), summary["file"]).eval()
    with torch.no_grad():
        assert int((model(images).argmax(1) == labels).sum()) == summary["final"]["correct"]
    assert all(len(torch.unique(getattr(model, name).weight)) <= 17 for name in ("conv1", "conv2", "fc1", "fc2"))

    stored = entry(summary, "slim")
    assert [layer["name"] for layer in stored["report"]["layers"]] == ["conv1", "conv2", "fc1"]
    assert any(layer["reordered"] for layer in stored["report"]["layers"])
    assert sum(layer["dead"] for layer in stored["report"]["layers"]) > 0
    assert stored["report"]["left"] == {"fc2": "its units are the model's outputs"}
    assert stored["notes"][-1] == "fc2 is left alone: its units are the model's outputs"

    monkeypatch.setattr("tasks.execution.execute.measuring_code", lambda: "another")
    again = compress(tiny(stages=SHARED))
    assert all(row["cached"] for row in again["stages"]) and again["file_bytes"] == summary["file_bytes"]


def test_cut_units_stay_dead_through_training(tiny: Tiny) -> None:
    """`units` costs accuracy, which the finetune that follows wins back without one of them coming alive."""
    stages = [
        {"stage": "slim", "units": {"conv*": 0.5, "fc1": 40}},
        {"stage": "finetune", "epochs": 3, "batch_size": 64, "lr": 2e-3},
    ]
    summary = compress(tiny(stages=stages))
    rows = {row["stage"]: row for row in summary["stages"]}
    assert rows["finetune"]["val_metric"] > 0.8 and rows["finetune"]["density"] < 0.3
    state = files.load(summary["file"])
    alive = {name: state[f"{name}.weight"].flatten(1).any(1) for name in ("conv1", "conv2", "fc1")}
    assert {name: int(one.sum()) for name, one in alive.items()} == {"conv1": 16, "conv2": 32, "fc1": 40}
    assert not state["conv2.weight"][:, ~alive["conv1"]].any()
    assert {layer["name"]: layer["cut"] for layer in entry(summary, "slim")["report"]["layers"]} == {
        "conv1": 16,
        "conv2": 32,
        "fc1": 88,
    }
    assert json.loads((Path(summary["folder"]) / "summary.json").read_text()) == summary
    assert is_zero(state["fc1.bias"]).sum() <= 88


@pytest.mark.parametrize(
    ("units", "words"), [({"fc9": 3}, "fc9"), ({"fc2": 3}, "model's outputs"), (1000, "impossible")]
)
def test_units_that_cannot_be_cut_are_told_before_anything_trains(units: Any, words: str, tiny: Tiny) -> None:
    """Hours of training must not end in a misspelt name."""
    with pytest.raises(StructureError, match=f"stage slim: .*{words}"):
        compress(tiny(stages=[{"stage": "slim", "units": units}]))
