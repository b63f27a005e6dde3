"""What channels are worth by data, gradients and BatchNorm, against the same written out; criteria of the user's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network.channels import channel_groups
from deepcompression.network.resizing import Group, Member
from deepcompression.network.state import plain_state
from deepcompression.pruning import worth as library
from deepcompression.pruning.criteria import of_filters
from deepcompression.pruning.prune import refresh
from deepcompression.pruning.taylor import Taylor
from deepcompression.training.context import context_of
from deepcompression.training.device import Compute
from deepcompression.training.method import Context
from deepcompression.training.problem import Problem


class Residual(nn.Module):
    """Two convolutions make the channels of a sum, each with a norm of its own; a flattening takes them in."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.first = nn.Conv2d(2, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.two, self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(16, 3)
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor([0.1, -3.0, 1.0, 2.0]))
            self.second.weight.copy_(torch.tensor([0.5, 1.0, -1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.one(x)).relu()
        return self.head((self.second(self.two(x)) + x).relu().flatten(1))


@pytest.fixture
def net() -> Residual:
    torch.manual_seed(0)
    return Residual()


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(32, 2, 2, 2), torch.randint(3, (32,))


@pytest.fixture
def context(data: tuple[Tensor, Tensor]) -> Context:
    return context_of(Problem(data, None, batch_size=16), Compute("cpu"))


def found(name: str, net: nn.Module, context: Context, data: Any) -> Tensor:
    """What the one group of channels is worth."""
    groups, _ = channel_groups(net, lambda one: one(data[0]))
    assert len(groups) == 1
    made = library.worth_of(name, context)
    refresh(made, net)
    return made(groups[0], plain_state(net))


def test_scales_of_all_norms_behind_a_sum_count(net: Residual, context: Context, data: Any) -> None:
    """The mean of their magnitudes."""
    assert torch.allclose(found("bn_scale", net, context, data), torch.tensor([0.3, 2.0, 1.0, 1.0]).double())


def test_channels_that_are_often_zero_are_worth_little(net: Residual, context: Context, data: Any) -> None:
    """By all that layers take in of them, a place at a time behind a flattening."""
    came, seen = found("apoz", net, context, data), dict[str, Tensor]()
    assert net.training
    for name, layer in (("two", net.two), ("head", net.head)):
        layer.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0].detach() != 0}))
    net.eval()(data[0])
    two, head = seen["two"].double().mean((0, 2, 3)), seen["head"].double().reshape(32, 4, 4).mean((0, 2))
    assert torch.allclose(came, (two + head) / 2)


def test_gradients_times_weights_are_summed_over_a_filter(net: Residual, context: Context, data: Any) -> None:
    """Batches are told apart; the optimizer's own gradients stay."""
    net.one.weight.grad = torch.ones_like(net.one.weight)
    came, total = found("taylor", net, context, data), torch.zeros(4).double()
    net.eval()
    for start in (0, 16):
        loss = nn.functional.cross_entropy(net(data[0][start : start + 16]), data[1][start : start + 16])
        for layer in (net.one, net.two):
            gradient = torch.autograd.grad(loss, layer.weight, retain_graph=True)[0]
            total += (gradient * layer.weight).detach().abs().flatten(1).sum(1).double() / 4
    assert torch.allclose(came, total, rtol=1e-4) and bool((net.one.weight.grad == 1).all())
    with pytest.raises(StructureError, match="criterion taylor needs the training's loss, which a loop of your own"):
        Taylor(Context(samples=lambda _: [data])).refresh(net)


def test_weights_times_inputs_are_summed_over_a_filter(net: Residual, context: Context, data: Any) -> None:
    """Wanda's score of each weight, of both layers that make the channels."""
    first = net.one.weight.abs() * data[0].square().mean((0, 2, 3)).sqrt()[:, None, None]
    inner = net.eval().first(net.one(data[0])).relu().square().mean((0, 2, 3)).sqrt()
    second = net.two.weight.abs() * inner[:, None, None]
    wanted = (first.flatten(1).sum(1) + second.flatten(1).sum(1)) / 2
    assert torch.allclose(found("wanda", net, context, data), wanted.double(), rtol=1e-4)


def test_the_mixture_takes_every_fourth_by_its_norm() -> None:
    """The others by the distances to those that are left; the order says how late each goes."""
    filters = torch.tensor([[9.0, 0], [10, 0], [10.5, 0], [0.1, 0], [30, 0], [0, 25], [11, 0], [-40, 0]]).double()
    left, gone = list(range(8)), []
    while left:
        norm = {one: float(filters[one].norm()) for one in left}
        sums = {one: float(sum((filters[one] - filters[other]).norm() for other in left)) for one in left}
        by = norm if len(gone) % 4 == 0 else sums
        gone.append(min(left, key=lambda one: by[one]))
        left.remove(gone[-1])
    assert gone[0] == 3 and library.fpgm_mix(filters).argsort().tolist()[:6] == gone[:6]
    assert library.fpgm_mix(filters[:1]).tolist() == [0]


@pytest.mark.parametrize("shape", ["weight", "filter"])
def test_a_score_of_the_users_is_of_weights_or_of_filters(shape: str) -> None:
    """A number for each weight is summed; one for each filter is taken as it is; another shape is refused."""
    group = Group(3, (Member("a", 1, "out", (0, 1, 2)),))
    weight = torch.arange(6.0).reshape(2, 3)
    score = (lambda _, one: one) if shape == "weight" else (lambda _, one: one.sum(0))
    assert library.Summed(score)(group, {"a": weight}).tolist() == [3, 5, 7]
    with pytest.raises(StructureError, match=r"a: the score's shape is \(2,\), expected \(2, 3\)"):
        library.Summed(lambda _, one: one.sum(1))(group, {"a": weight})


def test_what_is_no_number_is_refused_and_every_name_is_made(context: Context) -> None:
    """NaN would rank anywhere; a name of the list that makes nothing would fail in a recipe."""
    group = Group(2, (Member("a", 0, "out", (0, 1)),))
    with pytest.raises(StructureError, match=r"a: the criterion gives NaN for some of its channels"):
        library.ranked(group, {"a": torch.ones(2, 2)}, lambda *_: torch.tensor([1.0, torch.nan]))
    assert all(callable(library.worth_of(name, context)) for name in of_filters())
