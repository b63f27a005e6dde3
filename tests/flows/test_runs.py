"""Runs that are over, taken up again; and what is said where that cannot be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcompression.errors import RecipeError, WeightsError
from flows.history import Found, find
from flows.runs import finished

Tiny = Callable[..., dict[str, Any]]


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    """Of a run that never ran: its recipe, and a summary that names a stage of no store."""
    folder = tmp_path / "runs" / "tiny-1"
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tiny(seed=3)))
    (folder / "summary.json").write_text(json.dumps({"seed": 3, "stages": [{"stage": "baseline", "key": "gone"}]}))
    (folder / "model.dcz").write_bytes(b"")
    return folder


def _refusal(folder: Path) -> str:
    with pytest.raises(RecipeError) as told:
        finished(find(str(folder), ""))
    assert "\n" not in str(told.value)
    return str(told.value)


def test_a_run_is_as_it_was(folder: Path) -> None:
    """Its seed, its folder, its model: what a stage of it would have worked with."""
    done = finished(find(str(folder), ""))
    assert (done.run.seed, done.folder, done.file.name) == (3, folder.resolve(), "model.dcz")
    assert type(done.run.blank_model()).__name__ == "DigitsNet" and done.run.tracker.folder == str(folder.resolve())


def test_dense_weights_that_are_gone(folder: Path) -> None:
    """The store is pruned by age and size; who looks for a model there is told how to make it again."""
    with pytest.raises(WeightsError, match=r"^run tiny-1: the dense model's weights are not in the store .*/store any"):
        finished(find(str(folder), "")).baseline()


def test_folders_that_no_finished_run_left(folder: Path) -> None:
    """Without its file, its summary, or with a damaged one, and of several seeds: one line that says what to do."""
    (folder / "model.dcz").unlink()
    assert _refusal(folder) == (
        "run tiny-1: has no model.dcz: it was removed; run it again: python -m flows rerun tiny-1"
    )
    for damage in ("{", "[]", '{"seed": 0, "stages": []}', '{"seed": null, "stages": [{"key": "a"}]}'):
        (folder / "summary.json").write_text(damage)
        assert "run tiny-1: summary.json is damaged" in _refusal(folder)
    (folder / "summary.json").write_text(json.dumps({"runs": [{"folder": "/runs/a-0"}, {"folder": "/runs/a-1"}]}))
    assert _refusal(folder) == "run tiny-1: has several seeds, a run each; name one of them: a-0, a-1"
    (folder / "summary.json").unlink()
    assert "run tiny-1: has no summary.json: the run is unfinished or failed; start it again" in _refusal(folder)


def test_a_run_of_another_machine() -> None:
    """A tracking server has the recipe alone, and what it says is not run here."""
    with pytest.raises(RecipeError, match="its folder is not on this machine"):
        finished(Found("0123", {}, None, foreign=True))
