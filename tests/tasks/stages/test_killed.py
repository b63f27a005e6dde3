"""Every stage and every method of the lists, killed early and late: run again, it ends in the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import sklearn.decomposition
import torch
from every_line import Case, of_method, of_stage, small_run

from deepcompression.quantization.observers.histogram import Histogram
from deepcompression.reconstruction.kept import KeptLayers
from deepcompression.training.loop import _Loop
from tasks.execution.run import Run
from tasks.methods import METHODS
from tasks.stages import OTHERS, STAGES, losses
from tasks.storage.store import Store

assert sklearn.decomposition  # imported here, once, and not in each fork
Point = tuple[Any, str, int]


def _points(case: Case) -> Sequence[Point]:
    """Where it is killed: in the second epoch, while values are observed or traces drawn, or before its object is
    stored; then later, at the latest before its key is.
    """
    if case.stage == "quantize" and getattr(case.settings, "activations", None):
        return [(Histogram, "add", 5), (Store, "put", 1)]
    if case.stage == "allocate":
        return [(losses, "write_json", 5), (Store, "put", 1)]
    if case.stage == "reconstruct":
        return [(KeptLayers, "done", 2), (Store, "put", 1)]
    late = (Store, "put" if case.settings.trains else "commit", 1)
    return [(_Loop, "_step", 6) if case.settings.trains else (Store, "put", 1), late]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run on a small net, told to nobody, its dense model in the store."""
    with small_run(tmp_path_factory.mktemp("killed")) as made:
        yield made


def _dying(owner: Any, name: str, calls: int) -> None:
    """This process gets a real SIGKILL in the call of a method, or a module's function, with this number."""
    method, count = getattr(owner, name), iter(range(1, calls + 1))

    def called(*given: Any, **more: Any) -> Any:
        return os.kill(os.getpid(), signal.SIGKILL) if next(count) == calls else method(*given, **more)

    setattr(owner, name, called)


def _killed(at: Point, work: Callable[[], Any]) -> None:
    """A fork of this process does the work and is killed at a point of it."""
    if not (child := os.fork()):
        try:
            _dying(*at)
            work()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


LINES = [*((of_stage, name) for name in (*STAGES, *OTHERS)), *((of_method, name) for name in METHODS)]


@pytest.mark.parametrize(("cases", "name"), LINES, ids=[f"{of.__name__[3:]} {name}" for of, name in LINES])
def test_what_is_killed_early_and_late_ends_in_the_same_bytes(
    cases: Callable[[str], list[Case]], name: str, run: Run, tmp_path: Path
) -> None:
    """SIGKILL twice: no key stands for what is not whole; then the object of a run that nobody killed, and no rest."""
    for number, case in enumerate(cases(name)):
        store = tmp_path / str(number)
        shutil.copytree(run.store_folder, store)
        own = replace(run, store_folder=str(store))
        key = case.key(own)
        for epochs, at in enumerate(_points(case), 1):
            _killed(at, partial(case.run, own))
            assert not (store / "keys" / f"{key}.json").exists()
            if case.settings.trains:  # what comes next goes on from here
                assert torch.load(store / "partial" / key / "checkpoint.pt", weights_only=True)["epoch"] == epochs
        again, whole = case.run(own), case.run(run)
        assert (again.key, again.object, again.structure) == (key, whole.object, whole.structure)
        assert again.edits == whole.edits and own.store.intact(again.object)
        begun = case.source(own)
        made = {edit["kind"] for edit in again.edits[len(begun.edits) if begun else 0 :]}
        assert made <= case.settings.edits().keys()  # by which an export is refused before anything trains
        assert not [*store.glob("partial/*"), *store.glob("leases/*.json"), *store.rglob("*.part")]
