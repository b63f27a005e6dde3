"""prefect.yaml and what lies beside it, with a real server, a real work pool and a real worker."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from conftest import ask, free_port

from flows.servers import prefect_server as server_on
from flows.servers import started

ROOT = Path(__file__).resolve().parent.parent.parent
TEMPLATE = ROOT / "conf" / "kubernetes" / "job-template.json"
ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@contextlib.contextmanager
def _ended(home: Path) -> Iterator[None]:
    """Whatever has this PREFECT_HOME is gone afterwards; a worker's runs are not in the worker's process group."""
    try:
        yield
    finally:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PREFECT_HOME") == str(home) and process.pid != os.getpid():
                    process.kill()


def _deploy() -> None:
    words = [sys.executable, "-m", "prefect", "deploy", "--all", "--no-prompt"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def _start_worker(cwd: Path, log: Path) -> None:
    words = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "deep-compression", "--type", "process"]
    with log.open("wb") as output:
        subprocess.Popen(words, cwd=cwd, stdout=output, stderr=output, start_new_session=True)


def _exists(url: str) -> bool:
    try:
        return bool(ask(url))
    except urllib.error.HTTPError:
        return False


def _wait(done: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + 90
    while not done():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.3)


def _completed(api: str, deployment: str, parameters: dict[str, Any], log: Path) -> None:
    """A custom run, as Prefect's page asks for it, is Completed in the end."""
    once = {"idempotency_key": str(uuid.uuid4())}
    run = ask(f"{api}/deployments/{deployment}/create_flow_run", {"parameters": parameters, **once})

    def state() -> dict[str, Any]:
        return dict(ask(f"{api}/flow_runs/{run['id']}")["state"])

    _wait(lambda: state()["type"] in ENDS, log)
    assert state()["name"] == "Completed", f"{state()['message']}\n{log.read_text()}"


@pytest.mark.slow
def test_a_worker_runs_the_deployment(
    tmp_path: Path, tiny_in: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """prefect.yaml deploys as it stands; a worker elsewhere runs a recipe by path or as a mapping, to the same file."""
    home, log, port = tmp_path / "prefect", tmp_path / "worker.log", free_port()
    api, recipe = f"http://127.0.0.1:{port}/api", tiny_in(tmp_path, train={"epochs": 1})
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    for name in ("PREFECT_API_DATABASE_CONNECTION_URL", "DEEP_COMPRESSION_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": home, "API_URL": api, "WORKER_QUERY_SECONDS": 1}.items():
        monkeypatch.setenv(f"PREFECT_{name}", str(value))
    with started(server_on(tmp_path, port), tmp_path / "server.log"), _ended(home):
        pools = f"{api}/work_pools"
        template = json.loads(TEMPLATE.read_text())
        ask(f"{pools}/", {"name": "deep-compression-kubernetes", "type": "kubernetes", "base_job_template": template})
        _start_worker(tmp_path, log)
        _wait(lambda: _exists(f"{pools}/deep-compression"), log)
        _deploy()
        deployment = ask(f"{api}/deployments/name/compress/digits-process")["id"]
        by_path = {"recipe": str(tmp_path / "tiny.yaml"), "overrides": {"seed": 3}}
        for parameters in (by_path, {"recipe": {**recipe, "seed": 3}, "overrides": {}}):
            _completed(api, deployment, parameters, log)
    one, other = (tmp_path / "runs").glob("*/model.dcz")
    assert one.read_bytes() == other.read_bytes()


def test_placeholders_of_the_job_template_are_its_variables() -> None:
    """Prefect drops what a misspelt placeholder stands for without a word, and a variable nobody uses does nothing."""
    from prefect.utilities.templating import find_placeholders

    template = json.loads(TEMPLATE.read_text())
    assert {one.name for one in find_placeholders(template["job_configuration"])} == set(
        template["variables"]["properties"]
    )
