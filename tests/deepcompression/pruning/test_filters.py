"""Filter pruning against scores written out in numpy, and thin nets against masked ones."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcompression.errors import InvariantError, StructureError
from deepcompression.measure.flops import count
from deepcompression.models import paper
from deepcompression.network.channels import channel_groups
from deepcompression.network.edits.apply import apply
from deepcompression.network.resizing import Group, Member
from deepcompression.pruning import filters as library
from deepcompression.pruning import worth
from deepcompression.pruning.limits import choose_within

FPGM, L1 = worth.by_filters(worth.fpgm), worth.by_filters(worth.l1)


class Net(nn.Module):
    """Some layers around a forward of the test's own."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.run = run

    def forward(self, images: Tensor) -> Tensor:
        return self.run(self, images)


def conv(taken: int, made: int, size: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(taken, made, size, padding=size // 2, **options)


def varied(model: nn.Module) -> nn.Module:
    """Every tensor at random, running statistics too, in training mode as a factory gives it."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - (0 if name.endswith("running_var") else 0.5))
    return model


def outputs(model: nn.Module) -> Tensor:
    return model(torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


def residual() -> nn.Module:
    """A block with a shortcut that has a convolution of its own."""

    def run(net: Any, x: Tensor) -> Tensor:
        x = F.relu(net.stem(x))
        return net.head(F.relu(net.norm(net.two(F.relu(net.one(x)))) + net.short(x)).mean((2, 3)))

    layers = {"one": conv(8, 6, stride=2), "two": conv(6, 10, bias=False), "norm": nn.BatchNorm2d(10)}
    return varied(Net(run, stem=conv(3, 8), **layers, short=conv(8, 10, 1, stride=2), head=nn.Linear(10, 5)))


def depthwise() -> nn.Module:
    layers = [conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8, groups=8), nn.BatchNorm2d(8), nn.ReLU6()]
    return varied(nn.Sequential(*layers, conv(8, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 5)))


def concat() -> nn.Module:
    def run(net: Any, x: Tensor) -> Tensor:
        x = net.stem(x)
        return net.head(net.norm(torch.cat([x, net.one(F.relu(x))], 1)).mean((2, 3)))

    return varied(Net(run, stem=conv(3, 6), one=conv(6, 4), norm=nn.BatchNorm2d(10), head=nn.Linear(10, 5)))


def grouped() -> nn.Module:
    return varied(
        nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5))
    )


def of(criterion: str, rows: Any) -> Any:
    """A criterion by its definition: each filter with each other."""
    if criterion == "fpgm":
        return np.array([sum(np.linalg.norm(one - other) for other in rows) for one in rows])
    return np.array([np.linalg.norm(one, 1 if criterion == "l1" else 2) for one in rows])


@pytest.mark.parametrize("criterion", ["fpgm", "l1", "l2"])
def test_the_filters_that_stay_are_those_of_the_largest_sums(criterion: str):
    """Both convolutions that make a residual sum have a say in each of its channels; density is exact."""
    model = residual()
    state = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
    choices, left = library.choose(model, {"default": 0.4}, worth.by_filters(worth.criterion_of(criterion)), outputs)
    assert list(left) == ["head"]
    kept = {one.name: (set(one.made_by), one.channels, one.kept) for one in library.account_of(choices)}
    assert kept == {
        "stem.weight": ({"stem.weight"}, 8, 3),
        "one.weight": ({"one.weight"}, 6, 2),
        "two.weight": ({"two.weight", "short.weight"}, 10, 4),
    }
    for choice in choices:
        sums = sum(of(criterion, state[one.tensor].reshape(len(state[one.tensor]), -1)) for one in choice.group.makers)
        assert list(choice.kept) == sorted(np.argsort(-np.asarray(sums), kind="stable")[: len(choice.kept)])


@pytest.mark.parametrize("make", [residual, depthwise, concat, grouped])
@pytest.mark.parametrize("density", [0.01, 0.5])
def test_the_thin_net_gives_what_the_masked_one_does(make: Callable[[], nn.Module], density: float):
    """Zeroed or removed is the same function, of fewer weights; one channel of each group stays in any case."""
    model = make()
    before = copy.deepcopy(model.state_dict())
    choices, _ = library.choose(model, {"default": density}, FPGM, outputs)
    assert [len(one.kept) for one in choices] == [max(round(density * one.group.channels), 1) for one in choices]
    state, zeroed = library.masked(model, choices)
    places = library.cut(model, choices)
    assert places is not None and all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    thin, masked = copy.deepcopy(model), copy.deepcopy(model)
    masked.load_state_dict(state)
    apply(thin, library.edit_of(model, places))
    thin.load_state_dict(library.cut_state(before, places))
    assert library.refuse_unlike(thin, masked, outputs) < 1e-5
    assert thin.training and sum(one.numel() for one in thin.parameters()) <= 0.6 * sum(
        map(Tensor.numel, before.values())
    )
    for choice in choices:  # the filters are zero themselves, and not only unread
        for maker in choice.group.makers:
            gone = [place for place, one in enumerate(maker.index) if one >= 0 and one not in choice.kept]
            assert maker.tensor in zeroed and not state[maker.tensor].index_select(maker.axis, torch.tensor(gone)).any()
    with pytest.raises(InvariantError, match="other outputs than the masked one"):
        library.refuse_unlike(thin, varied(make()), outputs)


def test_a_channel_of_zeros_goes_first_and_nothing_to_remove_is_no_edit():
    """A dead filter may lie far from the others; `density: 1` changes nothing."""
    model = depthwise()
    with torch.no_grad():
        for name in ("0.weight", "3.weight"):
            model.get_parameter(name)[2:4] = 0
    choices, _ = library.choose(model, {"0": 0.75, "default": 1.0}, FPGM, outputs)
    assert choices[0].kept == (0, 1, 4, 5, 6, 7) and len(choices[1].kept) == 6
    assert library.cut(model, [choices[1]]) is None and library.masked(model, [choices[1]])[1] == []


def test_weights_that_make_some_of_the_channels_have_a_say_in_these_alone():
    """Behind a padded shortcut a weight makes a part of the channels: the others are not worth less for it."""
    weight, part = torch.ones(4, 3), torch.full((2, 3), 2.0)
    group = Group(4, (Member("a", 0, "out", (0, 1, 2, 3)), Member("b", 0, "out", (2, -1)), Member("c", 1, "in", (0,))))
    assert worth.importance(group, {"a": weight, "b": part}, worth.l1).tolist() == [3, 3, 4.5, 3]
    twice = Member("a", 0, "out", (1, 0, 1, -1))
    channels, rows = worth.filters_of(torch.arange(4.0)[:, None], twice)
    assert channels.tolist() == [0, 1] and rows.tolist() == [[1, 0], [0, 2]]


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"head": 0.5}, "head.weight: its channels cannot be removed: "),
        ({"two": 0.5, "short": 0.4}, "two.weight and short.weight make the same channels: give both one density"),
        ({"nowhere": 0.5}, "pattern 'nowhere' matches no tensor"),
    ],
)
def test_densities_that_mean_nothing_are_refused(table: dict[str, float], words: str):
    """A name must mean channels that can go, and coupled layers one density; the default gives way to a name."""
    model = residual()
    groups, left = channel_groups(model, outputs)
    with pytest.raises(StructureError, match=words):
        library.densities(model, table, groups, left)
    found = library.densities(model, {"short": 0.5, "default": 0.9}, groups, left)
    assert [value for _, value in found] == [0.9, 0.9, 0.5]
    with pytest.raises(StructureError, match=r"no channels of the model can be removed: 1: "):
        alone = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        library.densities(alone, {"default": 0.5}, *channel_groups(alone, outputs))
    with pytest.raises(StructureError, match="criterion 'l3' is not known for filters; expected one of fpgm, l1, l2"):
        worth.criterion_of("l3")


def macs(model: nn.Module, _: object = None) -> int:
    return count(model, [torch.zeros(1, 1, 8, 8)]).macs


@pytest.mark.parametrize("part", [0.8, 0.5, 0.1])
def test_the_density_that_keeps_to_the_multiplications_is_found(part: float) -> None:
    """At most so many, and with the next larger density more; the thin net is the one that was counted."""
    torch.manual_seed(0)
    model = paper.digits_net().eval()
    run = lambda one: one(torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)))  # noqa: E731
    choices, left = choose_within(model, library.Limit(part, macs), L1, run)
    thin = library.thinned(model, choices)
    assert 0.9 * part * macs(model) < macs(thin) <= part * macs(model) and "fc2" in left
    density = max(len(one.kept) / one.group.channels for one in choices)
    more, _ = library.choose(model, {"default": density + 0.02}, L1, run)
    assert macs(library.thinned(model, more)) > part * macs(model)
    state, _ = library.masked(model, choices)
    double = copy.deepcopy(model)
    double.load_state_dict(state)
    assert torch.allclose(run(thin), run(double), atol=1e-5)


def test_multiplications_that_cannot_be_reached_are_refused() -> None:
    """One channel in each group is left in any case."""
    model = paper.digits_net().eval()
    with pytest.raises(StructureError, match=r"prune: flops: 1e-06 is out of reach: with one channel in each group"):
        choose_within(model, library.Limit(1e-6, macs), L1, lambda one: one(torch.zeros(2, 1, 8, 8)))


def test_parameters_are_kept_to_as_multiplications_are() -> None:
    """The largest density at which no more of them stay."""
    model = paper.digits_net().eval()
    run = lambda one: one(torch.zeros(2, 1, 8, 8))  # noqa: E731
    limit = library.Limit(0.3, library.parameters_of, "parameters", "parameters")
    thin = library.thinned(model, choose_within(model, limit, L1, run)[0])
    whole = library.parameters_of(model)
    assert 0.9 * 0.3 * whole < library.parameters_of(thin) <= 0.3 * whole
    with pytest.raises(StructureError, match=r"parameters: 1e-06 is out of reach: .* of the parameters stay"):
        choose_within(model, dataclasses.replace(limit, part=1e-6), L1, run)


@pytest.mark.parametrize("by", ["density", "parameters"])
def test_as_many_channels_stay_as_processors_like(by: str) -> None:
    """Multiples of 4, the nearest to a density; all of a group that has fewer; within a limit as well."""
    model = varied(nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 3), nn.ReLU(), conv(3, 10), nn.ReLU(), conv(10, 4)))
    if by == "density":
        choices, _ = library.choose(model, {"default": 0.4}, L1, outputs, multiple=4)
        assert [len(one.kept) for one in choices] == [8, 3, 4]
        return
    limit = library.Limit(0.6, library.parameters_of, "parameters", "parameters")
    choices, _ = choose_within(model, limit, L1, outputs, multiple=4)
    assert [len(one.kept) for one in choices] in ([8, 3, 8], [8, 3, 4])
    assert library.parameters_of(library.thinned(model, choices)) <= 0.6 * library.parameters_of(model)
    with pytest.raises(StructureError, match=r"parameters: 0.1 is out of reach: with 4 channels in each group"):
        choose_within(model, dataclasses.replace(limit, part=0.1), L1, outputs, multiple=4)
