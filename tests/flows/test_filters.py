"""Filters pruned and removed in a whole run: the file's thin net comes from the user's own class."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepcompression import torch as files
from deepcompression.data.small_images import digits
from deepcompression.errors import ExportError
from deepcompression.export import onnx
from flows.compress import compress
from tasks.storage.store import Store

pytestmark = pytest.mark.usefixtures("prefect_server")
CASES = Path(__file__).resolve().parents[1] / "cases"
FPGM = {"stage": "prune", "granularity": "filter", "criterion": "fpgm"}
STAGES = [
    {**FPGM, "density": {"one": 0.25, "default": 0.5}, "remove": True},
    {"stage": "finetune", "epochs": 2, "batch_size": 64, "lr": 8e-3},
    {"stage": "prune", "density": 0.8},
    {**FPGM, "criterion": "l2", "density": 0.75},
    {"stage": "share", "bits": 5},
    {"stage": "quantize", "train": {"epochs": 1}, "codebook": "float16", "rest": "float16"},
    {"stage": "encode"},
]


@pytest.fixture
def recipe(tiny: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A recipe for a net with a shortcut and a depthwise convolution."""
    monkeypatch.syspath_prepend(str(CASES))
    model = {"factory": "mine.models:Thinnable"}
    train = {"epochs": 5, "batch_size": 64, "lr": 1e-2}
    return lambda stages: tiny(model=model, train=train, stages=stages, python_path=[str(CASES)])


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An export that the checks let pass, and that fails when the file is there."""

    def export(*given: object) -> None:
        raise ExportError("export onnx: not this one")

    monkeypatch.setattr(onnx, "check", lambda model, sample: None)
    monkeypatch.setattr(onnx, "export", export)


@pytest.mark.usefixtures("failing")
def test_a_thin_net_goes_through_every_stage_to_a_file(recipe: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Removed, retrained, pruned, zeroed, shared, rounded, coded; loaded into a new model of the same class. That it
    cannot be exported ends the run only when all of that is there, and stands in summary and report.
    """
    with pytest.raises(ExportError, match=r"^export onnx: not this one$"):
        compress({**recipe(STAGES), "export": ["onnx"]})
    (folder,) = tmp_path.glob("runs/*")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["exports"] == [{"target": "onnx", "error": "export onnx: not this one"}]
    assert "failed</strong>: export onnx: not this one" in (folder / "report.html").read_text()
    rows = {row["stage"]: row for row in summary["stages"]}
    assert rows["finetune"]["val_metric"] > 0.6
    store = Store(str(Path(summary["folder"]).parent.parent / "store"))
    stored = store.find(rows["prune"]["key"])
    assert stored is not None and stored["report"]["gap"] < 1e-5 and len(stored["edits"]) == 1
    layers = {one["name"]: (one["channels"], one["kept"]) for one in stored["report"]["layers"]}
    assert layers == {"stem.weight": (8, 4), "one.weight": (16, 4), "two.weight": (32, 16), "point.weight": (32, 16)}
    assert list(stored["report"]["left"]) == ["head"]

    model = files.load_into(sys.modules["mine.models"].Thinnable(), summary["file"]).eval()
    assert (model.one.weight.shape, model.deep.groups, model.head.in_features) == ((4, 4, 3, 3), 16, 16)
    assert int(model.one.weight.flatten(1).any(1).sum()) == 3 and int(model.deep.weight.flatten(1).any(1).sum()) == 12
    dense, thin = (
        sum(one.numel() for one in net.parameters()) for net in (sys.modules["mine.models"].Thinnable(), model)
    )
    assert rows["prune"]["model_density"] == pytest.approx(thin / dense, rel=0.01) and thin < dense / 2
    assert rows["encode"]["model_density"] < rows["prune-2"]["model_density"] < rows["prune"]["model_density"]
    images, labels = digits().test
    with torch.no_grad():
        assert int((model(images).argmax(1) == labels).sum()) == summary["final"]["correct"]
