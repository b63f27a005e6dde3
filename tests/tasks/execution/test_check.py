"""What is told before anything trains, by the names that stand in the recipe."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from deepcompression.errors import DataError, FactoryError, InputError, RecipeError
from tasks.execution import warned
from tasks.execution.check import check
from tasks.execution.run import Run
from tasks.execution.settings import Data, Factory, Hold, Model, Teacher, Training
from tasks.stages import baseline, custom, finetune, prune, recalibrate
from tasks.tracking.runs import Tracker

X, Y = torch.randn(65, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(65) % 10
Made = Callable[..., Run]


def norm() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


def plain() -> Any:
    return (X, Y), (X, Y), (X, Y)


def loaders() -> Any:
    return tuple(DataLoader(TensorDataset(X, Y), 50) for _ in range(3))


class Holes(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        return {}[index]


def holes() -> Any:
    return Holes(X), (X, Y), (X, Y)


def holes_in_test() -> Any:
    return (X, Y), (X, Y), Holes(X)


def broken_step(model: nn.Module, batch: Any) -> Any:
    return model(batch[0]).logits, None, None


MADE = norm()


def cached() -> nn.Module:
    return MADE


class Moving(nn.Module):
    """Centres its inputs by a mean that it keeps to itself; drawn by numpy."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        self.out = nn.Linear(64, 10)
        self.out.bias.data = torch.from_numpy(np.random.rand(10)).float()
        self.register_buffer("mean", torch.zeros(64), persistent=persistent)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1)
        if self.training:
            self.mean = 0.5 * self.mean + 0.5 * (x + 1).mean(0).detach()
        return self.out(x - self.mean)


class Growing(nn.Module):
    """Makes a layer in its first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not hasattr(self, "more"):
            self.more = nn.Linear(10, 10)
        return self.more(self.out(x.flatten(1)))


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A run of this module's factories."""
    module = types.ModuleType("checked")
    for name in ("norm", "plain", "loaders", "holes", "holes_in_test", "broken_step", "cached", "Moving", "Growing"):
        setattr(module, name, globals()[name])
    monkeypatch.setitem(sys.modules, "checked", module)
    monkeypatch.setattr("tasks.execution.check.factory_digest", lambda spec: spec)  # of a module that is no file

    def run(data: str = "plain", step: str | None = None, folder: str = "run") -> Run:
        (tmp_path / folder).mkdir(exist_ok=True)
        return Run(
            name="run", seed=0, folder=str(tmp_path / folder), store_folder=str(tmp_path / "store"),
            model=Model(factory="checked:norm"), data=Data(factory=f"checked:{data}"),
            step=Factory(factory=f"checked:{step}") if step else None, metric=None, hold=Hold(),
            device="cpu", precision="float32", channels_last=False, threads=None,
            python_path=(), tracker=Tracker(str(tmp_path), "sqlite://", "tests"),
        )  # fmt: skip

    return run


def training(**keys: Any) -> baseline.Settings:
    return baseline.Settings(train=Training(**keys))


def test_what_fails_is_named_as_in_the_recipe(made: Made) -> None:
    """The step's, the data's factory; the test split's too, unless it is not to be read."""
    with pytest.raises(
        FactoryError, match=r"^tried before training: validation: step checked:broken_step: AttributeEr"
    ):
        check(made(step="broken_step"), [("train", training())])
    with pytest.raises(
        DataError, match=r"tried before training: train: data.factory checked:holes: Holes .*KeyError: 0"
    ):
        check(made("holes"), [("train", training(batch_size=10))])
    with pytest.raises(DataError, match=r"test: data.factory checked:holes_in_test: Holes does not give a batch"):
        check(made("holes_in_test"), [("train", training(batch_size=10))])


def test_a_model_in_pieces_is_refused_where_it_cannot_be(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    """One device has no pieces; an optimizer of any training that looks at whole tensors is found before it trains."""
    monkeypatch.setattr("deepcompression.training.team.refuse", lambda *_: None)  # it needs Lightning Fabric
    pieces = replace(made(), strategy="fsdp")
    with pytest.raises(RecipeError, match=r"^strategy: fsdp is for several devices; add devices: 2, or more, or"):
        check(pieces, [("train", training())])
    adafactor = finetune.Settings(stage="finetune", epochs=1, optimizer=Factory(factory="torch.optim:Adafactor"))
    with pytest.raises(RecipeError, match=r"^finetune: strategy: fsdp: optimizer Adafactor looks at whole tensors"):
        check(replace(pieces, devices=2), [("train", training()), ("finetune", adafactor)])


def test_a_last_batch_of_one_is_told_of_every_training(made: Made) -> None:
    """65 samples: of the first training, of a stage's own, of BatchNorm's statistics; drop_last mends it."""
    gradual = prune.Settings(stage="prune", density=0.5, gradual=prune.Gradual(batch_size=64))
    again = recalibrate.Settings(stage="recalibrate", batch_size=32)
    for label, settings in (("train", training(batch_size=64)), ("prune-2", gradual), ("recalibrate", again)):
        with pytest.raises(InputError, match=rf"^tried before training: {label}: 65 training samples.*drop_last: true"):
            check(made(), [("first", training(batch_size=10)), (label, settings)])
    own = custom.Settings(stage="checked:norm", batch_size=64, density={"nothing": 0.5})  # keys of the callable's own
    check(made(), [("train", training(batch_size=64, drop_last=True)), ("own", own)])


def test_a_batch_size_beside_a_loader_is_told_where_it_was_asked_for(made: Made) -> None:
    """It has no effect: the warning names stage, key, and the loader's own; nobody who did not ask hears it."""
    run = made("loaders")
    check(run, [("train", training(batch_size=64, drop_last=True)), ("finetune", training())])
    texts = [one["text"] for one in warned.kept(run.folder)]
    assert texts == [
        f"train: {key} has no effect, for data.factory returns a DataLoader, with batches of 50 (drop_last false); "
        "remove the key, or set it there"
        for key in ("batch_size: 64", "drop_last: true")
    ]
    quiet = made("loaders", folder="quiet")
    check(quiet, [("train", training())])
    assert not warned.kept(quiet.folder)


def test_a_model_that_no_file_holds_is_told_with_its_factory(made: Made) -> None:
    """Whose weights in a new model give other outputs, or which is no new one; of the teacher too."""
    whole, part = (Model(factory="checked:Moving", kwargs={"persistent": kept}) for kept in (True, False))
    old = "checked:cached"
    run, trained = made(), [("train", training(batch_size=13))]
    check(replace(run, model=whole), trained)
    with pytest.raises(
        FactoryError, match=r"^model.factory checked:Moving: .* other outputs: .*, such as mean: register"
    ):
        check(replace(run, model=part), trained)
    for one in (replace(run, model=Model(factory=old)), replace(run, teacher=Teacher(factory=old))):
        with pytest.raises(
            FactoryError, match=r"^(model|teacher).factory checked:cached: returned the same object on two calls"
        ):
            check(one, trained)


def test_layers_of_the_first_forward_are_refused(made: Made) -> None:
    """They would stand in no optimizer; what is wrong with the step is told where there is nothing wrong with them."""
    grows = Model(factory="checked:Growing")
    with pytest.raises(FactoryError, match=r"checked:Growing: its forward makes more.weight; make all layers"):
        check(replace(made(), model=grows), [("train", training())])
    with pytest.raises(FactoryError, match=r"^tried before training: .*step checked:broken_step"):
        check(replace(made(step="broken_step"), model=grows), [("train", training())])


def test_models_that_numpy_draws_are_those_of_the_seed(made: Made) -> None:
    """Else the same recipe and seed would give another result each time."""
    run = replace(made(), model=Model(factory="checked:Moving", kwargs={"persistent": True}))
    one, again, other = (run.blank_model(draw).out.bias for draw in (0, 0, 1))
    assert torch.equal(one, again) and not torch.equal(one, other)
