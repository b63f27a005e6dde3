"""A file judged by a recipe: any kind of file, any split, a table of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepcompression.errors import DataError, InputError
from flows import evaluated as module
from flows.recipe import load as recipes


def test_a_file_is_judged_as_the_run_judged_it(tiny_run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """The same errors on the test split, and rows that add up to all samples."""
    summary, parsed = tiny_run["summary"], recipes.load(tiny_run["recipe"])
    found = module.evaluated(Path(summary["file"]), parsed, "test")
    assert (found["correct"], found["total"]) == (summary["final"]["correct"], summary["final"]["total"])
    assert len(found["classes"]) == 10 and sum(row["samples"] for row in found["classes"]) == found["total"]
    recalled = sum(row["recall"] * row["samples"] for row in found["classes"])
    assert recalled == pytest.approx(found["correct"])
    module.show(found)
    assert "precision" in capsys.readouterr().out


def test_a_checkpoint_is_a_file_too(tiny_run: dict[str, Any]) -> None:
    """The dense model's weights, as the store has them, on the split that is not asked for twice."""
    run, dense = tiny_run["run"], tiny_run["references"][0]
    found = module.evaluated(run.store.object_path(dense.object), recipes.load(tiny_run["recipe"]), "validation")
    assert found["value"] == pytest.approx(dense.numbers["val_metric"]) and found["runtime"] == "PyTorch"


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("model.onnx", "onnx"), ("mine.onnx", "onnx"), ("model.openvino.onnx", "openvino"), ("a.tflite", "litert"),
        ("net.mlpackage", "coreml"), ("model.pt2", "pt2"), ("model.dcz", None), ("model.safetensors", None),
    ],
)  # fmt: skip
def test_exports_are_known_by_their_names(name: str, target: str | None) -> None:
    """What they end in tells the runtime, and the longest end counts."""
    assert module.target_of_file(Path(name)) == target


def test_what_is_missing_is_told_with_its_whole_path(tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not there, and a split that the data has not."""
    parsed = recipes.load(tiny_run["recipe"])
    with pytest.raises(InputError, match=f"{Path.cwd()}/no.dcz: no such file"):
        module.evaluated(Path("no.dcz"), parsed, "validation")
    from tasks.execution.run import Run

    splits = type("Splits", (), {"test": None})()
    monkeypatch.setattr(Run, "splits", lambda self: splits)
    with pytest.raises(DataError, match="has no test split"):
        module.evaluated(Path(tiny_run["summary"]["file"]), parsed, "test")
