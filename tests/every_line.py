"""Every stage and every method of the lists, with keys that make it work on a small net within a second."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from quiet_runs import quiet_run

from tasks.execution.execute import execute
from tasks.execution.keys import stage_key
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Model, Stage
from tasks.stages import settings_of, work_of

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
WAITING = {**TWO, "curve": "adaptive"}
SHARED = {"stage": "share", "bits": 3}
DROPOUT = {"modules": {"3": "4"}}
CALIBRATED = {"activations": {"observer": "auto", "samples": 32}, "correct": ["bias"]}
THRESHOLDS = {"weights": {}, "activations": {"kind": "scaled_threshold", "samples": 32}, "keep": []}
FILTERS = {"granularity": "filter", "criterion": "l1", "flops": 0.5, "remove": True}
SOFT = {"granularity": "filter", "criterion": "taylor", "density": 0.5, "soft": True, "ramp": 0.9, "remove": True}

# The keys of each line of a list, for each way in which it works; with those of the stage before, where that is not the
# dense model. A line without keys here fails.
STAGE_KEYS: dict[str, list[dict[str, Any]]] = {
    "prune": [{"density": 0.5}, {"density": 0.5, "gradual": WAITING}, FILTERS, {"granularity": "1x2", "density": 0.5}],
    "finetune": [{**TWO, "dropout": {"3": "4"}}],
    "train": [
        {**TWO, "methods": [{"prune": {"density": 0.5}}, {"share": {"bits": 2}}, "distil", {"dropout": DROPOUT}]},
        {**TWO, "methods": [{"prune": SOFT}]},
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
    "lcnn": [{"size": {"0": 3}, "nonzero": 2}],
    "sparsify": [{"samples": 32}],
    "encode": [{"before": SHARED}],
    "custom": [{"stage": "tkl_mine:halve"}],
    "baseline": [{"train": TWO}],
    "pace": [{}],
    "importance": [{"samples": 32}],
    "sensitivity": [{"layers": ["0.weight", "4.weight"], "densities": [0.5], "bits": [2]}],
}
METHOD_KEYS: dict[str, dict[str, Any]] = {
    "prune": {"granularity": "2:4"},
    "l0": {"penalty": 1.0},
    "rb": {"density": 0.5, "curve": "adaptive"},
    "bn_l1": {},
    "compact": {},
    "activation_sparsity": {},
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


@dataclass(frozen=True)
class Case:
    """A stage with its keys, and the keys of the stage before; None: it begins with the dense model."""

    stage: str
    keys: Keys
    before: Keys | None = None

    @property
    def settings(self) -> Stage:
        return settings_of(self.stage).model_validate(self.keys)

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


def of_stage(name: str) -> list[Case]:
    word = {} if name in ("baseline", "custom") else {"stage": name}
    rows = [dict(keys) for keys in STAGE_KEYS[name]]
    return [Case(name, {**word, **row}, before) for row in rows for before in [row.pop("before", None)]]


def of_method(name: str) -> list[Case]:
    keys = dict(METHOD_KEYS[name])
    before = keys.pop("before", None)
    return [Case("train", {"stage": "train", **TWO, "methods": [{name: keys}]}, before)]


@contextlib.contextmanager
def small_run(folder: Path) -> Iterator[Run]:
    """A run on a small net, told to nobody, its dense model in the store."""
    with (
        pytest.MonkeyPatch.context() as patch,
        quiet_run(folder, patch, "tkl_mine", CODE, Model(factory="tkl_mine:net")) as made,
    ):
        yield replace(made, taught_by=Case("baseline", {"train": {**TWO, "epochs": 1}}).run(made))
