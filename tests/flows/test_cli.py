"""The command line as people and schedulers use it: processes, exit codes, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import wait_for_epochs

ROOT = Path(__file__).resolve().parents[2]
Tiny = Callable[..., dict[str, Any]]


@pytest.fixture
def write(tiny: Tiny, tmp_path: Path) -> Callable[..., Path]:
    """Writes a tiny recipe to a file."""

    def recipe(name: str = "recipe.yaml", **changes: Any) -> Path:
        path = tmp_path / name
        path.write_text(yaml.safe_dump(tiny(**changes)))
        return path

    return recipe


def _start(words: Sequence[str], **more: Any) -> subprocess.Popen[str]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    return subprocess.Popen([sys.executable, "-m", "flows", *words], **{**pipes, **more})


def _run(words: Sequence[str], **more: Any) -> tuple[int, str, str]:
    process = _start(words, **more)
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


def _environment(server: str) -> dict[str, str]:
    return {**os.environ, "PREFECT_API_URL": server}


def test_run_without_any_server(write: Callable[..., Path], tmp_path: Path) -> None:
    """As a new user runs it, Prefect's own temporary server included: exit 0, JSON alone on stdout, a quiet stderr."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    environment["PREFECT_API_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{tmp_path}/prefect.db"
    recipe = write(train={"epochs": 1}, stages=[{"stage": "prune", "density": 0.5}])
    code, out, err = _run(["run", str(recipe), "seed=4", "--json"], env=environment)
    assert code == 0, err
    summary = json.loads(out)
    assert summary["seed"] == 4 and Path(summary["file"]).stat().st_size == summary["file_bytes"]
    lines = err.strip().splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["baseline", "prune", "encode"], err
    assert "\x1b" not in err


def test_table_and_path_close_a_run(write: Callable[..., Path], prefect_server: str) -> None:
    """Without --json, stdout has the table of stages, both test results and the file's path."""
    recipe = write(train={"epochs": 1}, stages=[{"stage": "share", "bits": 3}])
    code, out, _ = _run(["run", str(recipe), "-q"], env=_environment(prefect_server))
    assert code == 0
    assert all(part in out for part in ("baseline", "share", "encode", "smaller", "errors in 360", "model.dcz"))


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run", "no.yaml"], "no.yaml"),
        (["run", "conf/digits.yaml", "sed=1"], "'seed'"),
        (["run", "conf/digits.yaml", "seed"], "key=value"),
        (["run", "conf/digits.yaml", "stages.prune.density=2"], "stages.0.density"),
    ],
)
def test_wrong_input_is_one_line_and_exit_2(words: list[str], part: str) -> None:
    """No traceback, no server started, the key named."""
    code, out, err = _run(words)
    assert code == 2 and out == "" and len(err.strip().splitlines()) == 1 and part in err


def test_wrong_names_found_in_the_run_are_one_line_too(write: Callable[..., Path], prefect_server: str) -> None:
    """Errors that come up inside Prefect reach the user without its traceback."""
    recipe = write(data={"factory": "deepcompression.data:mnist", "kwargs": {"root": "/no/such/folder"}})
    code, _, err = _run(["run", str(recipe), "-q"], env=_environment(prefect_server))
    assert code == 2 and len(err.strip().splitlines()) == 1 and "/no/such/folder" in err


def test_diverged_run_is_exit_1(write: Callable[..., Path], prefect_server: str) -> None:
    """What is not the input's fault is another exit code, still one line."""
    recipe = write(train={"epochs": 1, "lr": 1e9})
    code, _, err = _run(["run", str(recipe), "-q"], env=_environment(prefect_server))
    assert code == 1 and len(err.strip().splitlines()) == 1 and "loss became" in err


def test_help_teaches() -> None:
    """--help shows how overrides look and which verbs there are."""
    code, out, _ = _run(["run", "--help"])
    assert code == 0 and "stages.prune.density" in out and "--json" in out
    assert "run" in _run(["--help"])[1]


LONG = {
    "train": {"epochs": 30, "batch_size": 64},
    "data": {
        "factory": "deepcompression.data:digits",
        "validation": 0.15,
        "augment": {"factory": "deepcompression.data:shift"},
    },
    "stages": [
        {"stage": "prune", "density": 0.2, "gradual": {"epochs": 4, "batch_size": 64}},
        {"stage": "quantize", "train": {"epochs": 2}},
    ],
}


def test_killed_run_goes_on_and_ends_in_the_same_bytes(
    tiny_in: Tiny, write: Callable[..., Path], tmp_path: Path, prefect_server: str
) -> None:
    """Killed in every way while it trains, a run goes on from its last epoch; its file is an uninterrupted run's."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump(tiny_in(tmp_path / "whole", **LONG)))
    environment = _environment(prefect_server)
    whole = _start(["run", str(tmp_path / "whole.yaml"), "--json"], env=environment)
    words = ["run", str(write(**LONG)), "--json"]
    for how, epochs in ((signal.SIGKILL, 3), (signal.SIGTERM, 9), (signal.SIGINT, 15)):
        process = _start(words, env=environment, start_new_session=True)
        wait_for_epochs(tmp_path / "store", epochs, process)
        process.send_signal(how)
        _, err = process.communicate(timeout=900)
        assert process.returncode not in (0, 2), err
        if how != signal.SIGKILL:
            assert process.returncode in (128 + how, -signal.SIGKILL)  # killed: on a machine too busy to end in order
            assert "start the same command again" in err.strip().splitlines()[-1]
        assert not list(tmp_path.glob("runs/*/model.dcz")) and list(tmp_path.glob("store/partial/*/checkpoint.pt"))
    code, out, err = _run(words, env=environment)
    assert code == 0, err
    uninterrupted, err = whole.communicate(timeout=900)
    assert whole.returncode == 0, err
    assert Path(json.loads(out)["file"]).read_bytes() == Path(json.loads(uninterrupted)["file"]).read_bytes()
    assert not list(tmp_path.glob("store/partial/*")) and not list(tmp_path.glob("store/leases/*"))


def test_two_runs_of_one_recipe_at_once_do_the_work_once(write: Callable[..., Path], prefect_server: str) -> None:
    """The second waits for the first and reuses what it made; both end in the same file."""
    recipe = write(train={"epochs": 10}, stages=[{"stage": "prune", "density": 0.5}])
    processes = [_start(["run", str(recipe), "--json"], env=_environment(prefect_server)) for _ in range(2)]
    summaries = []
    for process in processes:
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        summaries.append(json.loads(out))
    assert Path(summaries[0]["file"]).read_bytes() == Path(summaries[1]["file"]).read_bytes()
    trained = [summary["stages"][0]["cached"] for summary in summaries]
    assert sorted(trained) == [False, True]


def test_orphaned_temporary_servers_are_ended_and_others_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server whose run was killed hard goes at the next start; one with a parent, or another database, stays."""
    import psutil

    from flows.__main__ import _end_orphans

    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "ours")
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)", "prefect.server.api.server:create_app"]
    spawn = f"import subprocess; print(subprocess.Popen({sleeper!r}, stdout=subprocess.DEVNULL).pid)"

    def orphan(database: str) -> psutil.Process:
        environment = {**os.environ, "PREFECT_API_DATABASE_CONNECTION_URL": database, "PREFECT__SERVER_EPHEMERAL": "1"}
        pid = subprocess.run(
            [sys.executable, "-c", spawn], env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout
        return psutil.Process(int(pid))

    child = subprocess.Popen(sleeper)
    ours, other = orphan("ours"), orphan("theirs")
    try:
        _end_orphans()
        _, alive = psutil.wait_procs([ours], timeout=60)
        assert not alive and other.is_running() and child.poll() is None
    finally:
        child.kill()
        other.kill()
