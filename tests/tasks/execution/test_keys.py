"""A stage's key: whatever decides its result changes it, whatever does not leaves it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.execution import run as runs
from tasks.execution.keys import callables, stage_key
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Data, Distil, Factory, Hold, Model, Teacher
from tasks.execution.sources import factory_digest
from tasks.stages import custom, prune
from tasks.tracking.runs import Tracker

CODE = """
import os
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

def data(flip=False):
    x, y = torch.arange(24.0).reshape(8, 3), torch.arange(8)
    return ((x.flip(1) if flip else x), y), (x, y), (x, y)

def same_data():
    return data()

def loaders(batch=4, balanced=False):
    parts = [TensorDataset(*part) for part in data()]
    weights = torch.tensor([1.0] * 4 + [0.01] * 4)
    how = {"sampler": WeightedRandomSampler(weights, 8)} if balanced else {"shuffle": True}
    return DataLoader(parts[0], batch, **how), DataLoader(parts[1], 4), DataLoader(parts[2], 4)

class Owner(TensorDataset):
    own = None

def owned():
    parts = [Owner(*part) for part in data()]
    parts[0].own = np.random.default_rng(1)
    sampler = torch.utils.data.RandomSampler(parts[0], generator=torch.Generator().manual_seed(1))
    return DataLoader(parts[0], 4, sampler=sampler), DataLoader(parts[1], 4), DataLoader(parts[2], 4)

def drawn():
    import os
    class Rows(torch.utils.data.Dataset):
        def __len__(self): return 4
        def __getitem__(self, index): return os.urandom(4), index
    return Rows(), Rows(), Rows()

def told():
    net = torch.nn.Linear(3, int(os.environ.get("DCK_WIDTH", 2)))
    net.scale = float(os.environ.get("DCK_SCALE", 1))
    return net

def unseeded():
    net = torch.nn.Linear(3, 2)
    torch.nn.init.uniform_(net.weight, generator=None)
    net.weight.data += float(np.random.default_rng().random())
    return net

def step(model, batch): ...
def other_step(model, batch): ...
def stage(model, problem, seed, **more): ...
"""


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Run]]:
    """A run on a module of the user's own; keyword arguments replace its fields."""
    (tmp_path / "dck_mine.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    for cache in (runs._made, runs._identity, runs._identified, factory_digest):
        cache.cache_clear()

    def run(**changes: Any) -> Run:
        plain: dict[str, Any] = {
            "name": "r", "seed": 0, "folder": str(tmp_path / "a"), "store_folder": str(tmp_path / "store"),
            "model": Model(factory="torch.nn:Linear", kwargs={"in_features": 3, "out_features": 2}),
            "data": Data(factory="dck_mine:data"), "step": None, "metric": None, "hold": Hold(), "device": "cpu",
            "precision": "float32", "channels_last": False, "threads": None, "python_path": (),
            "tracker": Tracker(str(tmp_path / "a"), "sqlite:///none.db", "e"),
        }  # fmt: skip
        return Run(**{**plain, **changes})

    yield run
    for cache in (runs._made, runs._identity, runs._identified, factory_digest):
        cache.cache_clear()


def _data(name: str, **kwargs: Any) -> Data:
    return Data(factory=f"dck_mine:{name}", kwargs=kwargs)


STEP = Factory(factory="dck_mine:step")


GRADUAL = prune.Settings(stage="prune", density=0.3, gradual=prune.Gradual())


def _key(run: Run, settings: prune.Settings = GRADUAL, source: Reference | None = None) -> str:
    return stage_key(run, "prune", settings, source, "tasks.stages.prune")


def test_whatever_decides_a_result_is_in_its_key(make: Callable[..., Run]) -> None:
    """Data, its factory, its arguments, loaders, step, metric, seed, precision, the input: each is another key."""
    base = make()
    keys = [
        _key(base),
        _key(make(data=_data("data", flip=True))),
        _key(make(data=_data("same_data"))),
        _key(make(data=_data("loaders"))),
        _key(make(data=_data("loaders", batch=2))),
        _key(make(data=_data("loaders", balanced=True))),
        _key(make(data=base.data.model_copy(update={"augment": STEP}))),
        _key(make(step=STEP)),
        _key(make(step=Factory(factory="dck_mine:other_step"))),
        _key(make(model=Model(factory="torch.nn:Linear", kwargs={"in_features": 3, "out_features": 4}))),
        _key(make(seed=1)),
        _key(make(precision="bfloat16")),
        _key(make(hold=Hold(zeros=["weight"]))),
        _key(base, GRADUAL.model_copy(update={"density": 0.2})),
        _key(base, GRADUAL.model_copy(update={"score": STEP})),
        _key(base, source=Reference("k", "object")),
        _key(base, source=Reference("k", "object", ("weight",))),
    ]
    assert len(set(keys)) == len(keys)


def test_whatever_does_not_decide_is_not(make: Callable[..., Run], tmp_path: Path) -> None:
    """Another folder, another name, a seed where nothing is drawn: the same key, so that the result is used again."""
    base = make()
    once = prune.Settings(stage="prune", density=0.3)
    assert _key(base) == _key(make(folder=str(tmp_path / "b"), name="other"))
    assert _key(base, once) == _key(replace(base, seed=9), once) != _key(base)


def test_data_that_cannot_be_identified_is_another_in_each_run(make: Callable[..., Run], tmp_path: Path) -> None:
    """Within a run stages find each other's results; no other run ever does."""
    drawn = make(data=_data("drawn"))
    assert _key(drawn) == _key(drawn) != _key(replace(drawn, folder=str(tmp_path / "b")))
    assert "no result of this run will be used again" in drawn.data_identity().doubts[0]


def test_every_callable_counts_at_any_depth(make: Callable[..., Run]) -> None:
    """Code that is named in arguments, lists and mappings is code of the stage; a teacher's, where it teaches."""
    kwargs = {"parts": [{"act": "dck_mine:step"}], "text": "no code: at all"}
    model = Model(factory="torch.nn:Linear", kwargs=kwargs)
    run = make(model=model, teacher=Teacher(factory="dck_mine:stage"))
    assert callables(run, custom.Settings(stage="dck_mine:other_step", distil={"weight": 0.5})) == [
        "dck_mine:data", "dck_mine:other_step", "dck_mine:step", "torch.nn:Linear",
    ]  # fmt: skip
    assert "dck_mine:stage" in callables(run, GRADUAL.model_copy(update={"gradual": prune.Gradual(distil=Distil())}))


def test_what_a_models_factory_takes_from_elsewhere_counts(make: Callable[..., Run], monkeypatch: Any) -> None:
    """A width or a factor from the environment or a file is another model; draws without a seed are no other one."""
    told = make(model=Model(factory="dck_mine:told"))
    keys = [_key(told)]
    for name, value in (("DCK_WIDTH", "4"), ("DCK_SCALE", "2")):
        monkeypatch.setenv(name, value)
        runs._identified.cache_clear()
        keys.append(_key(told))
    assert len(set(keys)) == 3
    loose = make(model=Model(factory="dck_mine:unseeded"))
    first = _key(loose)
    runs._identified.cache_clear()
    assert _key(loose) == first


def test_what_was_read_before_does_not_change_what_a_stage_draws(make: Callable[..., Run]) -> None:
    """A loader's own generator is where it was when the loader was made, whether the stage before was used again or
    not; so are those of a data set and a sampler."""
    run = make(data=_data("owned"))
    train = run.splits().train
    first = [list(train.sampler), train.dataset.own.random()]
    run.rewind()
    assert [list(train.sampler), train.dataset.own.random()] == first
