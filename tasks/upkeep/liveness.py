"""Whether a run lives. Each holds a lease; one whose lease is dead is brought to an end in Prefect and in MLflow."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deepcompression.errors import RunError
from tasks.console import say
from tasks.machine.deadline import within
from tasks.secrets import masked
from tasks.storage import lease as leases
from tasks.storage.lease import Lease
from tasks.storage.places import Place
from tasks.tracking.client import terminate
from tasks.tracking.runs import STATE, Tracker

PREFIX = "run-"
ALIVE = "deep-compression.run.alive"
ALIVE_SECONDS = 20.0
ANSWER_SECONDS = 5.0
END_SECONDS, PATIENCE_SECONDS = 20.0, 3.0
IDENTITY = ("folder", "mlflow_run_id", "flow_run_id")


_open: set[Tracker] = set()  # of this process


@contextlib.contextmanager
def ending(tracker: Tracker) -> Iterator[None]:
    """Ends the MLflow run as the block ends, whatever happens: finished, failed, or killed."""
    status = "KILLED"
    _open.add(tracker)
    try:
        yield
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        tracker.finish(status)
        _open.discard(tracker)


def write_ends(status: str) -> None:
    """Writes the end of this process's runs into their journals; the next start, or `sync`, sends it."""
    for tracker in list(_open):
        tracker.note_end(status)


@contextlib.contextmanager
def living(place: Place, tracker: Tracker, flow_run_id: str | None) -> Iterator[None]:
    """Says, while the block runs, that the run of ``tracker`` lives, and what is to be ended if its process dies."""
    facts: dict[str, Any] = {
        "folder": tracker.folder,
        "tracking_uri": masked(tracker.uri),
        "experiment": tracker.experiment,
        "mlflow_run_id": tracker.run_id,
        "flow_run_id": flow_run_id,
    }
    key = f"{PREFIX}{Path(tracker.folder).name}"
    try:
        with leases.lease(place, key, facts=facts), _heard(flow_run_id):
            yield
    finally:
        if flow_run_id and not prefect_answers():  # how this run ends cannot be told there: the next start will
            leases.leave(place, key, facts)


@contextlib.contextmanager
def _heard(flow_run_id: str | None) -> Iterator[None]:
    """Tells Prefect's server now and then that the flow run lives, by an event of ours.

    Prefect's own heartbeats come as seldom as somebody's settings say; an automation that counted on them would end
    live runs.
    """
    from prefect.events import emit_event

    if not flow_run_id:
        yield
        return
    stop = threading.Event()

    def beat() -> None:
        while True:
            with contextlib.suppress(Exception):  # a server that is away
                emit_event(event=ALIVE, resource={"prefect.resource.id": f"prefect.flow-run.{flow_run_id}"})
            if stop.wait(ALIVE_SECONDS):
                return

    thread = threading.Thread(target=beat, daemon=True, name="run-heartbeat")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def live_runs(place: Place) -> list[Lease]:
    """The leases of runs that live."""
    return [one for one in leases.leases(place) if one.key.startswith(PREFIX) and one.alive]


def recover(place: Place, uri: str) -> list[str]:
    """Ends what runs that died without a word left as running. Live ones, whoever's, are never touched.

    A run is dead when its process on this machine is gone, or when, elsewhere, it was silent for ten minutes.

    Args:
        place: of the store that the runs share.
        uri: the tracking server, for records whose own address had a password.

    Returns:
        The names of those runs.
    """
    runs = [one for one in leases.leases(place) if one.key.startswith(PREFIX)]
    live = {str(one.facts.get(name)) for one in runs if one.alive for name in IDENTITY} - {"None", ""}
    ended: list[str] = []
    away: set[str] = set()
    for one in runs:
        if not one.alive:
            if not live & {str(one.facts.get(name)) for name in IDENTITY}:  # else it names what another run is
                _end(one, uri, away)
                ended.append(one.key.removeprefix(PREFIX))
            place.remove(one.name)
    if ended:
        say(f"ended in Prefect and MLflow, because their process is gone: {', '.join(sorted(ended))}")
    return ended


def prefect_answers(seconds: float = ANSWER_SECONDS) -> bool:
    """Whether Prefect's server does, and wholly, within so many seconds."""
    from prefect.client.orchestration import get_client

    def answers() -> bool:
        with get_client(sync_client=True) as client:
            return client.api_healthcheck() is None

    try:
        return within(seconds, answers)
    except RunError:
        return False


def _end(one: Lease, uri: str, away: set[str]) -> None:
    """Ends a dead run in both; a server that once kept us waiting in vain (then in ``away``) is not asked again."""
    for server, end in (("MLflow", lambda: _end_in_mlflow(one, uri)), ("Prefect", lambda: _end_in_prefect(one.facts))):
        started = time.monotonic()
        try:
            if server not in away:
                within(END_SECONDS, end)
        except Exception as error:  # whatever a server or its client throws: this run goes on
            away |= {server} if time.monotonic() - started > PATIENCE_SECONDS else set()
            logging.getLogger(__name__).debug("could not end a dead run", exc_info=error)


def _end_in_mlflow(one: Lease, uri: str) -> None:
    own, folder = str(one.facts.get("tracking_uri") or ""), str(one.facts.get("folder") or "")
    uri = uri if masked(uri) == own or "***" in own or "${" in own else own
    if Path(folder).name == one.key.removeprefix(PREFIX) and (Path(folder) / STATE).is_file():
        tracker = Tracker(folder, uri, str(one.facts.get("experiment")))
        if not tracker.finished():
            tracker.finish("KILLED")
        elif not tracker.offline:
            tracker.sync()  # its own last word, which it had no time to send
    elif one.facts.get("mlflow_run_id"):
        terminate(uri, str(one.facts["mlflow_run_id"]))


def _end_in_prefect(facts: Mapping[str, Any]) -> None:
    """The flow run and its task runs become Crashed; with that, Prefect frees their concurrency slots."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
    from prefect.states import Crashed

    flow_run_id = facts.get("flow_run_id")
    if not flow_run_id:
        return
    message = "Its process is gone: it was killed, or its machine went down. Start it again to go on from there."

    with get_client(sync_client=True) as client:
        if not _over(client.read_flow_run(flow_run_id)):
            client.set_flow_run_state(flow_run_id, Crashed(message=message), force=True)
        these = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
        for task_run in client.read_task_runs(flow_run_filter=these):
            if not _over(task_run):
                client.set_task_run_state(task_run.id, Crashed(message=message), force=True)


def _over(run: Any) -> bool:
    return run.state is not None and run.state.is_final()
