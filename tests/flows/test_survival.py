"""Real processes and real servers, killed in the middle of a stage: what is left, and that the next start goes on."""

from __future__ import annotations

import contextlib
import html
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml
from bad_servers import Tap
from conftest import SESSION, ask, free_port, wait_for_epochs
from mlflow import MlflowClient

from flows import servers, upkeep
from flows.compress import compress
from tasks.storage.lease import leases
from tasks.storage.places import place_at
from tasks.tracking.runs import Tracker
from tasks.upkeep.liveness import living

ROOT = Path(__file__).resolve().parents[2]
Tiny = Callable[..., dict[str, Any]]
LONG: dict[str, Any] = {"train": {"epochs": 40, "batch_size": 64}, "stages": [{"stage": "prune", "density": 0.3}]}


def _start(words: list[str], **settings: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows", *words], cwd=ROOT, env={**os.environ, **settings}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def _finish(process: subprocess.Popen[str], seconds: float = 200) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


@pytest.fixture
def write(tiny: Tiny, tmp_path: Path) -> Callable[..., str]:
    """A recipe's path; everything it writes is in the test's folder."""

    def made(**changes: Any) -> str:
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny(**changes)))
        return str(tmp_path / "recipe.yaml")

    return made


def _mlflow(folder: Path, template: Path) -> servers.Server:
    folder.mkdir(exist_ok=True)
    if not (folder / "mlflow.db").exists():
        shutil.copy(template, folder / "mlflow.db")
    return servers.mlflow_server(folder, free_port())


def _kill(server: servers.Server) -> None:
    assert server.process is not None
    os.killpg(server.process.pid, signal.SIGKILL)
    server.process.wait()


@contextlib.contextmanager
def _after_epochs(store: Path, count: int, act: Callable[[], None]) -> Iterator[None]:
    """Acts, in a thread beside the block, once some checkpoint has seen so many epochs."""
    waiting = threading.Thread(target=lambda: (wait_for_epochs(store, count), act()))
    waiting.start()
    yield
    waiting.join()


@pytest.mark.slow
def test_mlflow_server_killed_in_a_stage_and_synced_later(
    tiny: Tiny, tmp_path: Path, mlflow_template: Path, prefect_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on and finishes; `sync` sends the rest once; the run in MLflow is whole, and finished."""
    server = _mlflow(tmp_path / "mlflow", mlflow_template)
    uri, places = server.health.removesuffix("/health"), (str(tmp_path / "runs"), str(tmp_path / "store"))
    with servers.started(server, tmp_path / "log"), _after_epochs(tmp_path / "store", 3, lambda: _kill(server)):
        summary = compress(tiny(**LONG, tracking={"uri": uri, "experiment": "e"}))
    assert isinstance(summary, dict)
    told = capsys.readouterr().err
    assert told.count("tracking:") == 1 and "flows sync" in told
    assert list(tmp_path.glob("store/unsent/*/tracking.jsonl"))
    (refused,) = upkeep.sync([], *places, None)
    assert "does not take" in refused and "\n" not in refused
    with servers.started(server, tmp_path / "log"):
        assert upkeep.sync([], *places, None) == [] and "records sent" in capsys.readouterr().err
        run = MlflowClient(uri).get_run(summary["mlflow_run_id"])
        assert run.info.status == "FINISHED" and run.data.metrics["file_bytes"] == summary["file_bytes"]
        names = {one.path for one in MlflowClient(uri).list_artifacts(summary["mlflow_run_id"])}
        assert {"model.dcz", "report.html", "recipe.yaml", "summary.json"} <= names
        assert upkeep.sync([], *places, None) == [] and "records sent" not in capsys.readouterr().err
        assert len(MlflowClient(uri).search_runs([run.info.experiment_id])) == 1
    assert not list(tmp_path.glob("store/unsent/*/*"))


def test_mlflow_server_away_at_the_start_and_the_folder_lost(tiny: Tiny, tmp_path: Path, prefect_server: str) -> None:
    """The file is made; what was to be logged is in the store too: `sync` sends it, without the run's folder."""
    away, there = "http://127.0.0.1:9", f"sqlite:///{tmp_path}/mlflow.db"
    recipe = tiny(train={"epochs": 1}, stages=[{"stage": "prune", "density": 0.5}], tracking={"uri": away})
    summary = compress(recipe)
    assert isinstance(summary, dict)
    assert Path(summary["file"]).is_file() and summary["mlflow_run_id"] is None
    kinds = [json.loads(line)["kind"] for line in (Path(summary["folder"]) / "tracking.jsonl").open()]
    assert kinds[0] == "start" and kinds[-1] == "finish" and kinds.count("artifact") == 8
    shutil.rmtree(tmp_path / "runs")
    places = (str(tmp_path / "runs"), str(tmp_path / "store"))
    (refused,) = upkeep.sync([], *places, None)
    assert f"names the tracking server '{away}'" in refused and "--tracking-uri" in refused
    assert upkeep.sync([], *places, there) == []
    client = MlflowClient(there)
    experiment = client.get_experiment_by_name("deep-compression")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 1 and runs[0].info.status == "FINISHED" and "ratio" in runs[0].data.metrics
    assert "model.dcz" in {one.path for one in client.list_artifacts(runs[0].info.run_id)}


@pytest.mark.slow
def test_prefect_server_killed_in_a_stage(write: Callable[..., str], tmp_path: Path) -> None:
    """All work is done and kept; with the server back, the same command ends in seconds, no run stays Running."""
    data = tmp_path / "prefect"
    data.mkdir()
    server = servers.prefect_server(data, free_port())
    database = f"sqlite+aiosqlite:///{data}/prefect.db"
    server.environment = {**server.environment, "PREFECT_API_DATABASE_CONNECTION_URL": database}
    url = server.health.removesuffix("/health")
    settings = {"PREFECT_API_URL": url, "PREFECT_CLIENT_MAX_RETRIES": "0"}
    recipe = write(**LONG)
    with servers.started(server, tmp_path / "log"):
        process = _start(["run", recipe, "--json"], **settings)
        wait_for_epochs(tmp_path / "store", 3, process)
        _kill(server)
        code, _, err = _finish(process)
        lines = err.strip().splitlines()
        assert code == 1 and "start the same command again" in lines[-1] and max(map(len, lines)) < 500, err
    assert list(tmp_path.glob("store/keys/*.json")) and list(tmp_path.glob("runs/*/model.dcz"))
    flow_run_id = next(iter(_runs(tmp_path))).facts["flow_run_id"]
    with servers.started(server, tmp_path / "log"):
        code, out, err = _finish(_start(["run", recipe, "--json"], **settings))
        assert code == 0 and "process is gone" in err, err
        assert _states(url, flow_run_id)[0] == "Crashed"
    assert json.loads(out)["reused"] == ["baseline", "prune", "encode"]
    journal = Path(json.loads(out)["folder"], "tracking.jsonl").read_text().splitlines()
    assert json.loads(journal[-1])["status"] == "FINISHED" and _runs(tmp_path) == []


@pytest.mark.slow
def test_prefect_server_hangs_at_the_end(write: Callable[..., str], tmp_path: Path, prefect_server: str) -> None:
    """The work is done when its server answers no more: table and exit code 0 within seconds, MLflow's run is over."""
    tap = Tap(int(prefect_server.split(":")[2].partition("/")[0]))
    recipe = write(train={"epochs": 1}, stages=[{"stage": "prune", "density": 0.5}])
    code = (
        "import sys; from flows import watchdog; watchdog.DONE_SECONDS = 4;"
        "from flows.__main__ import app; app(['run', sys.argv[1], '--json'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, recipe], cwd=ROOT, env={**os.environ, "PREFECT_API_URL": f"{tap.url}/api"},
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    _wait_until(lambda: bool(list(tmp_path.glob("runs/*/summary.json"))) or process.poll() is not None)
    tap.shut.set()
    started = time.monotonic()
    code_, out, err = _finish(process, 90)
    assert code_ == 0 and time.monotonic() - started < 40, err
    assert Path(json.loads(out)["file"]).exists() and "Prefect does not answer and is not waited for" in err, err
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    journal = Path(json.loads(out)["folder"], "tracking.jsonl").read_text().splitlines()
    assert json.loads(journal[-1])["status"] == "FINISHED" and client.get_run(json.loads(out)["mlflow_run_id"])


@contextlib.contextmanager
def _live_run(tmp_path: Path) -> Iterator[Tracker]:
    """A run of this process's, as Prefect, MLflow and the store know it."""
    from prefect import flow
    from prefect.client.orchestration import get_client
    from prefect.states import Running

    (tmp_path / "live").mkdir()
    tracker = Tracker(str(tmp_path / "live"), f"sqlite:///{tmp_path}/mlflow.db", "tests")
    tracker.start("live", {})
    with get_client(sync_client=True) as client:
        flow_run = client.create_flow_run(flow(lambda: None, name="live"), state=Running())
        with living(place_at(str(tmp_path / "store")), tracker, str(flow_run.id)):
            yield tracker
        assert client.read_flow_run(flow_run.id).state_name == "Running"
    assert MlflowClient(tracker.uri).get_run(str(tracker.run_id)).info.status == "RUNNING"


TRAININGS: dict[str, Any] = {
    "train": {"epochs": 20, "batch_size": 64},
    "data": {
        "factory": "deepcompression.data:digits",
        "validation": 0.15,
        "augment": {"factory": "deepcompression.data:shift"},
    },
    "stages": [
        {"stage": "prune", "density": 0.2, "gradual": {"epochs": 20, "batch_size": 64}},
        {"stage": "quantize", "train": {"epochs": 2}},
    ],
}


def test_a_killed_run_is_ended_everywhere_and_goes_on_to_the_same_bytes(
    write: Callable[..., str], tiny_in: Tiny, tmp_path: Path, prefect_server: str
) -> None:
    """SIGKILL in one training, SIGTERM in the next: the next start goes on from the last epoch, to the same file.

    It ends what was killed, Prefect's run and its tasks as Crashed, MLflow's as KILLED; a live run is left alone.
    """
    recipe = write(**TRAININGS)
    victim = _start(["run", recipe], PREFECT_API_URL=prefect_server)
    wait_for_epochs(tmp_path / "store", 3, victim)
    facts = next(iter(_runs(tmp_path))).facts
    victim.kill()
    victim.communicate()
    with _live_run(tmp_path):
        second = _start(["run", recipe], PREFECT_API_URL=prefect_server)
        _wait_until(lambda: bool(list(tmp_path.glob("store/keys/*.json"))) or second.poll() is not None)
        wait_for_epochs(tmp_path / "store", 2, second)
        second.terminate()
        code, _, err = _finish(second)
    assert code in (143, -signal.SIGKILL), err  # killed: on a machine too busy to end in order
    assert "process is gone" in err and err.count("tiny-") == 1, err
    assert "start the same command again" in err.strip().splitlines()[-1]
    assert not list(tmp_path.glob("runs/*/model.dcz")) and list(tmp_path.glob("store/partial/*/checkpoint.pt"))
    states = _states(prefect_server, facts["flow_run_id"])
    assert states and set(states) <= {"Crashed", "Completed"} and states[0] == "Crashed"
    assert MlflowClient(f"sqlite:///{tmp_path}/mlflow.db").get_run(facts["mlflow_run_id"]).info.status == "KILLED"
    (tmp_path / "whole").mkdir()
    done, whole = compress(recipe), compress(tiny_in(tmp_path / "whole", **TRAININGS))
    assert isinstance(done, dict) and isinstance(whole, dict)
    assert done["reused"] == ["baseline"] and whole["reused"] == []
    assert Path(done["file"]).read_bytes() == Path(whole["file"]).read_bytes()
    assert not list(tmp_path.glob("store/partial/*")) and not list(tmp_path.glob("store/leases/*"))


def _runs(tmp_path: Path) -> list[Any]:
    return [one for one in leases(place_at(str(tmp_path / "store"))) if one.key.startswith("run-")]


def _wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _states(server: str, flow_run_id: str) -> list[str]:
    """The flow run's state, then its task runs'."""
    flow = ask(f"{server}/flow_runs/{flow_run_id}")
    tasks = ask(f"{server}/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run_id]}}})
    return [flow["state_name"], *(one["state_name"] for one in tasks)]


@pytest.mark.slow
def test_two_processes_on_one_fresh_database(tmp_path: Path) -> None:
    """A fresh SQLite store is migrated by one of them; both log their run."""
    code = (
        "import sys; from tasks.tracking.runs import Tracker; t = Tracker(sys.argv[1], sys.argv[2], 'e');"
        "t.start(sys.argv[1][-1], {}); t.metrics({'a': 1.0}); t.finish(); sys.exit(t.unsent())"
    )
    processes = []
    for number in range(2):
        (tmp_path / f"run{number}").mkdir()
        words = [sys.executable, "-c", code, str(tmp_path / f"run{number}"), f"sqlite:///{tmp_path}/fresh.db"]
        processes.append(subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    for process in processes:
        _, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
    client = MlflowClient(f"sqlite:///{tmp_path}/fresh.db")
    experiment = client.get_experiment_by_name("e")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(one.info.run_name for one in runs) == ["0", "1"]
    assert {one.info.status for one in runs} == {"FINISHED"}


PRIVATE = """
import logging
import warnings

import torch
from prefect import get_run_logger

from deepcompression.data import digits
from deepcompression.models import digits_net


def net(**kwargs):
    assert kwargs["token"].startswith("alpha") and kwargs["quoted"].endswith("of-mine")
    return digits_net()


def data(**kwargs):
    assert kwargs["decoded"] == 8273645519280 + 3 and "lima" in kwargs["several"][0]
    return digits()


def step(model, batch, **kwargs):
    outputs = model(batch[0])
    return torch.nn.functional.cross_entropy(outputs, batch[1]), outputs, batch[1]


def clip(model, problem, seed, token, again):
    assert token == again
    print("printed", token)
    warnings.warn("warned " + token)
    logging.getLogger("tasks").warning("told %r", [token])
    get_run_logger().error("sent to Prefect: %s", token)


def bad(token, **kwargs):
    try:
        raise KeyError(token)
    except KeyError as error:
        raise OSError(2, f"cannot log in with {token!r}", token) from error
"""
SECRETS = {
    "MY_PASSWORD": "hunter2-in-the-address", "MY_A": "alpha-value-of-mine", "MY_C": "char\"lie's \\<value>&é of-mine",
    "MY_D": "delta-value-of-mine", "MY_E": "8273645519283", "MY_L": "lima-1st-line\nlima-2nd-line",
    "MY_M": "mike-value-of-mine", "MY_S": "sierra/value+of=mine",
}  # fmt: skip


def _forms(secret: str) -> set[str]:
    """As it is, and as it is escaped where things are written."""
    dumped = [json.dumps(secret), json.dumps(secret, ensure_ascii=False), repr(secret), json.dumps(json.dumps(secret))]
    escaped = [quote(secret), quote(secret, safe=""), html.escape(secret), *(one.strip("\"'") for one in dumped)]
    return {secret, *secret.splitlines(), *escaped}


def test_no_secret_of_a_recipe_stands_anywhere(write: Callable[..., str], tmp_path: Path, prefect_server: str) -> None:
    """Whatever way it takes, of a run that ends and of one that fails: searched for in every byte that they leave."""
    (tmp_path / "private.py").write_text(PRIVATE)
    kwargs = {
        "a": "${model.kwargs.quoted}", "several": ["${oc.env:MY_L}"], "created": "${oc.create:{x:${oc.env:MY_D}}}",
        "decoded": "${oc.decode:'${oc.env:MY_E}'}", "around": "pre-${oc.env:MY_M}-post", "b": "${step.kwargs.around}",
    }  # fmt: skip
    recipe = write(
        train={"epochs": 1},
        stages=[
            {"stage": "prune", "density": 0.5},
            {"stage": "private:clip", "token": "${oc.env:MY_S}", "again": "${stages.1.token}"},
        ],
        python_path=[str(tmp_path)],
        model={"factory": "private:net", "kwargs": {"token": "${oc.env:MY_A}", "quoted": '${oc.env:"MY_C"}'}},
        data={"factory": "private:data", "kwargs": "${step.kwargs}", "validation": 0.15},
        step={"factory": "private:step", "kwargs": kwargs},
    )
    bad = ["model.factory=private:bad", "tracking.uri=http://${oc.env:MY_PASSWORD}:typed-on-the-line@127.0.0.1:9"]
    code, *shown = _finish(_start(["run", recipe, "-v"], PREFECT_API_URL=prefect_server, **SECRETS))
    assert code == 0, shown
    code, *more = _finish(_start(["run", recipe, *bad], PREFECT_API_URL=prefect_server, **SECRETS))
    assert code == 2, more
    told = "".join([*shown, *more])
    server = Path(os.environ[SESSION]) / "prefect"  # with what other tests left there
    logged = b"sent to Prefect: ${oc.env:MY_S}"  # Prefect writes its log a moment later
    _wait_until(lambda: any(logged in path.read_bytes() for path in server.glob("prefect.db*")))
    assert "printed ${oc.env:MY_S}" in told and "cannot log in with '${oc.env:MY_A}'" in told
    places = [path for folder in (tmp_path, server) for path in folder.rglob("*") if path.is_file()]
    assert {"prefect.db", "mlflow.db", "tracking.jsonl", "report.html"} <= {path.name for path in places}
    contents = {str(path): path.read_bytes() for path in places}
    for form in {form for secret in [*SECRETS.values(), "typed-on-the-line"] for form in _forms(secret)}:
        assert form not in told
        assert [path for path, content in contents.items() if form.encode() in content] == [], form


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_full_and_read_only_disks_are_one_line_and_the_run_goes_on_later(
    write: Callable[..., str], tmp_path: Path, prefect_server: str
) -> None:
    """The run stops with one clear line, nothing is half-written, and the same command ends it later."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("this machine does not let tests mount a file system")
    try:
        recipe = write(train={"epochs": 2}, stages=[{"stage": "prune", "density": 0.5}], store=str(small / "store"))
        code, _, err = _finish(_start(["run", recipe, "-q"], PREFECT_API_URL=prefect_server))
        assert code == 1 and "disk is full" in err and len(err.strip().splitlines()) == 1, err
        assert not list(small.rglob("keys/*.json")) and not list(small.rglob("*.part"))
        subprocess.run(["mount", "-o", "remount,ro,size=20m", str(small)], check=True)
        code, _, err = _finish(_start(["run", recipe, "-q"], PREFECT_API_URL=prefect_server))
        assert code == 1 and "read-only" in err and len(err.strip().splitlines()) == 1, err
        subprocess.run(["mount", "-o", "remount,rw,size=20m", str(small)], check=True)
        code, _, err = _finish(_start(["run", recipe, "-q"], PREFECT_API_URL=prefect_server))
        assert code == 0, err
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


@pytest.mark.slow
def test_signals_of_servers_end_both(tmp_path: Path) -> None:
    """`make servers` starts both on loopback, starts one again that died, and SIGTERM leaves nothing running."""
    import psutil

    ports = [str(free_port()), str(free_port())]
    words = ["servers", "--prefect-port", ports[0], "--mlflow-port", ports[1], "--data", str(tmp_path)]
    own = {"PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{tmp_path}/prefect.db"}
    process = _start(words, **own)
    try:
        _wait_until(lambda: (tmp_path / "servers.json").exists() or process.poll() is not None)
        assert servers.running_prefect(tmp_path) == f"http://127.0.0.1:{ports[0]}/api"
        children = psutil.Process(process.pid).children(recursive=True)
        listening = [one.laddr for child in children for one in child.net_connections() if one.status == "LISTEN"]
        assert {str(one.port) for one in listening} >= set(ports) and {one.ip for one in listening} == {"127.0.0.1"}
        prefect = next(child for child in children if "prefect" in " ".join(child.cmdline()))
        prefect.send_signal(signal.SIGKILL)
        _wait_until(lambda: not prefect.is_running() or prefect.status() == psutil.STATUS_ZOMBIE)
        restarted = servers.prefect_server(tmp_path, int(ports[0]))
        _wait_until(restarted.answers)
        children = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGTERM)
        _finish(process, 60)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert process.returncode == 0 and not alive and servers.running_prefect(tmp_path) is None
