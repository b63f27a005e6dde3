"""Filters that go while a model trains: little by little or softly, as zeros or for real; and sparse scales."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainings import trained

from deepcompression.errors import StructureError
from deepcompression.measure.flops import macs_in
from deepcompression.network.state import plain_state
from deepcompression.pruning.bn_l1 import BnL1
from deepcompression.pruning.filters import Limit
from deepcompression.pruning.filters_in_training import FilterPruning
from deepcompression.pruning.gradual import GradualPruning
from deepcompression.quantization.in_training import QuantizedTraining
from deepcompression.structure.constraints import structured
from deepcompression.torch import load_into, save
from deepcompression.training.device import Compute
from deepcompression.training.problem import Problem

SGD = {"factory": "torch.optim:SGD", "kwargs": {"lr": 0.05, "momentum": 0.9}}


class Net(nn.Module):
    """A convolution, a block with a shortcut, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.one, self.inner = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two, self.outer = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 3)
        for norm in (self.norm, self.inner, self.outer):
            nn.init.constant_(norm.bias, 0.5)  # a filter of zeros gets gradients through ReLU

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.outer(self.two(self.inner(self.one(x)).relu()))).relu()
        return self.head(self.pool(x).flatten(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def problem() -> Problem:
    x = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    pair = (x, x.mean((1, 2, 3)).gt(0).long() + x[:, 0, 0, 0].gt(1).long())
    return Problem(pair, pair, batch_size=16)


def run(model: nn.Module, *methods: Any, epochs: int = 3, **given: Any) -> Any:
    return trained(model, problem(), list(methods), epochs=epochs, optimizer=SGD, **given)


def switching(wanted: Callable[[int], list[int]]) -> Callable[[str, Tensor], Tensor]:
    """A score of filters that at its n-th look at the model finds some of them important."""

    class Score:
        looks = -1

        def refresh(self, _: nn.Module) -> None:
            self.looks += 1

        def __call__(self, _: str, weight: Tensor) -> Tensor:
            return torch.tensor([float(one in wanted(self.looks)) for one in range(len(weight))])

    return Score()


@pytest.mark.parametrize("soft", [False, True])
def test_the_thin_net_is_what_a_file_makes_of_the_users_model(soft: bool, tmp_path: Path) -> None:
    """Half of the multiplications at most, tensors that are smaller, and the same outputs from the file."""
    model, whole = net(), net()
    method = FilterPruning(limit=Limit(0.5, macs_in), criterion="l1", soft=soft, updates=4, remove=True)
    # As on GPUs: of the pooling of such pictures the graph tells less.
    ((_, account),) = run(model, method, compute=Compute("cpu", channels_last=True)).accounts
    assert list(account.left) == ["head.weight"] and account.notes[0].startswith(
        "prune: without the channels that go 0."
    )
    images = problem().train[0]
    forward = lambda one: one(images[:2])  # noqa: E731
    assert macs_in(model, forward) <= 0.5 * macs_in(whole, forward) and account.report["flops"] <= 0.5
    assert account.report["gap"] < 1e-5 and len(account.edits) == 1
    assert account.arranged(plain_state(whole))["stem.weight"].shape == model.stem.weight.shape
    save(plain_state(model), tmp_path / "thin.dcz", edits=account.edits)
    loaded = load_into(net(), tmp_path / "thin.dcz").eval()
    assert torch.allclose(loaded(images), model.eval()(images), atol=1e-6)


def test_zeros_come_back_only_where_they_are_soft() -> None:
    """What went at the first choice learns on until the last one, or never again."""
    for soft, expected in ((False, (0, 1, 2, 3)), (True, (4, 5, 6, 7))):
        model = net()
        score = switching(lambda look: [0, 1, 2, 3] if look < 3 else [4, 5, 6, 7])
        method = FilterPruning(0.5, score=score, curve="constant", ramp=0.5, updates=4, soft=soft)
        account = run(model, method).accounts[0][1]
        assert all(one.kept == expected for one in method._choices) and method.figures(model) == {"density": 0.5}
        for name in ("stem.weight", "one.weight", "two.weight", "two.bias", "outer.weight", "outer.bias"):
            alive = model.get_parameter(name).detach().reshape(8, -1).any(1)
            assert tuple(alive.nonzero().flatten().tolist()) == expected, name
        assert set(account.structure) >= {"stem.weight", "one.weight", "two.weight", "head.weight"}


def test_channels_go_little_by_little_and_never_more_than_asked() -> None:
    """Densities by name; a layer that none is for stays whole; zeros of before stay."""
    model, seen = net(), []
    with torch.no_grad():
        model.one.weight[:, 0] = 0
    method = FilterPruning({"one": 0.25}, ramp=0.9, curve="linear", updates=9)
    after = method.after_step
    method.after_step = lambda *given: (seen.append(len(method._choices[0].kept)), after(*given))  # type: ignore[method-assign]
    run(model, method, structure=structured(["one.weight"]))
    assert seen[0] == 8 and seen == sorted(seen, reverse=True) and len(set(seen)) > 3 and seen[-1] == 2
    assert not model.one.weight[:, 0].any() and bool(model.stem.weight.reshape(8, -1).any(1).all())
    assert int(model.one.weight.reshape(8, -1).any(1).sum()) == 2


@pytest.mark.parametrize(
    ("method", "more", "words"),
    [
        (FilterPruning(), [], "expected either a density of filters or a limit"),
        (FilterPruning(0.5, limit=Limit(0.5, macs_in)), [], "expected either a density of filters or a limit"),
        (FilterPruning(0.5, curve="up"), [], "curve 'up' is not known"),
        (FilterPruning(0.5, updates=0), [], "expected updates and a multiple of 1 or more, got 0 and 1"),
        (FilterPruning(0.5, criterion="l3"), [], "criterion 'l3' is not known for filters"),
        (FilterPruning({"head": 0.5}), [], "head.weight: its channels cannot be removed"),
        (FilterPruning(0.5), [GradualPruning(0.5)], "prune and prune both claim its sparsity"),
        (FilterPruning(0.5, remove=True), [QuantizedTraining(4, None)], "goes without a method that changes values"),
        (FilterPruning(limit=Limit(1e-6, macs_in)), [], "flops: 1e-06 is out of reach"),
    ],
)
def test_what_cannot_be_is_refused_before_a_step(method: Any, more: list[Any], words: str) -> None:
    """In one line, and the model is as it was."""
    model = net()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(StructureError, match=words):
        run(model, method, *more)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_what_is_shared_stays_so() -> None:
    """Sharing comes after the removal of filters."""
    with pytest.raises(StructureError, match=r"one.weight: is shared already; filters are pruned before share"):
        run(net(), FilterPruning(0.5), structure=structured([], ["one.weight"]))


def test_scales_that_matter_little_are_drawn_to_zero() -> None:
    """More small ones than without the penalty; a model without scales is told."""
    small = {}
    for penalty in (0.0, 1.0):
        model = net()
        with torch.no_grad():
            model.inner.weight[:4] = 0.05
        ((method, account),) = run(model, BnL1(penalty), epochs=6).accounts
        assert account.report == method.figures(model)
        small[penalty] = float(sum(one.weight.detach().abs().sum() for one in (model.norm, model.inner, model.outer)))
    assert small[1.0] < 0.8 * small[0.0]
    with pytest.raises(StructureError, match="bn_l1: the model has no BatchNorm with scales; leave it out"):
        trained(nn.Linear(3, 2), problem(), [BnL1()], epochs=1, optimizer=SGD)
    with pytest.raises(StructureError, match="bn_l1: penalty -1; expected 0 or more"):
        run(net(), BnL1(-1))
