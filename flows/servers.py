"""Both servers, Prefect's and MLflow's, on this machine: loopback only, data in artifacts/, restarted if they die."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

from rich.markup import escape

from deepcompression.errors import RunError
from tasks.console import say
from tasks.machine.deadline import within
from tasks.machine.environment import opener
from tasks.machine.process import LARGEST_NOTE, lives, mapping_of, whoami
from tasks.root import ROOT
from tasks.storage.store import write_json
from tasks.tracking.client import resolve_uri

START_SECONDS = 120
RESTARTS = 5  # within a minute: then something is wrong that a restart does not mend


@dataclass
class Server:
    """One server process: how it is started, where it answers, and within how many seconds."""

    name: str
    command: list[str]
    health: str
    environment: Mapping[str, str]
    seconds: float = 3.0
    process: subprocess.Popen[bytes] | None = None
    starts: list[float] = field(default_factory=list)

    def start(self, log: Path | None = None) -> None:
        """Starts the process; what it prints goes to ``log``, or else to where this process prints."""
        self.starts = [one for one in self.starts if time.monotonic() - one < 60] + [time.monotonic()]
        with contextlib.nullcontext() if log is None else log.open("ab") as output:
            self.process = subprocess.Popen(
                self.command,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )

    def answers(self) -> bool:
        """Whether its health check does."""
        try:
            within(self.seconds, opener(self.health).open, self.health, timeout=2).close()
        except (OSError, ValueError, RunError, HTTPException):
            return False
        return True

    def tell_to_stop(self) -> None:
        """Asks the process to end; does not wait."""
        if self.process is not None:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGTERM)

    def stop(self) -> None:
        """Ends the process and its children."""
        if self.process is None:
            return
        for how, seconds in ((signal.SIGTERM, 10), (signal.SIGKILL, 5)):
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
                return


def prefect_server(data: Path, port: int) -> Server:
    """Prefect on loopback; its database is the one that runs without a server use too."""
    url = f"http://127.0.0.1:{port}/api"
    database = os.environ.get("PREFECT_API_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{data}/prefect.db")
    settings = {
        "PREFECT_API_DATABASE_CONNECTION_URL": database,
        "PREFECT_UI_API_URL": url,
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "DO_NOT_TRACK": "1",
    }
    start = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    return Server("Prefect", start, f"{url}/health", settings)


def temporary_prefect() -> Server:
    """Prefect on loopback for one command: without pages, blocks and schedules; ``artifacts/prefect.db`` as always.

    Prefect would start the same by itself, but not before the command waits for it, and only after it has imported all
    of the server into the command too.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    settings = {
        "PREFECT_UI_ENABLED": "0",
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "0",
        "PREFECT__SERVER_EPHEMERAL": "1",
        "PREFECT__SERVER_FINAL": "1",
    }
    start = [sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"]
    options = ["--host", "127.0.0.1", "--port", port, "--log-level", "error", "--lifespan", "on"]
    return Server("Prefect", [*start, *options], f"http://127.0.0.1:{port}/api/health", settings)


@contextlib.contextmanager
def temporary() -> Iterator[None]:
    """Starts a Prefect server that lives as long as this process; it answers after the block, not yet in it.

    Raises:
        RunError: it does not come up; what it printed says why.
    """
    server = temporary_prefect()
    with alone_on_fresh(os.environ.get("PREFECT_API_DATABASE_CONNECTION_URL", "")):
        server.start()
        atexit.register(server.stop)
        os.environ["PREFECT_API_URL"] = server.health.removesuffix("/health")
        os.environ["PREFECT_UI_ENABLED"] = "0"  # nothing leads to pages that it does not have
        if "prefect.context" in sys.modules:  # it has read its settings
            from prefect.context import refresh_global_settings_context

            refresh_global_settings_context()
        try:
            yield
        except BaseException:  # it ends by itself, once it has come up; nobody waits for that
            atexit.unregister(server.stop)
            server.tell_to_stop()
            raise
        _wait(server)


def unconfigured() -> bool:
    """Whether nothing here says where a Prefect server is: no variable, no profile, no file of settings. Then
    Prefect, whose import takes a second, need not be asked."""
    if any(name.startswith(("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_SERVER_E")) for name in _set_by_user()):
        return False
    home = Path(os.environ.get("PREFECT_HOME") or Path.home() / ".prefect")
    files = (home / "profiles.toml", Path("prefect.toml"), Path(".env"), Path("pyproject.toml"))
    return not any(one.exists() and "prefect" in _text(one).lower() for one in files[1:]) and not files[0].exists()


def _set_by_user() -> list[str]:
    """Names of variables, but for the time that our own server has to start."""
    return [name for name in os.environ if not name.endswith("STARTUP_TIMEOUT_SECONDS")]


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return "prefect"
    return text if path.name != "pyproject.toml" else text if "[tool.prefect" in text else ""


def has_database() -> bool:
    """Whether the database of the Prefect server that ``temporary`` starts is there."""
    url = os.environ.get("PREFECT_API_DATABASE_CONNECTION_URL", "")
    return not url.startswith("sqlite") or Path(url.partition(":///")[2]).exists()


@contextlib.contextmanager
def alone_on_fresh(url: str) -> Iterator[None]:
    """While it lasts, no other process is in such a block with a database that is not there yet: servers that make one
    together die of each other's migration. With one that is there, it only waits until it has been made.

    Args:
        url: of the database; only SQLite is a file, and only where its folder exists.
    """
    from filelock import FileLock

    database = Path(url.partition(":///")[2])
    with contextlib.ExitStack() as held:
        if url.startswith("sqlite") and database.parent.is_dir():
            held.enter_context(FileLock(f"{database}.lock"))
        if database.exists():
            held.close()
        yield


def mlflow_server(data: Path, port: int, uri: str | None = None) -> Server:
    """MLflow on loopback; its database is the one that runs log to. One worker: half a gigabyte instead of three."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", uri or f"sqlite:///{data}/mlflow.db", "--artifacts-destination", f"{data}/mlartifacts",
    ]  # fmt: skip
    settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return Server("MLflow", command, f"http://127.0.0.1:{port}/health", settings)


def run(data: Path, prefect_port: int, mlflow_port: int) -> None:
    """Starts both, says where to click, restarts one that dies, and ends both when interrupted.

    Raises:
        RunError: a port is taken, or a server does not come up; its log is named.
    """
    data.mkdir(parents=True, exist_ok=True)
    servers = [prefect_server(data, prefect_port), mlflow_server(data, mlflow_port, _database(data))]
    for one in servers:
        if one.answers():
            raise RunError(f"something answers at {one.health} already; stop it, or choose another port (--help)")
    note = data / "servers.json"
    try:
        for one in servers:
            one.start(_log(data, one))
        for one in servers:
            _wait(one, _log(data, one))
        api = f"http://127.0.0.1:{prefect_port}/api"
        write_json(note, {**whoami(), "prefect_api_url": api})
        _tell(data, prefect_port, mlflow_port)
        while True:
            time.sleep(1)
            _keep(servers, data)
    finally:
        note.unlink(missing_ok=True)
        for one in servers:
            one.stop()


def _database(data: Path) -> str:
    """Migrated once here: two processes that open a fresh database together corrupt it."""
    from tasks.tracking.client import client_of

    uri = resolve_uri(f"sqlite:///{data.resolve()}/mlflow.db")
    client_of(uri)
    return uri


def _wait(server: Server, log: Path | None = None) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.answers():
        died = server.process is not None and server.process.poll() is not None
        if died or time.monotonic() > deadline:
            raise RunError(f"{server.name}'s server does not come up; see {log or 'above, or run with -v'}")
        time.sleep(0.1)


def _keep(servers: list[Server], data: Path) -> None:
    for one in servers:
        if one.process is not None and one.process.poll() is not None:
            if len(one.starts) > RESTARTS:
                raise RunError(f"{one.name}'s server died {len(one.starts)} times in a minute; see {_log(data, one)}")
            say(f"[yellow]{one.name}'s server died (exit code {one.process.returncode}); starting it again[/]")
            one.start(_log(data, one))


def _log(data: Path, server: Server) -> Path:
    return data / f"{server.name.lower()}-server.log"


def _tell(data: Path, prefect_port: int, mlflow_port: int) -> None:
    prefect, mlflow = f"http://127.0.0.1:{prefect_port}", f"http://127.0.0.1:{mlflow_port}"
    say(f"both servers are up, on this machine only; Ctrl-C ends them, their data stays in {escape(str(data))}")
    for name, page, what in (
        ("Prefect", f"{prefect}/runs", "flow runs, tasks, artifacts"),
        ("", f"{prefect}/deployments", "schedules; Custom run"),
        ("MLflow", f"{mlflow}/#/experiments", "runs: tick some, Compare"),
        ("", f"{mlflow}/#/models", "promoted models"),
    ):
        say(f"  {name:<8}  {page:<36}  {what}")
    here = data == ROOT / "artifacts"
    say("runs started from this clone use this Prefect server by themselves; elsewhere:" if here else "to use it:")
    say(f"  export PREFECT_API_URL={prefect}/api")


def running_prefect(data: Path) -> str | None:
    """The URL of the Prefect server that ``make servers`` runs from this clone, if it lives."""
    try:
        with (data / "servers.json").open("rb") as file:
            noted = mapping_of(file.read(LARGEST_NOTE + 1)) or {}
    except OSError:
        return None
    url = noted.get("prefect_api_url")
    return url if lives(noted) and isinstance(url, str) and url.startswith("http://127.0.0.1:") else None


@contextlib.contextmanager
def started(server: Server, log: Path) -> Iterator[Server]:
    """One server while a block runs."""
    server.start(log)
    try:
        _wait(server, log)
        yield server
    finally:
        server.stop()
