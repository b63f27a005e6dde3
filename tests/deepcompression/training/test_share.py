"""Batches that several processes share, gradients of several batches, and who is told what cannot be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from deepcompression.data.batch import portion
from deepcompression.errors import DataError, FactoryError, RecipeError
from deepcompression.training import team
from deepcompression.training.batches import Batches
from deepcompression.training.device import Compute
from deepcompression.training.loop import train
from deepcompression.training.plan import Plan
from deepcompression.training.problem import Problem
from deepcompression.training.share import Share

X = torch.arange(47.0).reshape(47, 1)
Y = torch.arange(47)


class Samples:
    """A data set that gives single samples, and notes which."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return X[index], Y[index]


@given(total=st.integers(1, 200), count=st.integers(1, 9))
def test_parts_are_the_batch(total: int, count: int) -> None:
    """Each sample is in one part that counts, weights add up to one, none is of a single sample if the batch is not."""
    shares = [Share(rank, count) for rank in range(count)]
    parts = [range(total)[share.of(total)] for share in shares if share.weight(total)]
    assert [one for part in parts for one in part] == list(range(total))
    assert sum(share.weight(total) for share in shares) == pytest.approx(1)
    assert all(len(range(total)[share.of(total)]) >= min(total, 2) for share in shares)


@pytest.mark.parametrize("kind", ["tensors", "samples", "loader"])
def test_processes_see_each_sample_once_in_the_order_of_one(kind: str) -> None:
    """Whatever the split is: the parts of a batch are the batch that one process has; others' samples are not read."""

    def batches(rank: int | None) -> tuple[list[Any], Any]:
        torch.manual_seed(3)
        made = Samples()
        split = {
            "tensors": (X, Y),
            "samples": made,
            "loader": DataLoader(TensorDataset(X, Y), 10, shuffle=True),
        }[kind]
        share = None if rank is None else Share(rank, 3)
        got = Batches(split, 10, Compute("cpu"), torch.Generator().manual_seed(1), share=share)
        assert len(got) == 5
        return list(got.shared()), made

    whole, _ = batches(None)
    parts = [batches(rank) for rank in range(3)]
    for number, ((x, y), _) in enumerate(whole):
        mine = [part[0][number] for part in parts]
        assert torch.equal(torch.cat([one[0] for one, weight in mine if weight]), x)
        assert torch.equal(torch.cat([one[1] for one, weight in mine if weight]), y)
        assert sum(weight for _, weight in mine) == pytest.approx(1)
    if kind == "samples":
        assert sorted(one for _, made in parts for one in made.read) == list(range(47))


def test_augmentation_draws_nothing_that_the_order_hangs_on() -> None:
    """Parts of unlike length, which draw unlike numbers, leave the order of the next epoch the same in all."""

    def noisy(batch: Any, generator: torch.Generator) -> Any:
        torch.rand(len(batch[0]), generator=generator)
        return batch

    orders = []
    for rank in range(3):
        share = Share(rank, 3)
        batches = Batches((X, Y), 10, Compute("cpu"), torch.Generator().manual_seed(1), noisy, share=share)
        for epoch in range(2):
            share.begin(7, epoch)
            list(batches.shared())
        assert batches.generator is not None
        orders.append(batches.generator.get_state())
    assert torch.equal(orders[0], orders[1]) and torch.equal(orders[0], orders[2])


def test_a_batch_that_cannot_be_cut_is_told() -> None:
    """What a sample of it is, nobody knows: each process would compute all of it."""
    assert portion({"x": X, "more": [*range(47)]}, slice(2, 4), 47)["more"] == [2, 3]
    with pytest.raises(DataError, match=r"so that devices cannot share it; .* or train on one device"):
        portion((X, X[:5]), slice(2, 4), 47)


@pytest.mark.parametrize("last", [48, 44])
def test_accumulated_gradients_are_those_of_a_larger_batch(last: int) -> None:
    """Two batches make the step that one of twice the samples makes; schedules count steps; a rest is a step too."""
    x = torch.randn(last, 4, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)

    def trained(batch: int, accumulate: int) -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        problem = Problem((x, y), (x, y), batch_size=batch)
        sgd = {"factory": "torch.optim:SGD", "kwargs": {"lr": 0.5}}
        plan = Plan(3, sgd, "linear", gradient_clip=0.3, compute=Compute("cpu"), accumulate=accumulate)
        return model, train(model, problem, plan)

    (whole, one), (parts, two) = trained(16, 1), trained(8, 2)
    assert [row["lr"] for row in two.fit.history] == [row["lr"] for row in one.fit.history]
    if last == 48:
        torch.testing.assert_close(parts.weight, whole.weight)


def test_added_gradients_have_the_memory_format_of_their_parameters(tmp_path: Path) -> None:
    """torch's fused optimizers go by memory: a gradient in another format is of other weights, and no error says so."""
    weight = nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last))
    gradient = torch.randn(4, 3, 2, 2)
    weight.grad = gradient.to(memory_format=torch.channels_last)
    store = torch.distributed.FileStore(str(tmp_path / "place"), 1)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        alone = team.Team(SimpleNamespace(global_rank=0, world_size=1))
        alone.add_gradients(torch.optim.AdamW([weight], fused=True))
    finally:
        torch.distributed.destroy_process_group()
    assert weight.grad.stride() == weight.stride() and torch.equal(weight.grad, gradient)


def test_devices_that_are_not_here_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line, before anything trains."""
    monkeypatch.setattr(team, "import_module", lambda name: object())
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    team.refuse(2, "cpu", "cpu")
    for given_, message in [
        ((2, "auto", "mps"), "devices: 2: several are GPUs of CUDA, or processes on the CPU; mps has one device"),
        ((2, "cuda:1", "cuda"), "devices: 2, but device: cuda:1 names one; say cuda, or devices: 1"),
        ((2, "cuda", "cuda"), "devices: 2: this machine has 1"),
    ]:
        with pytest.raises(RecipeError) as told:
            team.refuse(*given_)
        assert str(told.value) == message

    def missing(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(team, "import_module", missing)
    with pytest.raises(RecipeError, match=r"^devices: several need lightning-fabric: pip install 'deep-compression\["):
        team.refuse(2, "cpu", "cpu")


def test_a_compiler_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the key that asked for it, not by the step."""
    from torch._dynamo.exc import BackendCompilerFailed

    def compiled(model: nn.Module) -> Any:
        def fails(*_: Any) -> Any:
            raise BackendCompilerFailed(lambda: None, RuntimeError("no C++ compiler"), None)

        return fails

    monkeypatch.setattr(torch, "compile", compiled)
    problem = Problem((X, Y % 3), (X, Y % 3), batch_size=16)
    plan = Plan(1, {"factory": "torch.optim:SGD", "kwargs": {"lr": 0.1}}, compute=Compute("cpu", compiled=True))
    with pytest.raises(FactoryError, match=r"^compile: torch.compile fails: .*no C\+\+ compiler.*; leave it out$"):
        train(nn.Linear(1, 3), problem, plan)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads
def test_workers_read_the_same_batches() -> None:
    """How many processes read the data decides nothing."""
    a, b = (
        [x for x, _ in Batches(Samples(), 10, Compute("cpu", workers=workers), torch.Generator().manual_seed(1))]
        for workers in (0, 1)
    )
    assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True))
