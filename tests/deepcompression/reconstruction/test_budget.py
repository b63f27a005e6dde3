"""A size for all layers together, and what their outputs are worth."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from deepcompression.allocation.bit_costs import coded_bytes
from deepcompression.errors import StructureError
from deepcompression.reconstruction.budget import FARTHEST, Budget, Curve, budget_of
from deepcompression.reconstruction.importance import Importance, importance
from deepcompression.reconstruction.layer import Wanted
from deepcompression.reconstruction.reconstruct import Task, reconstruct


def _net() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, groups=24, bias=False), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 5))


SAMPLES = torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def _forward(model: nn.Module, batch: Tensor) -> Tensor:
    out: Tensor = model(batch)
    return out


def _importances(net: nn.Module) -> dict[str, Importance]:
    names = [name for name, one in net.named_parameters() if one.ndim > 1]
    return importance(net, names, lambda: SAMPLES.split(1), _forward)


def test_importance_tells_what_a_change_costs() -> None:
    """Beside the divergence of nets with changed weights: of a last layer within a tenth, in the mean of changes."""
    net = _net().eval()
    worth = _importances(net)["9.weight"]
    hidden = net[:-1](SAMPLES).detach()
    generator = torch.Generator().manual_seed(2)
    before = net[-1](hidden).log_softmax(1).detach()
    predicted, real = 0.0, 0.0
    for _ in range(200):
        change = 0.05 * torch.randn(5, 64, generator=generator)
        off = (hidden - hidden.mean(0)) @ change.T
        after = (net[-1](hidden) + off).log_softmax(1).detach()
        real += float((before.exp() * (before - after)).sum(1).mean())
        predicted += float((worth.outputs[:, None] * change.double().square() * worth.inputs).sum())
    assert predicted == pytest.approx(real, rel=0.35)


def test_importance_leaves_the_model_as_it_was() -> None:
    """No gradient stays, what learnt learns on, and BatchNorm's statistics do not move."""
    net = _net().train()
    net[0].weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    _importances(net)
    assert net.training and not net[0].weight.requires_grad and net[3].weight.requires_grad
    assert all(one.grad is None for one in net.parameters())
    assert all(torch.equal(one, net.state_dict()[name]) for name, one in before.items())


@pytest.mark.parametrize("method", ["linear", "kmeans"])
def test_a_budget_is_kept_and_spent_where_it_serves(method: str) -> None:
    """Coded bytes come to those of 4 bits for all alike, layers get unlike ones, and the net stays nearer."""
    net = _net().eval()
    worth = _importances(net)
    alike, made = copy.deepcopy(net), copy.deepcopy(net)
    task = Task(dict.fromkeys(worth, Wanted(bits=4, method="linear")), lambda: SAMPLES.split(20), _forward)
    reconstruct(alike, task)

    def size(model: nn.Module) -> int:
        return sum(coded_bytes(model.get_parameter(name), "adaptive") for name in worth)

    wanted = {name: Wanted(bits=8, method=method) for name in worth}  # type: ignore[arg-type]
    budget = budget_of({name: net.get_parameter(name).detach() for name in worth}, wanted, worth, size(alike))
    done = reconstruct(made, replace(task, wanted=wanted, importance=worth, budget=budget))
    assert 0.8 * size(alike) < size(made) <= size(alike)
    assert len({one.values for one in done.layers}) > 1
    before = net(SAMPLES).log_softmax(1).detach()

    def off(model: nn.Module) -> float:
        return float((before.exp() * (before - model(SAMPLES).log_softmax(1).detach())).sum())

    assert method == "kmeans" or off(made) < 0.7 * off(alike)  # codebooks take a fifth of so few bytes


def test_outputs_that_are_no_tensor_are_refused() -> None:
    """In one line."""
    with pytest.raises(StructureError, match="one tensor of floats"):
        importance(_net(), ["0.weight"], lambda: SAMPLES.split(1), lambda model, batch: [model(batch)])


def test_a_small_last_layer_does_not_pay_for_all_before_it() -> None:
    """What large layers took too much would leave nothing for it: the price of a bit stays near that of the first."""
    prices = torch.logspace(-6, 0, 40, dtype=torch.float64)
    curves = {
        "large": Curve(prices, 1e4 * (prices / 1e-6) ** -0.1),
        "last": Curve(prices, 100 * (prices / 1e-6) ** -0.1),
    }
    budget = Budget(5000.0, curves)
    first = budget.price({})
    late = budget.price({"large": (first, 5050.0)})
    assert first < late <= FARTHEST * first and budget.bounded(1e3, {"large": (first, 5050.0)}) == late
    assert budget.bounded(0.5, {}) == 0.5
