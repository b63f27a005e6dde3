"""What tests of the workflow share: one Prefect server, one finished run to look at, a recipe that takes seconds."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from filelock import FileLock
from forked import Verifier

os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
# Tests run side by side: threads that wait for each other on taken cores make small operations ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same bytes everywhere, in forks too, are those of the CPU. test_cuda.py is for GPUs, and asked for by itself.
if "DEEPCOMPRESSION_TEST_CUDA" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

ROOT = Path(__file__).resolve().parent.parent
SESSION = "DEEP_COMPRESSION_TESTS"  # the folder that all workers of a session share

# A test that imports something large the first time, on a machine that others use too, is not a slow function.
# The tests of every change try the same examples each time; `make test-all` looks for new ones.
hypothesis.settings.register_profile("every-change", deadline=None, derandomize=True)
hypothesis.settings.register_profile("searching", deadline=None)
hypothesis.settings.load_profile("every-change")


def pytest_configure(config: pytest.Config) -> None:
    """The process that starts the session, with its workers or without, makes the folder that they share."""
    if not hasattr(config, "workerinput"):
        os.environ[SESSION] = tempfile.mkdtemp(prefix="deep-compression-tests-")
        Path(os.environ[SESSION], "session.pid").write_text(str(os.getpid()))


def pytest_unconfigure(config: pytest.Config) -> None:
    """And removes it, with the servers that note their process group there."""
    if hasattr(config, "workerinput") or SESSION not in os.environ:
        return
    folder = Path(os.environ.pop(SESSION))
    for note in folder.glob("*.group"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(note.read_text()), signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def once(name: str, make: Callable[[Path], Any]) -> Any:
    """What ``make`` returned when the first worker of this session asked for ``name``; it had a folder of its own.

    Who gets it looks at it, and changes neither it nor what lies in the folder.
    """
    folder = Path(os.environ[SESSION]) / name
    with FileLock(f"{folder}.lock"):
        told = folder / "made.pickle"
        if not told.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed to make it
            folder.mkdir()
            made = make(folder)
            told.write_bytes(pickle.dumps(made))
        return pickle.loads(told.read_bytes())


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No secret of another test is known, and none of this test is afterwards."""
    import logging

    from tasks import secrets

    monkeypatch.setattr(secrets, "_known", secrets._Known())
    before = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(before)


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    """The URL of the session's one Prefect server; flows of this process and of its children use it.

    What flows of this process verify is verified in forked processes, which need not import anything.
    """
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.stages import verify

    url, verifier = once("prefect", _prefect_server), Verifier()
    with temporary_settings({PREFECT_API_URL: url}), pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "_started", verifier)
        yield url
    verifier.close()


FOLLOWING = """
import os, runpy, sys, threading, time
import psutil
session = psutil.Process(int(sys.argv.pop(1)))
def follow():
    while session.is_running() and session.status() != psutil.STATUS_ZOMBIE:
        time.sleep(1)
    os._exit(1)
threading.Thread(target=follow, daemon=True).start()
runpy.run_module(sys.argv.pop(1), run_name="__main__")
"""


def _prefect_server(folder: Path) -> str:
    """A real server in a process group of its own, on a database of its own, as a run would start it for itself."""
    from flows import servers

    server = servers.temporary_prefect()
    session = (folder.parent / "session.pid").read_text()
    server.command = [sys.executable, "-c", FOLLOWING, session, *server.command[2:]]  # of a killed session, it ends too
    own = {
        "PREFECT_HOME": str(folder),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db",
    }
    server.environment = {**server.environment, **own}
    server.start(folder / "log")
    assert server.process is not None
    Path(f"{folder}.group").write_text(str(server.process.pid))
    servers._wait(server, folder / "log")
    return server.health.removesuffix("/health")


@pytest.fixture(scope="session")
def mlflow_template() -> Path:
    """A migrated, empty MLflow database: migrating takes seconds, copying does not."""
    return Path(once("mlflow", _migrated))


def _migrated(folder: Path) -> str:
    from tasks.tracking.runs import client_of

    path = folder / "template.db"
    client_of(f"sqlite:///{path}")
    return str(path)


def free_port() -> int:
    """A port that nobody listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, content: dict[str, Any] | None = None) -> Any:
    """The JSON that an API answers; a server that is busy for now (503: another holds SQLite's lock) is asked again."""
    import urllib.error
    import urllib.request

    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def wait_for_epochs(store: Path, count: int, process: subprocess.Popen[str] | None = None) -> None:
    """Until some checkpoint in the store has seen ``count`` epochs."""
    import torch

    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        for path in store.glob("partial/*/checkpoint.pt"):
            try:
                if torch.load(path, weights_only=True)["epoch"] >= count:
                    return
            except (OSError, RuntimeError, EOFError):
                continue
        time.sleep(0.02)
    raise AssertionError(f"no checkpoint with {count} epochs; exit code {process and process.poll()}")


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory, mlflow_template: Path) -> Iterator[str]:
    """The URL of a real MLflow server on loopback."""
    from flows import servers

    data = tmp_path_factory.mktemp("mlflow-server")
    (data / "mlflow.db").write_bytes(mlflow_template.read_bytes())
    with servers.started(servers.mlflow_server(data, port := free_port()), data / "log"):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    """A real S3 service (moto's) on loopback; processes started from here find it through their environment."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield settings["AWS_ENDPOINT_URL"]
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()


@pytest.fixture
def s3(s3_server: str) -> str:
    """The URL of a fresh, empty bucket."""
    import uuid

    import fsspec

    bucket = f"test-{uuid.uuid4().hex[:12]}"
    fsspec.filesystem("s3").mkdir(bucket)
    return f"s3://{bucket}"


Tiny = Callable[..., dict[str, Any]]


@pytest.fixture(scope="session")
def tiny_in(mlflow_template: Path) -> Callable[..., dict[str, Any]]:
    """A whole recipe on digits in a few seconds, everything it writes below the folder given first.

    Keyword arguments replace top-level keys.
    """

    def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
        database = folder / "mlflow.db"
        if not database.exists():
            database.write_bytes(mlflow_template.read_bytes())
        return {
            "name": "tiny",
            "threads": 1,
            "device": "cpu",
            "model": {"factory": "deepcompression.models:digits_net"},
            "data": {"factory": "deepcompression.data:digits", "validation": 0.15},
            "train": {"epochs": 6, "batch_size": 64, "lr": 2e-3},
            "stages": [
                {"stage": "prune", "density": 0.3},
                {"stage": "finetune", "epochs": 2, "batch_size": 64, "lr": 1e-3},
                {"stage": "share", "bits": 4},
                {"stage": "quantize", "train": {"epochs": 1}, "codebook": "float16", "rest": "float16"},
                {"stage": "encode"},
            ],
            "store": str(folder / "store"),
            "runs": str(folder / "runs"),
            "tracking": {"uri": f"sqlite:///{database}", "experiment": "tests"},
            **changes,
        }

    return recipe


@pytest.fixture(scope="session")
def tiny_run(tiny_in: Callable[..., dict[str, Any]], prefect_server: str) -> dict[str, Any]:
    """One finished run of the tiny recipe for all who look at one: ``recipe``, ``summary``, ``run``, ``references``."""

    def make(folder: Path) -> dict[str, Any]:
        from flows import compress as flow
        from flows import summary as summaries

        made: dict[str, Any] = {"recipe": tiny_in(folder)}
        summary_of = summaries.summary_of

        def catching(run: Any, references: Any, *more: Any) -> dict[str, Any]:
            made.update(run=run, references=list(references))
            return summary_of(run, references, *more)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(flow, "summary_of", catching)
            made["summary"] = flow.compress(made["recipe"])
        return made

    found: dict[str, Any] = once("tiny-run", make)
    return found


@pytest.fixture
def tiny(tmp_path: Path, tiny_in: Callable[..., dict[str, Any]]) -> Tiny:
    """`tiny_in` the test's own folder."""
    return lambda **changes: tiny_in(tmp_path, **changes)
