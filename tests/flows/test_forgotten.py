"""Runs that are deleted go everywhere, and what must stay stays."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import forgotten
from flows.forgotten import forget
from tasks.registry import models
from tasks.storage.store import file_digest
from tasks.tracking import client

DAY = 86_400
FLOW_RUN = "0a0b0c0d-0000-4000-8000-00000000000{}"


def _left(home: Path, name: str, days: float, flow_run: int) -> Path:
    """What a finished run has left, so many days ago."""
    folder = home / name
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "x", "tracking": {"uri": "sqlite:///x.db"}}))
    (folder / "tracking.json").write_text(json.dumps({"run_id": f"id-{name}", "experiment_id": "1", "sent": 10}))
    (folder / "tracking.jsonl").write_text(
        json.dumps({"kind": "start", "name": name, "tags": {"prefect.flow_run_id": FLOW_RUN.format(flow_run)}}) + "\n"
    )
    (folder / "model.dcz").write_bytes(name.encode())
    for path in folder.iterdir():
        os.utime(path, (time.time() - days * DAY,) * 2)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What servers were asked to delete."""
    told: list[str] = []
    monkeypatch.setattr(client, "forget", lambda uri, run_id: told.append(run_id))
    monkeypatch.setattr(forgotten, "_delete_flow_run", told.append)
    monkeypatch.setattr(forgotten.Tracker, "unsent", lambda self: int("unsent" in self.folder))
    monkeypatch.setattr(models, "champion_files", lambda uri: frozenset())
    return told


def test_old_runs_go_from_folder_mlflow_and_prefect(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """New ones, a champion's and what MLflow has not got stay; a flow run goes with the last of its runs."""
    runs = tmp_path / "runs"
    for name, days, flow_run in (
        ("old", 40, 1),
        ("seed-a", 40, 2),
        ("seed-b", 2, 2),
        ("best", 40, 3),
        ("unsent", 40, 4),
    ):
        _left(runs, name, days, flow_run)
    champion = frozenset([file_digest(runs / "best" / "model.dcz")])
    monkeypatch.setattr(models, "champion_files", lambda uri: champion)

    def gone(dry_run: bool) -> Any:
        return forget(
            str(tmp_path / "store"), str(runs), "30d", "sqlite:///x.db", contextlib.nullcontext, dry_run=dry_run
        )

    assert gone(dry_run=True) == [] and asked == [] and len(list(runs.iterdir())) == 5
    said = capsys.readouterr().err
    assert "would delete old" in said and "1 a champion's" in said and "1 not sent to MLflow yet" in said
    assert gone(dry_run=False) == []
    assert sorted(one.name for one in runs.iterdir()) == ["best", "seed-b", "unsent"]
    assert sorted(asked) == [FLOW_RUN.format(1), "id-old", "id-seed-a"]


def test_a_server_that_is_away_keeps_the_folder(
    tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is half deleted: the same command does it when the server is back."""

    def away(*_: str) -> None:
        raise OSError("nobody answers")

    monkeypatch.setattr(forgotten, "_delete_flow_run", away)
    folder = _left(tmp_path / "runs", "old", 40, 1)
    (line,) = forget(str(tmp_path), str(tmp_path / "runs"), "30d", "x", contextlib.nullcontext, dry_run=False)
    assert "old" in line and folder.is_dir() and asked == []
