"""Channels of all layers compete."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deepcompression.errors import StructureError
from deepcompression.measure.flops import macs_in
from deepcompression.network.channels import channel_groups
from deepcompression.pruning.across import choose_across
from deepcompression.pruning.filters import Limit, parameters_of, thinned
from deepcompression.pruning.fisher import Fisher
from deepcompression.pruning.worth import by_filters, l1
from deepcompression.training.context import context_of
from deepcompression.training.device import Compute
from deepcompression.training.method import Context
from deepcompression.training.problem import Problem


def net() -> nn.Sequential:
    """The first two layers as costly, the second's filters worth a tenth; the third cheap."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.Linear(6, 2)).eval()
    with torch.no_grad():
        model[2].weight.mul_(1e-3)
    return model


@pytest.mark.parametrize(("part", "cost"), [(0.8, macs_in), (0.5, macs_in), (0.9, parameters_of)])
def test_what_is_worth_least_for_what_it_costs_goes_first(part: float, cost: object) -> None:
    """Filters of the layer of small weights, and no more than must; the cost is kept to."""
    model, x = net(), torch.randn(2, 3, 6, 6)
    run = lambda one: one(x)  # noqa: E731
    limit = Limit(part, cost)  # type: ignore[arg-type]
    choices, left = choose_across(model, limit, by_filters(l1), run)
    kept = {one.group.makers[0].tensor: len(one.kept) for one in choices}
    assert kept["0.weight"] == 8 and kept["6.weight"] == 6 and 1 <= kept["2.weight"] < 8 and list(left) == ["7"]
    whole = limit.cost(model, run)
    assert limit.cost(thinned(model, choices), run) <= part * whole
    [small] = [one for one in choices if one.group.makers[0].tensor == "2.weight"]
    worth = model[2].weight.detach().abs().sum((1, 2, 3))
    assert worth[list(small.kept)].min() >= worth[[one for one in range(8) if one not in small.kept]].max()


def test_what_is_out_of_reach_is_refused() -> None:
    """As with one density for all."""
    with pytest.raises(StructureError, match=r"flops: 0.001 is out of reach"):
        choose_across(net(), Limit(0.001, macs_in), by_filters(l1), lambda one: one(torch.randn(2, 3, 6, 6)))


def test_fisher_is_the_square_of_the_gradient_of_a_gate() -> None:
    """A few samples at a time, against gates behind filters and before what takes them in, by autograd; the mode and
    the weights stay.
    """
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 6, 6), torch.randint(0, 2, (8,))
    model = net().train()
    for layer in (model[0], model[2]):
        layer.bias = None
    context = context_of(Problem((x, y), None, batch_size=8), Compute("cpu"))
    worth = Fisher(context)
    worth.refresh(model)
    assert model.training
    groups, _ = channel_groups(model.eval(), lambda one: one(x))
    total = torch.zeros(8, dtype=torch.float64)
    for images, labels in zip(x.split(4), y.split(4), strict=True):
        gate = torch.ones(8, requires_grad=True)
        out = model[1:](model[0](images) * gate[:, None, None])
        total += torch.autograd.grad(nn.functional.cross_entropy(out, labels), gate)[0].double().square() / 2
    assert torch.allclose(worth(groups[0], model.state_dict()), total, rtol=1e-3)


def test_fisher_takes_a_batch_whole_where_it_cannot_be_cut() -> None:
    """What of a container of another library is a sample nobody knows."""
    batch = (torch.randn(8, 3, 6, 6), torch.randint(0, 2, (8,)), torch.randn(3, 2))
    lost = lambda model, one: nn.functional.cross_entropy(model(one[0]), one[1])  # noqa: E731
    worth = Fisher(Context(samples=lambda _: [batch], loss=lost))
    worth.refresh(net())
    assert all(len(one) == 1 for one in worth.sums.values())
