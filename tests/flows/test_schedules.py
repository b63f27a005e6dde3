from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import ask, free_port

from deepcompression.errors import RecipeError
from flows import schedules, servers
from flows.schedules import Schedule, load
from tasks.storage.lease import leases
from tasks.storage.places import place_at

ROOT = Path(__file__).resolve().parents[2]
Tiny = Callable[..., dict[str, Any]]
WRONG = [
    ({"cron": "0 3 * *"}, "five fields"),
    ({"interval": "soon"}, "90s, 30m"),
    ({"cron": "0 3 * * *", "interval": 5}, "exactly one"),
    ({}, "exactly one"),
    ({"cron": "0 3 * * *", "timezone": "Mars/Olympus"}, "Europe/Berlin"),
    ({"cron": "0 3 * * *", "overrides": {"stages.prune.densty": 0.1}}, "densty"),
    ({"cron": "0 3 * * *", "recipe": "conf/none.yaml"}, "none.yaml"),
    ({"cron": "0 3 * * *", "name": "../x"}, "name"),
    ({"cron": "0 3 * * *", "overrides": {"tracking.uri": "http://me:hunter2@host"}}, "write ${oc.env:NAME} in its"),
    ({"crom": "0 3 * * *"}, "did you mean 'cron'"),
]


@pytest.mark.parametrize(("changes", "part"), WRONG)
def test_a_wrong_schedule_is_one_line(tmp_path: Path, changes: dict[str, Any], part: str) -> None:
    """Nothing is registered that would only fail at three in the morning."""
    path = tmp_path / "s.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "recipe": "conf/digits.yaml", **changes}))
    with pytest.raises(RecipeError) as told:
        load(str(path))
    assert part in str(told.value) and "\n" not in str(told.value)


def test_shipped_schedules_are_right_and_become_deployments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cron, time zone, limit, and the flow's parameters reach Prefect as they are written."""
    monkeypatch.chdir(ROOT)
    for path in (ROOT / "conf" / "schedules").glob("*.yaml"):
        made = schedules.deployment(load(str(path)))
        assert made.parameters["recipe"].startswith("conf/") and made.entrypoint == "flows/compress.py:compress"
        assert made.schedules[0].schedule.timezone == "Europe/Berlin"
        assert made.concurrency_limit == 1 and str(made.concurrency_options.collision_strategy).endswith("CANCEL_NEW")


def test_intervals_are_read() -> None:
    """Seconds, minutes, hours, days."""
    for text, seconds in (("90s", 90), ("30m", 1800), ("6h", 21600), ("1d", 86400), (20, 20)):
        assert Schedule(name="s", recipe="r", interval=text).interval == seconds


def test_serving_without_a_server_is_one_line() -> None:
    """Prefect itself would only warn, and never run anything."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    environment["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    command = [sys.executable, "-m", "flows", "serve", "conf/schedules"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 1 and len(done.stderr.strip().splitlines()) == 1 and "make servers" in done.stderr


@pytest.fixture(scope="module")
def scheduling_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API URL of a real Prefect server with all its services: schedules, late runs, automations.

    It asks its database for work all the time, so it lives no longer than the tests of this file.
    """
    data = tmp_path_factory.mktemp("prefect-server")
    server = servers.prefect_server(data, port := free_port())
    own = {
        "PREFECT_HOME": str(data),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{data}/prefect.db",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_LOOP_SECONDS": "2",
    }
    server.environment = {**server.environment, **own}
    with servers.started(server, data / "log"):
        yield f"http://127.0.0.1:{port}/api"


@contextmanager
def _serving(path: Path, server: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """``python -m flows serve`` in a process group of its own."""
    environment = {**os.environ, "PREFECT_API_URL": server, "PREFECT_RUNNER_POLL_FREQUENCY": "1", **settings}
    environment["PREFECT_HOME"] = str(path.parent / "home")
    with (path.parent / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows", "serve", str(path)],
            cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        _kill_tree(process.pid)


def _kill_tree(pid: int) -> None:
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in processes:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=60)


def _flow_runs(server: str, name: str) -> list[dict[str, Any]]:
    wanted = {"deployments": {"name": {"any_": [name]}}, "sort": "EXPECTED_START_TIME_ASC"}
    return list(ask(f"{server}/flow_runs/filter", wanted))


def _paused(server: str, name: str) -> bool:
    return bool(ask(f"{server}/deployments/name/compress/{name}")["paused"])


def _until(what: Callable[[], Any], seconds: float = 200, log: Path | None = None) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = what()
        if found:
            return found
        time.sleep(0.3)
    raise AssertionError(f"nothing within {seconds} s; {log.read_text()[-3000:] if log else ''}")


def _write(tmp_path: Path, recipe: dict[str, Any], name: str, **changes: Any) -> Path:
    path = tmp_path / "schedule.yaml"
    path.write_text(yaml.safe_dump({"name": name, "recipe": recipe, "interval": 5, **changes}))
    return path


QUICK: dict[str, Any] = {"train": {"epochs": 1}, "stages": [{"stage": "prune", "density": 0.5}]}
LONG: dict[str, Any] = {
    "train": {"epochs": 400, "batch_size": 32},
    "stages": [{"stage": "prune", "density": 0.5}],
}


@pytest.mark.slow
def test_a_schedule_fires_and_what_was_missed_is_made_up_for_once(
    tiny: Tiny, tmp_path: Path, scheduling_server: str
) -> None:
    """Runs come by themselves; of those that were due while nobody served, one runs, the others are skipped."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Scheduled

    path = _write(tmp_path, tiny(**QUICK), "missed", interval="1d")
    log = tmp_path / "serve.log"
    with _serving(path, scheduling_server) as process:
        _until(lambda: _flow_runs(scheduling_server, "missed"), log=log)
        process.send_signal(signal.SIGSTOP)  # the machine sleeps
        with temporary_settings({PREFECT_API_URL: scheduling_server}), get_client(sync_client=True) as client:
            future = _flow_runs(scheduling_server, "missed")
            for days, one in enumerate(future[:3], 1):
                past = datetime.now(UTC) - timedelta(days=days)
                client.set_flow_run_state(one["id"], Scheduled(scheduled_time=past), force=True)
        process.send_signal(signal.SIGCONT)
        ids = {one["id"] for one in future[:3]}

        def over() -> bool:
            states = {one["state_name"] for one in _flow_runs(scheduling_server, "missed") if one["id"] in ids}
            return "Completed" in states and states <= {"Completed", "Skipped", "Cancelled"}

        _until(over, log=log)
    states = [one["state_name"] for one in _flow_runs(scheduling_server, "missed") if one["id"] in ids]
    assert states.count("Completed") == 1, states
    assert len(list(tmp_path.glob("runs/*/model.dcz"))) == 1
    assert f"{next(tmp_path.glob('runs/*/model.dcz'))}" in log.read_text() and " ended" in log.read_text()


@pytest.mark.slow
def test_what_is_served_says_that_it_failed_and_ends_in_order(
    tiny: Tiny, tmp_path: Path, scheduling_server: str
) -> None:
    """The log alone tells of a failed night; a service manager's SIGTERM pauses the schedule, without a warning."""
    weights = {**tiny(**QUICK)["model"], "weights": {"path": str(tmp_path / "none.pt")}}
    path, log = _write(tmp_path, tiny(**QUICK, model=weights), "served", interval=10), tmp_path / "serve.log"
    with _serving(path, scheduling_server) as process:
        _until(lambda: log.exists() and "none.pt" in log.read_text(), log=log)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    text = log.read_text()
    assert "served, " in text and " begins" in text and " failed: " in text
    assert "Warning" not in text and "Traceback" not in text
    assert _paused(scheduling_server, "served")


def _epochs(tmp_path: Path) -> int:
    import torch

    for path in tmp_path.glob("store/partial/*/checkpoint.pt"):
        try:
            return int(torch.load(path, weights_only=True)["epoch"])
        except (OSError, RuntimeError, EOFError):
            continue
    return 0


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_killed_scheduled_run_is_ended_and_the_next_goes_on(
    tiny: Tiny, tmp_path: Path, scheduling_server: str, how: signal.Signals
) -> None:
    """The flow's process dies in a training: no run stays Running, no slot stays taken, no epoch is lost."""
    name = f"killed-{how.name.lower()}"
    recipe = tiny(**LONG, name="k")
    path, log = _write(tmp_path, recipe, name), tmp_path / "serve.log"
    with _serving(path, scheduling_server):
        _until(lambda: _epochs(tmp_path) >= 3, log=log)
        before = _epochs(tmp_path)
        lease = next(one for one in leases(place_at(recipe["store"])) if one.key.startswith("run-"))
        os.kill(lease.facts["pid"], how)
        victim = lease.facts["flow_run_id"]
        _until(lambda: _state(scheduling_server, name, victim) in ("Crashed", "Failed"), log=log)
        # the next one got the slot, and goes on where the victim was
        _until(lambda: _running(scheduling_server, name, victim) and _epochs(tmp_path) >= before, log=log)
        _until(lambda: len(list(tmp_path.glob("runs/*/tracking.jsonl"))) >= 2, log=log)
        _until(lambda: '"KILLED"' in _journal(tmp_path, lease.facts["folder"]), log=log)
        assert _epochs(tmp_path) >= before


def _state(server: str, name: str, flow_run_id: str) -> str:
    return next(str(one["state_name"]) for one in _flow_runs(server, name) if one["id"] == flow_run_id)


def _running(server: str, name: str, not_this: str) -> bool:
    return any(one["state_name"] == "Running" and one["id"] != not_this for one in _flow_runs(server, name))


def _journal(tmp_path: Path, folder: str) -> str:
    return (Path(folder) / "tracking.jsonl").read_text()


def test_the_heartbeat_automation_is_registered_once(scheduling_server: str) -> None:
    """Runs that die with their machine are ended by the server; serving twice does not register it twice."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: scheduling_server}):
        schedules._watch_heartbeats()
        schedules._watch_heartbeats()
        with get_client(sync_client=True) as client:
            found = client.read_automations_by_name(schedules.ZOMBIES)
    assert len(found) == 1 and found[0].enabled


@pytest.mark.slow
def test_a_run_that_was_submitted_and_never_began_frees_its_slot(
    scheduling_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serving may stop between submitting a run and its start: ours becomes Crashed, another deployment's stays."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Pending

    @flow
    def nothing() -> None: ...

    monkeypatch.setattr(schedules, "NEVER_BEGUN", "never begun, of a test")
    monkeypatch.setattr(schedules, "PENDING_SECONDS", 10)
    with temporary_settings({PREFECT_API_URL: scheduling_server}), get_client(sync_client=True) as client:
        schedules._watch_heartbeats()
        time.sleep(2)  # the server's triggers learn of a new automation soon, not at once
        ours = client.create_flow_run(nothing, tags=[schedules.TAG], state=Pending())
        others = client.create_flow_run(nothing, tags=["somebody-else"], state=Pending())
        deadline = time.monotonic() + 90
        while client.read_flow_run(ours.id).state_name != "Crashed" and time.monotonic() < deadline:
            time.sleep(0.5)
        assert client.read_flow_run(ours.id).state_name == "Crashed"
        assert client.read_flow_run(others.id).state_name == "Pending"
