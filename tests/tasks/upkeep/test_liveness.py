from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.machine import process
from tasks.storage.places import Place, place_at
from tasks.upkeep import liveness

GONE = 2**31 - 1


def _run(place: Place, name: str, alive: bool, **facts: Any) -> None:
    ours = process.whoami()
    content = {**ours, **({} if alive else {"pid": GONE}), "token": name, "folder": f"/runs/{name}", **facts}
    place.write(f"leases/run-{name}.0.json", json.dumps(content).encode())


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What recover would have ended in Prefect."""
    found: list[str] = []
    monkeypatch.setattr(liveness, "_end_in_mlflow", lambda *_: None)
    monkeypatch.setattr(liveness, "_end_in_prefect", lambda facts: found.append(str(facts.get("flow_run_id"))))
    return found


def test_a_dead_lease_that_names_a_live_run_ends_nothing(tmp_path: Path, ended: list[str]) -> None:
    """Whoever writes leases cannot have a live run ended by naming its ids or its folder in a dead one."""
    place = place_at(str(tmp_path))
    _run(place, "live", True, flow_run_id="f", mlflow_run_id="m")
    _run(place, "forged-1", False, flow_run_id="f")
    _run(place, "forged-2", False, mlflow_run_id="m", flow_run_id="other")
    _run(place, "forged-3", False, folder="/runs/live", flow_run_id="other")
    _run(place, "dead", False, flow_run_id="g", mlflow_run_id=None)
    assert liveness.recover(place, "http://127.0.0.1:9") == ["dead"] and ended == ["g"]
    assert [one.key for one in liveness.live_runs(place)] == ["run-live"]


def test_a_server_that_is_away_is_asked_once(tmp_path: Path, ended: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten runs died: a tracking server that hangs costs the next start one deadline, not ten."""
    asked = []

    def hangs(*_: object) -> None:
        asked.append(1)
        raise RuntimeError("no whole answer")

    monkeypatch.setattr(liveness, "_end_in_mlflow", hangs)
    monkeypatch.setattr(liveness, "PATIENCE_SECONDS", 0.0)
    place = place_at(str(tmp_path))
    for number in range(10):
        _run(place, f"dead-{number}", False, flow_run_id=str(number))
    assert len(liveness.recover(place, "http://127.0.0.1:9")) == 10
    assert len(asked) == 1 and len(ended) == 10 and not list(tmp_path.glob("leases/*"))
