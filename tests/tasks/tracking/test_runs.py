from __future__ import annotations

import json
import math
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest
from bad_servers import BAD, bad_server
from mlflow import MlflowClient

from deepcompression.errors import RecipeError, RunError
from flows.recipe.reading import fetched
from flows.servers import Server
from tasks.machine import deadline
from tasks.tracking import client
from tasks.tracking.client import resolve_uri, runs_of_experiment
from tasks.tracking.runs import JOURNAL, Tracker, flatten, masked


@pytest.fixture
def database(tmp_path: Path, mlflow_template: Path) -> str:
    path = tmp_path / "mlflow.db"
    path.write_bytes(mlflow_template.read_bytes())
    return f"sqlite:///{path}"


def _folder(tmp_path: Path, name: str = "run") -> Path:
    folder = tmp_path / name
    folder.mkdir()
    return folder


def test_everything_logged_can_be_read_back(tmp_path: Path, database: str) -> None:
    """Params, metrics with steps, curves, tags, artifacts and the end of a run stand in MLflow."""
    folder = _folder(tmp_path)
    tracker = Tracker(str(folder), database, "e")
    tracker.start("name", {"t": "1"})
    tracker.params({"stages": ["prune"], "prune": {"density": {"conv*": 0.5}}, "none": None})
    tracker.metrics({"size_bytes/prune": 10}, step=3)
    tracker.curve("finetune", [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25}])
    (folder / "f.txt").write_text("x")
    tracker.artifact(folder / "f.txt")
    tracker.finish()
    client = MlflowClient(tracking_uri=database)
    run = client.get_run(str(tracker.run_id))
    assert run.info.status == "FINISHED" and run.info.run_name == "name" and run.data.tags["t"] == "1"
    assert run.data.params["prune.density.conv_"] == "0.5" and "none" not in run.data.params
    assert [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "finetune/loss")] == [
        (1, 0.5),
        (2, 0.25),
    ]
    assert client.get_metric_history(run.info.run_id, "size_bytes/prune")[0].step == 3
    assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["f.txt"]
    assert tracker.unsent() == 0


def test_child_runs_know_their_parent(tmp_path: Path, database: str) -> None:
    """Several seeds are children of one run."""
    parent, child = (Tracker(str(_folder(tmp_path, name)), database, "e") for name in ("parent", "child"))
    parent.start("p", {})
    child.start("c", {}, parent.as_parent())
    run = MlflowClient(tracking_uri=database).get_run(str(child.run_id))
    assert run.data.tags["mlflow.parentRunId"] == parent.run_id


def test_server_away_is_told_once_and_everything_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With nobody at the address a run goes on within seconds; its journal has all that was to be sent."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = _folder(tmp_path)
    tracker = Tracker(str(folder), f"http://127.0.0.1:{port}", "e")
    started = time.monotonic()
    tracker.start("n", {})
    tracker.metrics({"a": 1.0}, step=1)
    tracker.finish()
    assert time.monotonic() - started < 20
    assert [json.loads(line)["kind"] for line in (folder / JOURNAL).open()] == ["start", "metrics", "finish"]
    assert tracker.run_id is None and tracker.unsent() == 3
    assert capfd.readouterr().err.count("tracking:") == 1


@pytest.mark.parametrize("how", BAD)
def test_a_bad_server_costs_a_deadline_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """One that hangs, drips, hangs up or errs is given up after one deadline, and named; the journal has everything."""
    monkeypatch.setattr(deadline, "CALL_SECONDS", 0.4)
    monkeypatch.setattr(client, "KNOCK_SECONDS", 0.4)
    parent, child = (Tracker(str(_folder(tmp_path, name)), "", "e") for name in ("parent", "child"))
    with bad_server(how) as url:
        parent, child = replace(parent, uri=url), replace(child, uri=url)
        started = time.monotonic()
        parent.start("n", {})
        child.start("c", {}, parent.as_parent())
        for one in (parent, child):
            one.metrics({"a": 1.0})
            one.finish()
        assert time.monotonic() - started < 3
    said = capfd.readouterr().err
    assert said.count("tracking:") == 1 and url in said and "flows sync" in said
    assert parent.unsent() == child.unsent() == 3


@pytest.mark.parametrize("how", ["hang", "drip", "close", "garbage"])
def test_a_recipe_of_a_bad_server_costs_a_deadline(how: str) -> None:
    """A recipe's URL is read within its time too, headers included; a health check never raises."""
    with bad_server(how) as url:
        with pytest.raises(RecipeError, match="cannot be fetched"):
            fetched(f"{url}/recipe.yaml", seconds=0.3)
        assert not Server("Prefect", [], f"{url}/health", {}, seconds=0.3).answers()


def test_an_upload_has_time_for_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What carries files has a deadline that grows with them; what was late does not bring a server back."""

    class Slow:
        def log_artifact(self, run_id: str, path: str) -> str:
            time.sleep(0.3)
            return "done"

        get_run = log_artifact

    monkeypatch.setattr(deadline, "CALL_SECONDS", 0.05)
    (tmp_path / "file").write_bytes(bytes(1000))
    slow = deadline.Bounded(Slow(), slowest=1000)
    assert slow.log_artifact("run", str(tmp_path / "file")) == "done"
    for call in (slow.get_run, deadline.Bounded(Slow()).log_artifact):
        with pytest.raises(RunError, match="no whole answer within"):
            call("run", str(tmp_path / "file"))


def test_a_password_in_the_address_is_shown_nowhere(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What is said and written when a server with credentials is away does not have the password."""
    folder = _folder(tmp_path)
    Tracker(str(folder), "http://me:hunter2@127.0.0.1:9", "e").start("n", {})
    written = "".join(path.read_text() for path in folder.iterdir())
    said = capfd.readouterr().err
    assert "tracking:" in said and "hunter2" not in said + written


def test_a_journal_that_cannot_be_written_sinks_nothing(tmp_path: Path, database: str) -> None:
    """Not even a folder that is gone stops a run from logging."""
    tracker = Tracker(str(tmp_path / "gone"), database, "e")
    tracker.start("n", {})
    tracker.metrics({"a": 1.0})
    assert tracker.run_id is None


def test_passwords_are_masked_and_relative_databases_resolved() -> None:
    """Nothing that is shown has a password; a relative SQLite path is the repository's."""
    assert masked("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert Path(resolve_uri("sqlite:///artifacts/x.db").removeprefix("sqlite:///")).is_absolute()
    assert resolve_uri("sqlite:////tmp/x.db") == "sqlite:////tmp/x.db"


def test_flatten_nested_recipes() -> None:
    """Mappings and lists of mappings become dotted names; empty values are left out."""
    assert flatten({"a": {"b": 1, "c": []}, "d": [{"e": 2}], "f": [1, 2], "g": None}) == {
        "a.b": 1, "d.0.e": 2, "f": [1, 2],
    }  # fmt: skip


def test_what_is_not_finite_is_left_out_and_breaks_nothing(tmp_path: Path, database: str) -> None:
    """The journal stays JSON for every reader, and MLflow, which would keep infinity as 1.8e308, gets numbers."""
    tracker = Tracker(str(_folder(tmp_path)), database, "tests")
    tracker.start("run", {})
    tracker.metrics({"a": math.nan, "b": math.inf, "c": 0.5})
    tracker.curve("train", [{"epoch": 1, "loss": math.nan}, {"epoch": 2, "loss": 0.25}, {"epoch": 3, "loss": None}])
    assert MlflowClient(database).get_run(str(tracker.run_id)).data.metrics == {"c": 0.5, "train/loss": 0.25}
    for line in (tmp_path / "run" / JOURNAL).read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_runs_that_missed_their_aim_are_compared_too(tmp_path: Path, database: str) -> None:
    """They failed, but have a file, a report and a verdict; those that failed without one, and live ones, have not."""
    ends = {"kept": "FINISHED", "missed": "FAILED", "broken": "FAILED", "alive": None}
    for name, end in ends.items():
        tracker = Tracker(str(_folder(tmp_path, name)), database, "tests")
        tracker.start(name, {"verdict": "aim missed: 5 points lost"} if name == "missed" else {})
        if end:
            tracker.finish(end)
    found = runs_of_experiment(database, "tests")
    names = {MlflowClient(database).get_run(one).info.run_name for one in found}
    assert names == {"kept", "missed"}
