"""Sensitivity as a task: kept in the store, resumed, and left where people look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient
from prefect.states import State

from deepcompression.allocation import sensitivity as library
from deepcompression.models.paper import digits_net
from deepcompression.network.names import prunable
from deepcompression.torch import save
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Data, Hold, Model, Weights
from tasks.execution.stage import task_of
from tasks.stages.baseline import Settings as BaselineSettings
from tasks.stages.sensitivity import Settings, curves
from tasks.tracking.runs import Tracker

KEYS: dict[str, Any] = {"densities": [0.5, 0.1], "bits": [3, 1], "most_samples": 50}
SETTINGS = Settings(stage="sensitivity", layers=["fc*"], **KEYS)


def done(stage: str, *given: Any) -> State[Reference]:
    """The state in which a stage's task ended, with its reference."""
    state = task_of(stage).fn(*given)
    assert isinstance(state, State) and isinstance(state.data, Reference)
    return state


@pytest.fixture
def started(tmp_path: Path, mlflow_template: Path) -> tuple[Run, Reference]:
    """An open run, and its dense model: random weights, read from a file."""
    torch.manual_seed(1)
    save(digits_net().state_dict(), tmp_path / "dense.dcz")
    (tmp_path / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    tracker = Tracker(str(tmp_path / "run"), f"sqlite:///{tmp_path}/mlflow.db", "tests")
    (tmp_path / "run").mkdir()
    tracker.start("run", {})
    weights = Weights(path=str(tmp_path / "dense.dcz"))
    run = Run(
        name="run", seed=0, folder=str(tmp_path / "run"), store_folder=str(tmp_path / "store"),
        model=Model(factory="deepcompression.models:digits_net", weights=weights),
        data=Data(factory="deepcompression.data:digits", validation=0.15), step=None, metric=None, hold=Hold(),
        device="cpu", precision="float32",
        channels_last=False, threads=1, python_path=(), tracker=tracker,
    )  # fmt: skip
    return run, done("baseline", run, "baseline", 0, BaselineSettings(weights=weights)).data


def test_curves_are_stored_drawn_and_reused(started: tuple[Run, Reference]) -> None:
    """They equal the library's, weights stay, a second run takes them from the store and leaves the files too."""
    run, dense = started
    made = done("sensitivity", run, "sensitivity", None, SETTINGS, dense).data
    assert made.object == dense.object
    model, names = run.model_with(dense), ["fc1.weight", "fc2.weight"]
    expected = library.sensitivity(model, run.problem(), names, compute=run.compute(), **KEYS)
    assert curves(run, made) == expected
    folder = Path(run.folder) / "figures"
    assert library.restored(json.loads((folder / "sensitivity.json").read_text())) == expected
    assert run.tracker.run_id is not None
    listed = MlflowClient(tracking_uri=run.tracker.uri).list_artifacts(run.tracker.run_id, "figures")
    assert {one.path for one in listed} == {"figures/sensitivity.json", "figures/sensitivity.svg"}
    before = (folder / "sensitivity.svg").read_bytes()
    (folder / "sensitivity.svg").unlink()
    again = done("sensitivity", run, "sensitivity", None, SETTINGS, dense)
    assert again.name == "Reused" and again.data.key == made.key
    assert (folder / "sensitivity.svg").read_bytes() == before
    other = done("sensitivity", run, "sensitivity", None, SETTINGS.model_copy(update={"bits": [2]}), dense)
    assert other.name != "Reused" and other.data.key != made.key


def test_a_killed_task_goes_on_with_the_next_tensor(
    started: tuple[Run, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was measured before is not measured again; without layers, all prunable tensors are tried."""
    run, dense = started
    few, tried = Settings(stage="sensitivity", densities=[0.1], bits=[2]), []
    original = library.sensitivity

    def counted(model: Any, problem: Any, names: list[str], **arguments: Any) -> library.Sensitivity:
        tried.extend(names)
        if len(tried) == 3:
            raise KeyboardInterrupt
        return original(model, problem, names, **arguments)

    monkeypatch.setattr(library, "sensitivity", counted)
    with pytest.raises(KeyboardInterrupt):
        done("sensitivity", run, "sensitivity", None, few, dense)
    made = done("sensitivity", run, "sensitivity", None, few, dense).data
    names = prunable(digits_net())
    assert tried == [*names[:3], *names[2:]] and [one.name for one in curves(run, made).tensors] == names
