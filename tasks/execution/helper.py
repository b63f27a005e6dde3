"""Another process of a stage that trains on several devices: `python -m tasks.execution.helper`, started by the first.

It gets the stage as a line of JSON, does its work, and keeps none of it. It ends when the first one does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import TypeAdapter

from tasks.execution.bench import Bench
from tasks.execution.helpers import READY, failure
from tasks.execution.run import Reference, Run

if TYPE_CHECKING:
    from deepcompression.training.team import Team


class Joining:
    """This process's place in the team, taken at its first training."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self.request = request
        self._open = contextlib.ExitStack()
        self._team: Team | None = None

    @contextlib.contextmanager
    def training(self) -> Iterator[Team]:
        """The team."""
        from deepcompression.training.team import joined

        if self._team is None:
            asked = self.request
            print(READY, file=sys.__stdout__, flush=True)
            os.dup2(2, 1)  # nobody reads on: what libraries print must not fill the pipe
            self._team = self._open.enter_context(
                joined(asked["rank"], asked["count"], Path(asked["place"]), asked["kind"], asked["run"]["strategy"])
            )
        yield self._team


def run_of(plain: Mapping[str, Any]) -> Run:
    """The run that ``Helpers`` wrote as JSON; it logs nowhere."""
    kinds = get_type_hints(Run)
    told = {name: TypeAdapter(kinds[name]).validate_python(value) for name, value in plain.items()}
    return Run(**told, tracker=None)  # type: ignore[arg-type]


def main() -> None:
    """Does the work of the stage."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process is told, and ends this one
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    logging.disable(logging.WARNING)  # the first process says the same
    sys.stdout = sys.stderr
    run, module = run_of(request["run"]), import_module(request["module"])
    run.ready()
    torch.set_num_threads(request["threads"])
    run.rewind()
    source = request["source"] and TypeAdapter(Reference).validate_python(request["source"])
    settings = module.Settings.model_validate(request["settings"])
    module.work(Bench(run, request["label"], source, Path(request["folder"]), Joining(request)), settings)


def _end_with_the_first() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    try:
        main()
    except BaseException as error:
        print(failure(error), file=sys.stderr, flush=True)
        os._exit(1)
    os._exit(0)  # nothing here is worth waiting for
