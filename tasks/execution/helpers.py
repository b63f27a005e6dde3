"""A stage that trains on several devices: the processes that work beside this one, each doing the same stage.

This process is the first one: it alone checkpoints, tells and makes the stage's result. The others rebuild the stage
from its plain keys, and end with this process, whatever becomes of it; one that dies ends the training, in one line.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcompression.errors import DeepCompressionError, InputError, RunError, one_line
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Stage
from tasks.secrets import masked

if TYPE_CHECKING:
    from deepcompression.training.team import Team

READY = "ready"
SECONDS = 5.0  # in which a process that has failed, or was told to, ends
ALONE = threading.Lock()  # a process is in one team at a time


class Helpers:
    """The other processes of one stage, started when it first trains; a context that ends them.

    Args:
        run: the run, of several devices.
        label: the stage's.
        settings: the stage's keys.
        source: the stage before, or None.
        module: in which the stage's ``Settings`` and ``work`` are.
        folder: in which the stage keeps its checkpoint.
    """

    def __init__(
        self, run: Run, label: str, settings: Stage, source: Reference | None, module: str, folder: Path
    ) -> None:
        self.run, self.folder = run, folder
        self._request = {
            "run": {one.name: getattr(run, one.name) for one in fields(run) if one.name != "tracker"},
            "label": label,
            "settings": settings,
            "source": source,
            "module": module,
            "folder": str(folder),
        }
        self._others: list[subprocess.Popen[str]] = []
        self._errors: list[Any] = []
        self._team: Team | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Helpers:
        return self

    def __exit__(self, *_: object) -> None:
        for other in self._others:
            other.kill()
            other.wait()
        with contextlib.suppress(Exception):  # the others are gone: what is left of the team may say so
            self._open.close()

    @contextlib.contextmanager
    def training(self) -> Iterator[Team]:
        """This process's team for a training, each process with its part of the threads.

        Raises:
            RunError: another process died, or failed where this one did not.
            InputError: the same, by what the user gave.
        """
        import torch

        threads = torch.get_num_threads()
        try:
            team = self._team or self._start(max(1, threads // self.run.devices))
            torch.set_num_threads(max(1, threads // self.run.devices))
            yield team
        except DeepCompressionError:
            raise
        except Exception as error:
            if told := self._told():
                raise told from None
            raise error
        finally:
            torch.set_num_threads(threads)

    def _start(self, threads: int) -> Team:
        from deepcompression.training.team import joined, library

        library()
        self._open.enter_context(ALONE)
        scratch = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="devices-")))
        kind, count = self.run.compute().resolved().type, self.run.devices
        for rank in range(1, count):
            told = {"rank": rank, "count": count, "kind": kind, "threads": threads, "place": str(scratch / "place")}
            self._launch(json.dumps({**self._request, **told}, default=_plain), scratch / f"{rank}.err")
        for other in self._others:
            assert other.stdout
            if other.stdout.readline().strip() != READY:
                raise self._told() or RunError("devices: a process ended before it trained")
        self._team = self._open.enter_context(joined(0, count, scratch / "place", kind, self.run.strategy))
        if kind == "cuda":
            threading.Thread(target=self._watch, daemon=True).start()
        return self._team

    def _launch(self, request: str, errors: Path) -> None:
        path = os.pathsep.join(one or str(Path.cwd()) for one in sys.path)
        stderr = self._open.enter_context(errors.open("w+", encoding="utf-8"))
        other = subprocess.Popen(
            [sys.executable, "-m", "tasks.execution.helper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        self._others.append(other)
        self._errors.append(stderr)
        assert other.stdin
        with contextlib.suppress(BrokenPipeError):  # it is dead already, which is told when it should be ready
            other.stdin.write(request + "\n")
            other.stdin.flush()

    def _watch(self) -> None:
        """Where a device waits for a process that is dead (gloo's connections tell of it themselves)."""
        import torch

        for other in self._others:
            if other.wait() and torch.distributed.is_initialized():
                torch.distributed.group.WORLD.abort()

    def _told(self) -> DeepCompressionError | None:
        """Why another process ended, if one did."""
        for number, (other, errors) in enumerate(zip(self._others, self._errors, strict=True), 2):
            with contextlib.suppress(subprocess.TimeoutExpired):
                if code := other.wait(SECONDS):
                    errors.seek(0)
                    return _error(number, self.run.devices, code, errors.read())
        return None


def _error(number: int, count: int, code: int, text: str) -> DeepCompressionError:
    last = (masked(text).strip().splitlines() or ["{}"])[-1]
    with contextlib.suppress(ValueError):
        if said := json.loads(last):
            kind = InputError if said["input"] else RunError
            return kind(f"devices: process {number} of {count}: {said['text']}")
    how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
    why = "" if last == "{}" else f" ({last[:200]})"
    return RunError(
        f"devices: process {number} of {count} ended {how}{why}, and the training with it; start again to go on from "
        "its last epoch"
    )


def failure(error: BaseException) -> str:
    """What a process says last, for the first one to tell."""
    known = isinstance(error, DeepCompressionError)
    text = one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"
    return json.dumps({"input": isinstance(error, InputError), "text": text})


def _plain(value: Any) -> Any:
    """Parts of a recipe, and references, as JSON has them."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Reference):
        return {one.name: getattr(value, one.name) for one in fields(value)}
    return dict(value) if hasattr(value, "keys") else list(value)
