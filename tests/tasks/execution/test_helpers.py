"""A stage on two devices: two processes of this machine train together, where Lightning Fabric is installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet_runs import quiet_run

from deepcompression.errors import DataError, InputError, RunError
from tasks.execution.execute import execute
from tasks.execution.helper import run_of
from tasks.execution.helpers import _error, _plain, failure
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Factory, Model, Teacher
from tasks.stages import settings_of, work_of

CODE = """
import os, signal
import torch
from pathlib import Path
from torch import nn
def data():
    x = torch.randn(99, 6, generator=torch.Generator().manual_seed(0))
    pair = (x, x[:, :3].argmax(1))
    return pair, pair, pair
def net():
    return nn.Sequential(nn.Linear(6, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 3))
def noisy(batch, generator):
    return batch[0] + 0.1 * torch.randn(batch[0].shape, generator=generator), batch[1]
def step(model, batch, *, folder):
    order = Path(folder) / "order"
    if model.training and order.exists():
        rank, number, how = order.read_text().split()
        done = vars(step).setdefault("done", [0])
        done[0] += 1
        if torch.distributed.get_rank() == int(rank) and done[0] == int(number):
            if how == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ValueError("of rank " + rank)
    outputs = model(batch[0])
    return nn.functional.cross_entropy(outputs, batch[1]), outputs, batch[1]
"""
TRAIN = {
    "stage": "train", "epochs": 4, "lr": 0.01, "batch_size": 16, "accumulate": 2,
    "methods": [{"prune": {"density": 0.4}}, {"share": {"bits": 3}}],
}  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    model = Model(factory="thl_mine:net")
    with quiet_run(tmp_path, monkeypatch, "thl_mine", CODE, model) as made:
        step = Factory(factory="thl_mine:step", kwargs={"folder": str(tmp_path)})
        yield replace(made, devices=2, python_path=(str(tmp_path),), step=step)


def staged(run: Run, source: Reference | None, **keys: Any) -> Reference:
    name = "baseline" if source is None else keys["stage"]
    return execute(run, name, 1, settings_of(name).model_validate(keys), source, work_of(name))[0]


def test_a_stage_reaches_another_process_as_it_is(run: Run) -> None:
    """What the others rebuild from JSON is what the first one has, but for where it logs."""
    reference = Reference("k", "o", {"0.weight": ("zeros",)}, ({"kind": "fold"},), {"val_metric": 0.5})
    whole = replace(run, teacher=Teacher(factory="thl_mine:net"), taught_by=reference)
    told = {one.name: getattr(whole, one.name) for one in fields(whole) if one.name != "tracker"}
    assert run_of(json.loads(json.dumps(told, default=_plain))) == replace(whole, tracker=None)
    settings = settings_of("train").model_validate(TRAIN)
    again = settings_of("train").model_validate(json.loads(json.dumps(settings, default=_plain)))
    assert again.model_dump() == settings.model_dump()


def test_why_another_process_ended_is_one_line() -> None:
    """A signal, an error of its own, what the user gave: each says which process, and what to do."""
    died = _error(2, 4, -9, "")
    assert isinstance(died, RunError) and str(died) == (
        "devices: process 2 of 4 ended by signal SIGKILL, and the training with it; start again to go on from its "
        "last epoch"
    )
    given = _error(3, 4, 1, "noise\n" + failure(DataError("data: no such file")))
    assert isinstance(given, InputError) and str(given) == "devices: process 3 of 4: data: no such file"
    wrong = _error(2, 2, 1, failure(KeyError("x")))
    assert not isinstance(wrong, InputError) and str(wrong) == "devices: process 2 of 2: KeyError: 'x'"
    assert "ended with exit code 7 (Bus error), and" in str(_error(2, 2, 7, "Bus error"))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_train_one_model(run: Run, tmp_path: Path, strategy: Any) -> None:
    """The result keeps what methods promise and is the same each time; killed and gone on, the same bytes; a process
    that dies ends the other in one line.
    """
    pytest.importorskip("lightning_fabric")
    run = replace(run, strategy=strategy)
    dense = staged(run, None, train={"epochs": 2, "lr": 0.01, "batch_size": 16})
    others = [replace(run, store_folder=str(tmp_path / name)) for name in ("dies", "fails")]
    for other in others:
        shutil.copytree(run.store_folder, other.store_folder)
    whole = staged(run, dense, **TRAIN)
    entry = run.store.find(whole.key)
    assert entry is not None and len(entry["history"]) == 4 and not entry["warnings"]
    weight = run.state(whole)["0.weight"]
    assert int((weight != 0).sum()) <= 58 and len(weight.unique()) <= 9

    order, (dies, fails) = tmp_path / "order", others
    order.write_text("1 12 die")
    with pytest.raises(RunError, match=r"^devices: process 2 of 2 ended by signal SIGKILL, and the training with it; "):
        staged(dies, dense, **TRAIN)
    assert not torch.distributed.is_initialized()
    order.write_text("1 12 fail")
    with pytest.raises(InputError, match=r"^devices: process 2 of 2: step: ValueError: of rank 1"):
        staged(fails, dense, **TRAIN)
    order.unlink()
    assert staged(dies, dense, **TRAIN).object == whole.object
