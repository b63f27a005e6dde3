"""Who runs a sweep's trials: processes of this machine, or the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from deepcompression.errors import AimMissed, RunError
from flows.recipe.schema import Recipe
from tasks.execution.specs import specs_in
from tasks.root import CODE, ROOT

if TYPE_CHECKING:
    from tasks.tracking.runs import Parent

LIVES = 3  # how often a trial may lose its process before it counts as failed
ANSWERS = 20  # seconds in which a cluster must
LARGEST_CODE = 50 * 10**6  # bytes sent to each worker
KEPT = ("file_bytes", "dense_bytes", "ratio", "metric", "baseline", "final", "folder", "mlflow_run_id", "reused")
OF_EXPORTS = ("target", "file", "bytes", "metric", "latency_ms", "times_as_fast", "latency_how", "warnings", "error")


class Died(Exception):
    """The process that ran a trial died each time."""


class Crew(Protocol):
    """Somebody who runs functions elsewhere; so many at once."""

    size: int

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """As ``concurrent.futures``; the future raises ``Died`` where no process survived the work."""


def run_trial(raw: dict[str, Any], changes: Mapping[str, Any], parent: Parent) -> dict[str, Any]:
    """One run, in a worker; the part of its summary that a sweep needs, or ``{"error": ...}``. Never raises."""
    from tasks import console, secrets

    console.quiet()
    try:
        from flows.compress import compress

        started = time.perf_counter()
        with secrets.terminal():
            summary: dict[str, Any] = compress(secrets.aside(raw), secrets.aside(changes), parent)
    except AimMissed as missed:
        summary = missed.summary
    except Exception as error:  # whatever a trial's model or data throws: the sweep goes on
        return {"error": secrets.masked(f"{type(error).__name__}: {' '.join(str(error).split())}")}
    kept = {name: summary[name] for name in KEPT}
    exports = [{name: one[name] for name in OF_EXPORTS if name in one} for one in summary.get("exports") or []]
    kept |= {"exports": exports} if exports else {}
    return {**kept, "verdict": summary["verdict"], "seconds": round(time.perf_counter() - started, 2)}


# ---------------------------------------------------------------- this machine


@contextlib.contextmanager
def local(workers: int) -> Iterator[Crew]:
    """Processes of this machine. They share its Prefect server, and end when this process ends, however it ends."""
    crew = _Pool(workers, _environment())
    try:
        yield crew
    finally:
        crew.close()


class _Pool:
    """A process pool that outlives its processes: what a killed one was doing is done again."""

    def __init__(self, size: int, environment: Mapping[str, str]) -> None:
        self.size, self.environment = size, dict(environment)
        self.lock = threading.Lock()
        self.pool = self._new()

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Runs ``work`` in a process of the pool."""
        outer: Future[Any] = Future()
        self._try(outer, LIVES, work, arguments)
        return outer

    def close(self) -> None:
        """Ends all processes now."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()

    def _try(self, outer: Future[Any], lives: int, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        with self.lock:
            pool = self.pool
            try:
                inner = pool.submit(work, *arguments)
            except BrokenProcessPool:
                self.pool = pool = self._new()
                inner = pool.submit(work, *arguments)

        def over(done: Future[Any]) -> None:
            error = None if done.cancelled() else done.exception()
            if done.cancelled():
                outer.cancel()
            elif isinstance(error, BrokenProcessPool):
                if lives > 1:
                    self._try(outer, lives - 1, work, arguments)
                else:
                    outer.set_exception(Died(f"its process died {LIVES} times (killed, or out of memory)"))
            elif error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(done.result())

        inner.add_done_callback(over)

    def _new(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(
            self.size, mp_context=context, initializer=_begin, initargs=(os.getpid(), self.environment)
        )


def _begin(parent: int, environment: Mapping[str, str]) -> None:
    """A worker's start: the parent's settings; and when the parent is gone, so is the worker."""
    import signal

    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers

    def follow() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _environment() -> dict[str, str]:
    """The Prefect server that this process talks to, also where that is its own temporary one."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        url = str(client.api_url)
    return {"PREFECT_API_URL": url.rstrip("/")} if url.startswith("http") else {}


# ---------------------------------------------------------------- Dask


@contextlib.contextmanager
def on_dask(address: str | None, workers: int, parsed: Recipe) -> Iterator[Crew]:
    """A Dask cluster: an existing one, which gets the code that it needs, or one of ``workers`` processes here.

    Raises:
        RunError: Dask is not installed; nobody answers; a worker has other versions, named in one line.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise RunError("runner: dask needs the package distributed: pip install distributed") from None
    with contextlib.ExitStack() as stack:
        if address is None:
            os.environ["PYTHONPATH"] = os.pathsep.join([str(CODE), os.environ.get("PYTHONPATH", "")])
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                host="127.0.0.1",
                dashboard_address=None,
                silence_logs="ERROR",
                env=_environment(),
            )
            stack.enter_context(cluster)
        try:
            client = stack.enter_context(Client(address or cluster, timeout=ANSWERS, set_as_default=False))
        except (OSError, TimeoutError) as error:
            raise RunError(
                f"dask.address {address}: no scheduler answers there ({' '.join(str(error).split())})"
            ) from None
        _same_versions(client)
        if address is not None:
            _send_code(client, parsed)
        yield _Dask(client, workers)


class _Dask:
    """Dask's own executor; a worker that dies is replaced by its nanny, its trial is done again elsewhere."""

    def __init__(self, client: Any, size: int) -> None:
        self.size = size
        self.executor = client.get_executor(pure=False, retries=0)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Runs ``work`` on a worker."""
        from distributed.scheduler import KilledWorker

        outer: Future[Any] = Future()

        def over(done: Future[Any]) -> None:
            error = done.exception()
            if isinstance(error, KilledWorker):
                outer.set_exception(Died("the workers that ran it died (killed, or out of memory)"))
            elif error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(done.result())

        self.executor.submit(_call(work.__module__, work.__name__, arguments)).add_done_callback(over)
        return outer


def _versions() -> Callable[[], dict[str, str]]:
    """Tells what must be the same on every worker, for results to be the same and for code to run at all.

    A function in a function: Dask sends it whole, not by a name that the other side would have to import.
    """

    def versions() -> dict[str, str]:
        from importlib import metadata

        found = {"python": ".".join(map(str, sys.version_info[:2]))}
        for package in ("torch", "numpy", "prefect", "mlflow", "pydantic", "omegaconf", "safetensors", "dahuffman"):
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                found[package] = "missing"
        return found

    return versions


def _call(module: str, name: str, arguments: tuple[Any, ...]) -> Callable[[], Any]:
    """Calls a function by its name: the worker can import it, the scheduler in between cannot."""

    def call() -> Any:
        from importlib import import_module

        return getattr(import_module(module), name)(*arguments)

    return call


def _same_versions(client: Any) -> None:
    own = _versions()()
    try:
        client.wait_for_workers(1, timeout=ANSWERS)
    except TimeoutError:
        raise RunError("the Dask cluster has no worker; start some: dask worker ADDRESS") from None
    answers = client.run(_versions())
    for worker, theirs in sorted(answers.items()):
        other = [f"{name} {theirs[name]} (here {own[name]})" for name in own if theirs.get(name) != own[name]]
        if other:
            raise RunError(
                f"Dask worker {worker} has {', '.join(other)}; install the same there: pip install -c constraints.txt"
            )


def _send_code(client: Any, parsed: Recipe) -> None:
    """Every worker, those that come later too, gets this repository's packages and the user's."""
    packed = _packed([CODE / name for name in ("deepcompression", "tasks", "flows")] + _users(parsed))
    client.register_plugin(_plugin(packed))


def _plugin(packed: bytes) -> Any:
    from distributed.diagnostics.plugin import WorkerPlugin

    class Code(WorkerPlugin):
        """Unpacks code below the worker's own folder and puts it first on its path, and on its children's."""

        name = "deep-compression-code"
        idempotent = False

        def setup(self, worker: Any) -> None:
            """Once a worker."""
            folder = Path(worker.local_directory) / "deep-compression"
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                archive.extractall(folder)
            sys.path.insert(0, str(folder))
            os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
            os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")
            os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")

    return Code()


def _users(parsed: Recipe) -> list[Path]:
    """The packages of ``python_path`` whose callables the recipe names."""
    tops = {spec.partition(":")[0].partition(".")[0] for spec in specs_in(parsed.model_dump(mode="json"))}
    folders = [ROOT / one for one in parsed.python_path]
    found = [folder / top for folder in folders for top in sorted(tops)]
    found += [folder / f"{top}.py" for folder in folders for top in sorted(tops)]
    return [path for path in found if path.exists()]


def _packed(paths: list[Path]) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for path in paths:
            inside = sorted(path.rglob("*")) if path.is_dir() else [path]
            for one in inside:
                if one.is_file() and "__pycache__" not in one.parts:
                    packed.write(one, one.relative_to(path.parent))
    if archive.tell() > LARGEST_CODE:
        raise RunError(
            f"the code for Dask's workers is {archive.tell() / 1e6:.0f} MB, expected at most {LARGEST_CODE / 1e6:.0f}: "
            f"{', '.join(str(path) for path in paths)}; keep data out of python_path's packages"
        )
    return archive.getvalue()
