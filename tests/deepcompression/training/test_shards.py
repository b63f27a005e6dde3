"""A model in pieces: two processes that keep a part each come to what two with the whole model come to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import DataError, DivergedError, RecipeError
from deepcompression.measure.flops import macs_in
from deepcompression.pruning.filters import Limit
from deepcompression.pruning.filters_in_training import FilterPruning
from deepcompression.pruning.gradual import GradualPruning
from deepcompression.pruning.l0 import L0
from deepcompression.pruning.sr_ste import SrSte
from deepcompression.quantization.in_training import Activations, QuantizedTraining, Weights
from deepcompression.sharing.reassign import TrainedSharing
from deepcompression.training import shards
from deepcompression.training.device import Compute
from deepcompression.training.loop import _Loop, train
from deepcompression.training.method import Method
from deepcompression.training.plan import Plan
from deepcompression.training.problem import Problem
from deepcompression.training.team import Team

SGD = {"factory": "torch.optim:SGD", "kwargs": {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}}
METHODS = ("none", "few", "share", "l0", "n:m", "lsq", "filters")


class Gloo:
    """As much of Lightning Fabric as a team asks for, which is not installed everywhere."""

    device = torch.device("cpu")

    def __init__(self, rank: int, count: int) -> None:
        self.global_rank, self.world_size = rank, count

    @staticmethod
    def all_reduce(value: Tensor, reduce_op: str) -> Tensor:
        assert reduce_op == "sum"
        value = value.clone()
        torch.distributed.all_reduce(value)
        return value

    @staticmethod
    def broadcast(value: Any, src: int) -> Any:
        said = [value]
        torch.distributed.broadcast_object_list(said, src)
        return said[0]


def net() -> nn.Module:
    torch.manual_seed(1)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()]
    made = nn.Sequential(*layers, nn.Linear(128, 10), nn.PReLU(), nn.Linear(10, 4))
    made.unused = nn.Parameter(torch.randn(4, 16)[:, :4])  # gets no gradient, and has gaps in memory
    return made


def methods(way: str) -> list[Method]:
    """Gates, codebooks, scales without a dimension, units that go: what methods train and look at."""
    known: dict[str, Any] = {
        "none": lambda: [],
        "few": lambda: [GradualPruning(0.4), TrainedSharing(3, 0.01)],
        "share": lambda: [TrainedSharing(3, 0.01)],
        "l0": lambda: [L0(0.1)],
        "n:m": lambda: [SrSte("2:4", ["3.weight", "6.weight"], 0.02)],
        "lsq": lambda: [QuantizedTraining(Weights({"default": 4}, "lsq"), Activations({"default": 4}, "lsq"))],
        "filters": lambda: [FilterPruning(limit=Limit(0.6, macs_in), criterion="l1", remove=True, updates=2, ramp=0.5)],
    }
    made: list[Method] = known[way]()
    return made


def task(step: Any = None) -> Problem:
    x = torch.randn(90, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0, :4].sum((1, 2)) > 0).long() + 2 * (x[:, 0, 4:].sum((1, 2)) > 0).long()
    return Problem((x, y), (x, y), batch_size=16, **({"step": step} if step else {}))


def plan(epochs: int = 3, **keys: Any) -> Plan:
    keys = {"optimizer": SGD, "gradient_clip": 0.7, "accumulate": 2, **keys}
    optimizer = keys.pop("optimizer")
    return Plan(epochs, optimizer, "cosine", 0.0, seed=0, compute=Compute("cpu", "float32", True), **keys)


def endless(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
    outputs = model(batch[0])
    return outputs.sum() * (float("nan") if model.training else 1), outputs, batch[1]


def broken(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
    model(batch[0])
    raise DataError("data: within a forward pass")


def trained(team: Team, way: str, checkpoint: Path | None = None, **keys: Any) -> dict[str, Tensor]:
    """What becomes of a net, an ordinary one afterwards."""
    model = net()
    names = list(model.state_dict())
    train(model, task(), plan(**keys), methods(way), team=team, checkpoint=checkpoint)
    if way == "none":
        train(model, task(), plan(1), team=team)  # FSDP leaves marks on what it has taken
    assert set(names) <= set(model.state_dict()) and (way == "lsq" or list(model.state_dict()) == names)
    assert all(type(one) is nn.Parameter for one in model.parameters())
    return copy.deepcopy(model).state_dict()


class Killed(Exception):
    """In both processes at once."""


@contextmanager
def killed_after(epoch: int) -> Iterator[None]:
    save = _Loop._save

    def saved(loop: _Loop) -> None:
        save(loop)
        if loop.epoch == epoch:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Loop, "_save", saved)
        yield


def answers(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model.eval()(task().train[0])  # type: ignore[no-any-return]


def process(rank: int, folder: Path) -> None:
    """One of two: all ways with either strategy, then a training that is killed, and one that fails."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "place"), 2)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    ddp, fsdp = (Team(Gloo(rank, 2), strategy) for strategy in ("ddp", "fsdp"))
    found = {f"{team.strategy} {way}": trained(team, way) for team in (ddp, fsdp) for way in METHODS}
    adam = {"factory": "torch.optim:AdamW", "kwargs": {"lr": 0.01}}
    found["whole"] = trained(fsdp, "few", folder / "whole.pt", optimizer=adam)

    with killed_after(2), pytest.raises(Killed):
        trained(fsdp, "few", folder / "killed.pt", optimizer=adam)
    found["gone on"] = trained(fsdp, "few", folder / "killed.pt", optimizer=adam)
    for error, step in ((DivergedError, endless), (DataError, broken)):
        model = net()
        with pytest.raises(error):
            train(model, task(step), plan(), methods("few"), team=fsdp)
        found[error.__name__] = {**model.state_dict(), "outputs": answers(model)}
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two processes came to."""
    folder = tmp_path_factory.mktemp("two")
    torch.multiprocessing.spawn(process, (folder,), 2)  # type: ignore[attr-defined, no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("way", METHODS)
def test_pieces_come_to_what_whole_models_come_to(found: list[dict[str, dict[str, Tensor]]], way: str) -> None:
    """Masks, codebooks, gates, scales and thin layers are those of two processes with a whole model each, to rounding;
    both processes end with the same bytes."""
    whole, pieces = found[0][f"ddp {way}"], found[0][f"fsdp {way}"]
    assert same(pieces, found[1][f"fsdp {way}"])
    assert whole.keys() == pieces.keys()
    for name, one in whole.items():
        torch.testing.assert_close(pieces[name], one, rtol=1e-4, atol=1e-5)
    assert float((whole["8.bias"] - net().state_dict()["8.bias"]).abs().sum()) > 0.01


def test_a_killed_training_in_pieces_goes_on_to_the_same_bytes(found: list[dict[str, dict[str, Tensor]]]) -> None:
    """Each process finds its own part of the optimizer's state in the one checkpoint."""
    assert same(found[0]["gone on"], found[0]["whole"]) and same(found[1]["gone on"], found[0]["whole"])


@pytest.mark.parametrize("error", ["DivergedError", "DataError"])
def test_a_training_in_pieces_that_fails_leaves_an_ordinary_model(
    found: list[dict[str, dict[str, Tensor]]], error: str
) -> None:
    """Whole tensors, of the values that it had (weights took those of their codebooks): at the end of an epoch, and in
    the middle of a step."""
    before, free = net().state_dict(), ("0.bias", "1.weight", "1.running_var", "8.bias")
    for after in (dict(one[error]) for one in found):
        outputs, fresh = after.pop("outputs"), net()
        fresh.load_state_dict(after)
        assert torch.equal(outputs, answers(fresh))
        assert [(name, one.shape) for name, one in after.items()] == [(name, one.shape) for name, one in before.items()]
        assert all(torch.equal(after[name], before[name]) for name in free)


@pytest.mark.parametrize("name", ["Muon", "Adafactor"])
def test_optimizers_that_look_at_whole_tensors_are_refused(name: str) -> None:
    """They would run, and do something else to each piece; so is torch.compile, which does not go through FSDP here."""
    with pytest.raises(RecipeError, match=r"^strategy: fsdp: optimizer (Muon|Adafactor) looks at whole tensors"):
        shards.refuse([name, "Optimizer"], False)
    with pytest.raises(RecipeError, match=r"^strategy: fsdp does not go with compile: true"):
        shards.refuse(["AdamW"], True)
    shards.refuse(["AdamW"], False)


def test_models_that_fsdp_trains_wrongly_are_refused() -> None:
    """A gradient's hook that would not run, weights that are written in a step, nothing of floating point."""
    hooked = nn.Linear(3, 2)
    hooked.bias.register_hook(lambda gradient: 2 * gradient)  # type: ignore[no-untyped-call]
    with pytest.raises(RecipeError, match=r"^strategy: fsdp: bias has a hook on its gradient, which would not"):
        shards.refuse_model(hooked)
    with pytest.raises(RecipeError, match=r"^strategy: fsdp: 0 has max_norm, which writes into weights in a"):
        shards.refuse_model(nn.Sequential(nn.Embedding(5, 3, max_norm=1.0)))
    with pytest.raises(RecipeError, match=r"^strategy: fsdp: no parameter of the model is of floating point; take"):
        shards.refuse_model(nn.Linear(3, 2, dtype=torch.complex64))
    shards.refuse_model(net())
