"""All of MLflow's runs (models: registry.py): written into the run's folder, then sent; a server away sinks nothing."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.markup import escape

from deepcompression.errors import RunError, StorageError, one_line
from tasks.console import say
from tasks.machine.deadline import SLOWEST
from tasks.secrets import hidden, know_passwords, masked
from tasks.storage.store import write_json
from tasks.tracking import journal
from tasks.tracking.client import client_of

JOURNAL = "tracking.jsonl"
STATE = "tracking.json"

PATIENT = SLOWEST / 10  # of `sync`, which somebody started to wait for it


# A run that has children: its "folder", for where that can be seen, and MLflow's "run_id", where a server has it.
Parent = dict[str, str | None]


@dataclass(frozen=True)
class Tracker:
    """One MLflow run, by the folder that keeps its journal. Cheap to make, safe to hand to any process."""

    folder: str
    uri: str
    experiment: str

    @property
    def run_id(self) -> str | None:
        """MLflow's id, or None while no server has taken the run."""
        return _state(self.folder).get("run_id")

    @property
    def page(self) -> str | None:
        """The run's page at an MLflow server, or None: no server took it, or a database without one."""
        state = _state(self.folder)
        if not self.uri.startswith("http") or "experiment_id" not in state:
            return None
        return f"{masked(self.uri).rstrip('/')}/#/experiments/{state['experiment_id']}/runs/{state['run_id']}"

    @property
    def place(self) -> str | None:
        """Where the run's page is at a server of a local database; None where no store has the run."""
        state = _state(self.folder)
        known = self.uri.startswith("sqlite:///") and {"experiment_id", "run_id"} <= set(state)
        return f"#/experiments/{state['experiment_id']}/runs/{state['run_id']}" if known else None

    @property
    def began(self) -> float | None:
        """When the run was opened, in seconds since 1970; None where it has no journal."""
        first = next((line for _, line in journal.lines(Path(self.folder) / JOURNAL)), None)
        return None if first is None or isinstance(first, str) else first["time"] / 1000

    @property
    def offline(self) -> bool:
        """Whether the server was given up for this run."""
        return bool(_state(self.folder).get("offline"))

    def start(self, name: str, tags: Mapping[str, str], parent: Parent | None = None) -> None:
        """Opens the run (a child of ``parent``'s, where given; what did not take the parent is not asked again)."""
        if parent and (reason := _state(str(parent["folder"])).get("offline")):
            with contextlib.suppress(StorageError):
                write_json(Path(self.folder) / STATE, {"offline": reason})
        self._log("start", name=name, tags=dict(tags), parent=dict(parent) if parent else None)

    def as_parent(self) -> Parent:
        """What a child run, anywhere, needs to know of this one."""
        return {"folder": self.folder, "run_id": self.run_id}

    def params(self, params: Mapping[str, Any]) -> None:
        """Parameters, nested mappings and lists flattened to dotted names."""
        self._log("params", values={_legal(k): masked(str(v))[:6000] for k, v in flatten(params).items()})

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Numbers at one step, sent in one call; what is not finite is left out, as MLflow has no place for it."""
        self._log("metrics", values=[[_legal(k), float(v), step] for k, v in values.items() if math.isfinite(v)])

    def curve(self, prefix: str, history: list[Mapping[str, Any]]) -> None:
        """What was measured after each epoch, as ``prefix/loss`` and so on, step = epoch; sent in one call."""
        rows = [
            [_legal(f"{prefix}/{name}"), float(value), int(row["epoch"])]
            for row in history
            for name, value in row.items()
            if name != "epoch" and isinstance(value, int | float) and math.isfinite(value)
        ]
        self._log("metrics", values=rows)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Text that leads elsewhere."""
        self._log("tags", values=dict(tags))

    def dataset(self, name: str, digest: str, source: Mapping[str, Any]) -> None:
        """What was learnt from: its factory, the digest of what that gave, and how it was called."""
        told = masked(json.dumps(source, sort_keys=True, default=str))[:10_000]
        self._log("dataset", name=masked(name), digest=digest[:8], source=told)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """A file of the run's own folder."""
        self._log("artifact", path=str(path.resolve().relative_to(Path(self.folder).resolve())), into=folder)

    def finish(self, status: str = "FINISHED") -> None:
        """Ends the run: FINISHED, FAILED or KILLED; then says where it can be looked at, or what was not sent."""
        self._log("finish", status=status)

    def note_end(self, status: str) -> None:
        """Writes the end into the journal, where it does not stand there yet, and sends nothing."""
        if not self.finished():
            with contextlib.suppress(OSError):
                self._write({"kind": "finish", "time": int(time.time() * 1000), "status": status})

    def finished(self) -> bool:
        """Whether the end of the run stands in its journal."""
        try:
            return '{"kind": "finish"' in (Path(self.folder) / JOURNAL).read_text(encoding="utf-8")
        except OSError:
            return False

    def unsent(self) -> int:
        """How many journal lines no server has."""
        return sum(not isinstance(line, str) for _, line in self._rest())

    def sync(self, theirs: bool = False) -> int:
        """Sends what a server that was away did not get, in order; returns how many journal lines that were.

        A line that was sent just before a process was killed may be sent again; it changes nothing. A damaged line, or
        one that names a file outside of the run's folder, is named and left out.

        Args:
            theirs: the folder came from another machine: the MLflow run that it names must be its own, and unfinished.

        Raises:
            RunError: the server is still away; nothing is lost, the next call goes on from there.
        """
        with FileLock(Path(self.folder) / ".sync.lock"):
            sent = 0
            try:
                if theirs:
                    self._check_continued()
                for number, line in self._rest():
                    if isinstance(line, str):
                        self._leave_out(number, line)
                    else:
                        self._send(line, again=True, number=number)
                        sent += 1
            except Exception as error:  # whatever a tracking server or its client throws
                raise RunError(
                    f"{masked(self.uri)} does not take {Path(self.folder).name}: {self._reason(error)}; start the "
                    "server and try again"
                ) from None
            state = _state(self.folder)
            if state.pop("offline", None) is not None:
                write_json(Path(self.folder) / STATE, state)
        return sent

    def _rest(self) -> Iterator[tuple[int, Mapping[str, Any] | str]]:
        return journal.lines(Path(self.folder) / JOURNAL, _sent(_state(self.folder)))

    def _leave_out(self, number: int, why: str) -> None:
        name = escape(Path(self.folder).name)
        say(f"[yellow]{name}:[/] line {number + 1} of {JOURNAL} is not sent: {_plain(why)}")
        write_json(Path(self.folder) / STATE, {**_state(self.folder), "sent": number + 1})

    def _check_continued(self) -> None:
        """Refuses to go on with an MLflow run that is somebody else's, or is finished."""
        run_id = _state(self.folder).get("run_id")
        if run_id is None:
            return
        first = next((line for _, line in journal.lines(Path(self.folder) / JOURNAL)), "")
        info = client_of(self.uri, PATIENT).get_run(str(run_id)).info
        if isinstance(first, str) or info.run_name != first.get("name") or info.status == "FINISHED":
            raise RunError(f"{STATE} names the MLflow run {str(run_id)[:40]!r}, which is not this run, or is finished")

    def _log(self, kind: str, **content: Any) -> None:
        line = {"kind": kind, "time": int(time.time() * 1000), **hidden(content)}
        try:
            self._write(line)
            if not self.offline:
                self._send(line)
        except Exception as error:  # whatever a tracking server, its client or the disk throws, the run goes on
            self._go_offline(error)

    def _write(self, line: Mapping[str, Any]) -> None:
        with (Path(self.folder) / JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _send(self, line: Mapping[str, Any], again: bool = False, number: int | None = None) -> None:
        client = client_of(self.uri, PATIENT if again else SLOWEST)
        state = _state(self.folder)
        if line["kind"] == "start":
            found = _started(client, self, line) if again else None
            state["run_id"] = found or _create(client, self, line)
            state["experiment_id"] = _experiment(client, self)
        elif "run_id" not in state:
            raise RunError(f"{JOURNAL} does not begin with the run's start")
        else:
            _replay(client, state["run_id"], line, Path(self.folder))
        sent = _sent(state) if number is None else number
        write_json(Path(self.folder) / STATE, {**state, "sent": sent + 1})

    def _go_offline(self, error: Exception) -> None:
        reason = self._reason(error)
        with contextlib.suppress(StorageError):
            write_json(Path(self.folder) / STATE, {**_state(self.folder), "offline": reason})
        logging.getLogger(__name__).debug("tracking failed", exc_info=error)
        say(
            f"[yellow]tracking:[/] {masked(self.uri)} does not take this run ({reason}); going on without it, "
            f"all of it is kept in {Path(self.folder) / JOURNAL}; later: python -m flows sync"
        )

    def _reason(self, error: Exception) -> str:
        know_passwords(self.uri)
        return masked(one_line(error))[:160] or type(error).__name__


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings and lists to dotted names; None and empty ones are left out."""
    if isinstance(value, Mapping):
        pairs = [(str(key), one) for key, one in value.items()]
    elif isinstance(value, list | tuple) and any(isinstance(one, Mapping | list) for one in value):
        pairs = [(str(index), one) for index, one in enumerate(value)]
    elif value is None or value in ([], ()):
        return {}
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, one in pairs:
        flat |= flatten(one, f"{prefix}.{key}" if prefix else key)
    return flat


def _legal(name: str) -> str:
    """MLflow allows letters, digits, and a few signs in names."""
    return re.sub(r"[^\w\-. /]", "_", masked(name))[:250]


def _create(client: Any, tracker: Tracker, line: Mapping[str, Any]) -> str:
    tags = dict(line["tags"])
    if line["parent"]:
        tags["mlflow.parentRunId"] = _parent_id(line["parent"], Path(tracker.folder))
    experiment = _experiment(client, tracker)
    run = client.create_run(experiment, start_time=line["time"], tags=tags, run_name=line["name"])
    return str(run.info.run_id)


def _parent_id(parent: Parent, folder: Path) -> str:
    """MLflow's id of a run's parent: known when the child began, or by now from the folder beside the child's."""
    where = str(parent["folder"])
    beside = str(folder.parent / Path(where).name)
    found = str(parent["run_id"] or _state(beside).get("run_id") or _state(where).get("run_id"))
    if not re.fullmatch("[0-9a-f]{32}", found):
        raise RunError(f"its parent {Path(where).name} is not there yet; sync that first")
    return found


def _started(client: Any, tracker: Tracker, line: Mapping[str, Any]) -> str | None:
    """The run of this name, if a process that was killed had opened it already: names of runs are unique."""
    query = f"attributes.run_name = '{line['name']}'"
    found = client.search_runs([_experiment(client, tracker)], query, max_results=1)
    return str(found[0].info.run_id) if found else None


def _experiment(client: Any, tracker: Tracker) -> str:
    found = client.get_experiment_by_name(tracker.experiment)
    if found is not None:
        return str(found.experiment_id)
    location = None
    if tracker.uri.startswith("sqlite:///"):
        location = (Path(tracker.uri.removeprefix("sqlite:///")).parent / "mlartifacts").resolve().as_uri()
    try:
        # Without this tag MLflow's pages show what concerns language models first.
        tags = {"mlflow.experimentKind": "custom_model_development"}
        return str(client.create_experiment(tracker.experiment, artifact_location=location, tags=tags))
    except Exception:  # another process made it in between
        found = client.get_experiment_by_name(tracker.experiment)
        if found is None:
            raise
        return str(found.experiment_id)


def _replay(client: Any, run_id: str, line: Mapping[str, Any], folder: Path) -> None:
    """Sends one journal line."""
    from mlflow.entities import Metric, Param, RunTag

    kind = line["kind"]
    if kind == "params":
        params = [Param(key, value) for key, value in line["values"].items()]
        for start in range(0, len(params), 100):
            client.log_batch(run_id, params=params[start : start + 100])
    elif kind == "metrics":
        metrics = [Metric(name, value, line["time"], step) for name, value, step in line["values"]]
        for start in range(0, len(metrics), 1000):
            client.log_batch(run_id, metrics=metrics[start : start + 1000])
    elif kind == "tags":
        client.log_batch(run_id, tags=[RunTag(key, value) for key, value in line["values"].items()])
    elif kind == "dataset":
        client.log_inputs(run_id, datasets=[_dataset(line)])
    elif kind == "artifact":
        client.log_artifact(run_id, str(journal.own_file(folder, line["path"])), line["into"])
    elif kind == "finish":
        client.set_terminated(run_id, line["status"], end_time=line["time"])


def _dataset(line: Mapping[str, Any]) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"factory": line["name"], "settings": line["source"]})
    found = Dataset(line["name"].rpartition(":")[2], line["digest"], "deep-compression", source)
    return DatasetInput(found, [InputTag("mlflow.data.context", "training, validation, test")])


def _state(folder: str) -> dict[str, Any]:
    try:
        state = json.loads((Path(folder) / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def _sent(state: Mapping[str, Any]) -> int:
    sent = state.get("sent", 0)
    return max(sent, 0) if isinstance(sent, int) else 0


def _plain(text: str) -> str:
    """Words that came from elsewhere, as they may stand in a terminal."""
    return escape("".join(one if one.isprintable() else "?" for one in text))
