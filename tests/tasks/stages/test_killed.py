"""Every stage and every method of the lists, killed early and late: run again, it ends in the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet_runs import quiet_run

from deepcompression.quantization.observers.histogram import Histogram
from deepcompression.reconstruction.kept import KeptLayers
from deepcompression.training.loop import _Loop
from tasks.execution.execute import execute
from tasks.execution.keys import stage_key
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Model, Stage
from tasks.methods import METHODS
from tasks.stages import OTHERS, STAGES, losses, settings_of, work_of
from tasks.storage.store import Store

CODE = """
import torch
from torch import nn
def data():
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    pair = (x, x[:, :3].argmax(1))
    return pair, pair, pair
def net():
    hidden = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2))
    return nn.Sequential(*hidden, nn.Linear(16, 3))
def halve(model, problem, *, seed):
    with torch.no_grad():
        model[0].weight.mul_(0.5)
"""
TWO = {"epochs": 2, "lr": 0.01, "batch_size": 16}  # of four steps
SHARED = {"stage": "share", "bits": 3}
DROPOUT = {"modules": {"3": "4"}}
CALIBRATED = {"activations": {"observer": "auto", "samples": 32}, "correct": ["bias"]}
THRESHOLDS = {"weights": {}, "activations": {"kind": "scaled_threshold", "samples": 32}, "keep": []}
FILTERS = {"granularity": "filter", "criterion": "l1", "flops": 0.5, "remove": True}

# The keys with which each line of a list is killed, in each way in which it works; with those of the stage before,
# where that is not the dense model. A line without keys here fails.
STAGES_KILLED: dict[str, list[dict[str, Any]]] = {
    "prune": [{"density": 0.5}, {"density": 0.5, "gradual": TWO}, FILTERS, {"granularity": "1x2", "density": 0.5}],
    "finetune": [{**TWO, "dropout": {"3": "4"}}],
    "train": [
        {**TWO, "methods": [{"prune": {"density": 0.5}}, {"share": {"bits": 2}}, "distil", {"dropout": DROPOUT}]}
    ],
    "share": [{"bits": 2}, {"bits": 2, "init": "random"}, {"bits": 2, "train": TWO}],
    "allocate": [{"bits": [2, 8], "like": 8, "samples": 32, "vectors": 8}],
    "quantize": [{"rest": "int8"}, {"weights": {"bits": 8}, **CALIBRATED}, {"train": TWO, "before": SHARED}],
    "reconstruct": [
        {"bits": 3, "density": 0.6, "samples": 32},
        {"target": {"bytes": 700}, "weights": "linear", "samples": 32},
    ],
    "binarize": [{**TWO, **THRESHOLDS}],
    "recalibrate": [{}],
    "slim": [{"units": 0.5}],
    "encode": [{"before": SHARED}],
    "custom": [{"stage": "tkl_mine:halve"}],
    "baseline": [{"train": TWO}],
    "pace": [{}],
    "importance": [{"samples": 32}],
    "sensitivity": [{"layers": ["0.weight", "4.weight"], "densities": [0.5], "bits": [2]}],
}
METHODS_KILLED: dict[str, dict[str, Any]] = {
    "prune": {"granularity": "2:4"},
    "l0": {"penalty": 1.0},
    "rb": {"density": 0.5},
    "compact": {},
    "share": {"bits": 2},
    "centroids": {"before": SHARED},
    "quantize": {"weights": {"bits": 4}, "activations": {"bits": 8, "samples": 32}},
    "binarize": {**THRESHOLDS, "gradients": {"bits": 6}},
    "dropout": {"modules": {"3": "4"}},
    "distil": {},
    "hints": {"layers": ["2"], "until": 0.6},
    "attention": {"layers": {"0": "0"}, "weight": 10.0},
}
Keys = dict[str, Any]
Point = tuple[Any, str, int]


@dataclass(frozen=True)
class Case:
    """A stage with its keys, and the keys of the stage before; None: it begins with the dense model."""

    stage: str
    keys: Keys
    before: Keys | None = None

    @property
    def settings(self) -> Stage:
        return settings_of(self.stage).model_validate(self.keys)

    def points(self) -> Sequence[Point]:
        """Where it is killed: in the second epoch, while values are observed or traces drawn, or before its object is
        stored; then later, at the latest before its key is.
        """
        if self.stage == "quantize" and getattr(self.settings, "activations", None):
            return [(Histogram, "add", 5), (Store, "put", 1)]
        if self.stage == "allocate":
            return [(losses, "write_json", 5), (Store, "put", 1)]
        if self.stage == "reconstruct":
            return [(KeptLayers, "done", 2), (Store, "put", 1)]
        late = (Store, "put" if self.settings.trains else "commit", 1)
        return [(_Loop, "_step", 6) if self.settings.trains else (Store, "put", 1), late]

    def run(self, run: Run) -> Reference:
        """Its result, once what it begins with is in the store."""
        settings = self.settings
        return execute(run, self.stage, 1, settings, self.source(run), work_of(self.stage))[0]

    def source(self, run: Run) -> Reference | None:
        """What it begins with."""
        if self.before is None:
            return None if self.stage == "baseline" else run.taught_by
        return Case(self.before["stage"], self.before).run(run)

    def key(self, run: Run) -> str:
        """What its result is stored under."""
        return stage_key(run, self.stage, self.settings, self.source(run), work_of(self.stage).__module__)


def _of_stage(name: str) -> list[Case]:
    word = {} if name in ("baseline", "custom") else {"stage": name}
    rows = [dict(keys) for keys in STAGES_KILLED[name]]
    return [Case(name, {**word, **row}, before) for row in rows for before in [row.pop("before", None)]]


def _of_method(name: str) -> list[Case]:
    keys = dict(METHODS_KILLED[name])
    before = keys.pop("before", None)
    return [Case("train", {"stage": "train", **TWO, "methods": [{name: keys}]}, before)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run on a small net, told to nobody, its dense model in the store."""
    folder = tmp_path_factory.mktemp("killed")
    with (
        pytest.MonkeyPatch.context() as patch,
        quiet_run(folder, patch, "tkl_mine", CODE, Model(factory="tkl_mine:net")) as made,
    ):
        yield replace(made, taught_by=Case("baseline", {"train": {**TWO, "epochs": 1}}).run(made))


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


LINES = [*((_of_stage, name) for name in (*STAGES, *OTHERS)), *((_of_method, name) for name in METHODS)]


@pytest.mark.parametrize(("cases", "name"), LINES, ids=[f"{of.__name__[4:]} {name}" for of, name in LINES])
def test_what_is_killed_early_and_late_ends_in_the_same_bytes(
    cases: Callable[[str], list[Case]], name: str, run: Run, tmp_path: Path
) -> None:
    """SIGKILL twice: no key stands for what is not whole; then the object of a run that nobody killed, and no rest."""
    for number, case in enumerate(cases(name)):
        store = tmp_path / str(number)
        shutil.copytree(run.store_folder, store)
        own = replace(run, store_folder=str(store))
        key = case.key(own)
        for epochs, at in enumerate(case.points(), 1):
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
