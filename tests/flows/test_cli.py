"""The command line as people and schedulers use it: processes, exit codes, signals."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from conftest import wait_for_epochs

from deepcompression.errors import DivergedError, RecipeError, together
from flows import process, watchdog
from flows.compress import compress
from flows.verbs import running

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


def test_table_and_path_close_a_run(tiny_run: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Without --json, stdout has the table of stages, both test results and the file's path."""
    running.tell(tiny_run["summary"], False)
    out = capsys.readouterr().out
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


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (DivergedError("baseline: the loss became nan"), 1, "error: baseline: the loss became nan"),
        (RecipeError("recipe: no stages"), 2, "error: recipe: no stages"),
        (
            ModuleNotFoundError("No module named 'omegaconf'", name="omegaconf"),
            2,
            "error: python -m flows needs omegaconf: pip install 'deep-compression[flow]'",
        ),
        (
            ModuleNotFoundError("No module named 'x'", name="x"),
            1,
            "error: ModuleNotFoundError: No module named 'x' (run again with -v for the traceback)",
        ),
        (OSError("a\nb"), 1, "error: OSError: a b (run again with -v for the traceback)"),
        (KeyboardInterrupt(), 130, f"stopped: interrupted; {watchdog.AGAIN}"),
        (ValueError("Error calling function: KeyboardInterrupt: "), 130, f"stopped: interrupted; {watchdog.AGAIN}"),
        (watchdog.Terminated(), 143, f"stopped: terminated; {watchdog.AGAIN}"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_stops_a_command_is_one_line_and_an_exit_code(
    error: BaseException, code: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whose fault it was is told by the code; what a signal stopped goes on later."""
    monkeypatch.setattr(process, "_settings", lambda verbose: None)
    monkeypatch.setattr(watchdog, "leave_soon", lambda code: None)
    with pytest.raises(typer.Exit) as stopped, process.guarded(False, False):
        raise error
    assert stopped.value.exit_code == code and capsys.readouterr().err == f"{line}\n"


def test_packages_that_a_refusal_sends_to_the_extra_are_the_extra_s() -> None:
    """What pyproject.toml lists for [flow], itself and by [torch], is what `fail` knows by the names of imports."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    listed = {
        re.split(r"[^\w-]", one)[0].replace("scikit-learn", "sklearn") for one in extras["flow"] + extras["torch"]
    }
    assert listed - {"deep-compression"} == process.FLOW


def test_several_mistakes_are_a_line_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What else is wrong with a recipe is told with the first."""
    monkeypatch.setattr(process, "_settings", lambda verbose: None)
    monkeypatch.setattr(watchdog, "leave_soon", lambda code: None)
    with pytest.raises(typer.Exit) as stopped, process.guarded(False, False):
        raise together([RecipeError("r.yaml:3: a"), RecipeError("r.yaml:7: b")])
    assert stopped.value.exit_code == 2 and capsys.readouterr().err == "error: r.yaml:3: a\nerror: r.yaml:7: b\n"


def test_both_names_of_the_command_say_themselves(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """-h and --version, a mistyped verb in one line; messages name the command that was typed."""
    from flows.__main__ import main

    for words, code, part in (
        (["--version"], 0, "deep-compression 0."),
        (["-h"], 0, "evaluate"),
        (["rnu"], 2, "'run'"),
    ):
        monkeypatch.setattr(sys, "argv", ["/x/flows/__main__.py", *words])
        with pytest.raises(SystemExit) as stopped:
            main()
        told = "".join(capsys.readouterr())
        assert stopped.value.code == code and part in told and "Traceback" not in told
    assert process.printable("later: python -m flows sync") == "later: python -m flows sync"
    monkeypatch.setattr(sys, "argv", ["/venv/bin/deep-compression"])
    assert process.printable("later: python -m flows sync") == "later: deep-compression sync"


def test_help_teaches() -> None:
    """--help shows how overrides look and which verbs there are."""
    code, out, _ = _run(["run", "--help"])
    assert code == 0 and "stages.prune.density" in out and "--json" in out
    assert "run" in _run(["--help"])[1]


@pytest.mark.slow
def test_two_runs_of_one_recipe_at_once_do_the_work_once(
    write: Callable[..., Path], tmp_path: Path, prefect_server: str
) -> None:
    """The second, of another process, waits for the first and reuses what it made; both end in the same file."""
    recipe = str(write(train={"epochs": 40}, stages=[{"stage": "prune", "density": 0.5}]))
    process = _start(["run", recipe, "--json"], env=_environment(prefect_server))
    wait_for_epochs(tmp_path / "store", 1, process)
    second = compress(recipe)
    out, err = process.communicate(timeout=900)
    assert process.returncode == 0 and isinstance(second, dict), err
    first = json.loads(out)
    assert Path(first["file"]).read_bytes() == Path(second["file"]).read_bytes()
    made = [(one["cached"], other["cached"]) for one, other in zip(first["stages"], second["stages"], strict=True)]
    assert made[0] == (False, True) and all(one != other for one, other in made)


def test_orphaned_temporary_servers_are_ended_and_others_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A server whose run was killed hard goes at the next start; one with a parent, or another database, stays."""
    import psutil

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
        process.end_orphans()
        _, alive = psutil.wait_procs([ours], timeout=60)
        assert not alive and other.is_running() and child.poll() is None
    finally:
        child.kill()
        other.kill()
