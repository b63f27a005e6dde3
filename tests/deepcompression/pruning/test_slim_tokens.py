"""slim without samples: whatever the axes of a model mean, its outputs stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcompression.pruning.slim import slim

T, C = 4, 4  # as many tokens as features: no size tells them apart


class Net(nn.Module):
    """Layers whose sizes all fit each other, and a forward of the test's own."""

    def __init__(self, between: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, 2)
        self.norm, self.conv, self.point = nn.BatchNorm1d(C), nn.Conv2d(1, C, 3, padding=1), nn.Conv1d(C, C, 1)
        self.wide = nn.Linear(C * C, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.between(self, x)


MODELS: dict[str, Callable[..., Tensor]] = {
    "features last": lambda n, x: n.c(F.relu(n.b(F.relu(n.a(x))))),
    "norm over tokens": lambda n, x: n.c(F.relu(n.norm(n.a(x)))),
    "norm over tokens, folded": lambda n, x: n.c(n.norm(n.a(x))),
    "norm over features": lambda n, x: n.c(n.norm(n.a(x.mean(1)))),
    "norm over flat tokens": lambda n, x: n.c(n.norm(n.a(x).view(-1, C))),
    "token mixer": lambda n, x: n.c(n.b(n.a(x.transpose(1, 2)).relu()).transpose(1, 2)),
    "transpose between": lambda n, x: n.c(n.a(x).relu().transpose(1, 2)),
    "permute between": lambda n, x: n.c(n.a(x).relu().permute(0, 2, 1)),
    "view across": lambda n, x: n.wide(n.a(x).relu().view(x.size(0), -1)),
    "flatten across": lambda n, x: n.wide(n.a(x).relu().flatten(1)),
    "reshape, other rows": lambda n, x: n.c(n.a(x).relu().reshape(T, -1, C)),
    "einsum": lambda n, x: n.c(torch.einsum("btc,btd->bcd", n.a(x), x)),
    "mean over tokens": lambda n, x: n.c(n.a(x).relu().mean(1)),
    "mean over features": lambda n, x: n.c(n.a(x).relu().mean(2)),
    "pool over features": lambda n, x: n.c(F.avg_pool1d(n.a(x).relu(), 1)),
    "linear then conv": lambda n, x: n.c(n.point(n.a(x)).transpose(1, 2)),
    "conv then linear": lambda n, x: n.c(n.point(x).relu()),
    "conv, flatten tokens": lambda n, x: n.wide(n.conv(x[:, None]).relu().flatten(2)),
    "conv, flatten": lambda n, x: n.c(n.b(n.conv(x[:, None]).relu().mean((2, 3)))),
    "conv, open view": lambda n, x: n.wide(n.conv(x[:, None]).relu().view(-1, C * C)),
    "conv, open view of places": lambda n, x: n.c(n.conv(x[:, None]).relu().view(-1, C)),
    "conv, reshape then norm": lambda n, x: n.c(n.norm(n.conv(x[:, None]).reshape(-1, C))),
    "softmax": lambda n, x: n.c(n.a(x).softmax(1)),
    "gate": lambda n, x: n.c(n.a(x) * torch.sigmoid(n.b(x))),
    "unsqueeze": lambda n, x: n.c(n.a(x).unsqueeze(1).relu().squeeze(1)),
    "slice": lambda n, x: n.c(n.a(x).relu()[:, :, [1, 0, 3, 2]]),
    "roll": lambda n, x: n.c(n.a(x).relu().roll(1, 2)),
    "flip": lambda n, x: n.c(n.a(x).flip(-1)),
    "cat": lambda n, x: n.wide(torch.cat([n.a(x), x, x, x], 2)),
    "prelu over tokens": lambda n, x: n.c(F.prelu(n.a(x), n.norm.weight)),
}


@pytest.mark.parametrize("kind", MODELS)
def test_outputs_stay_whatever_the_axes_mean(kind: str):
    """Units in wrong places are a wrong answer without a word: without samples nothing compares outputs."""
    torch.manual_seed(0)
    model = Net(MODELS[kind]).eval()
    with torch.no_grad():
        for tensor in (model.norm.running_mean, model.norm.running_var, model.norm.weight, model.norm.bias):
            tensor.uniform_(0.5, 2)
        for layer in (model.a, model.b, model.conv, model.point):
            layer.weight[1] = 0  # a unit that says the same of everything
            layer.weight[2] *= 3
        for layer in (model.b, model.c):
            layer.weight[:, 3] = 0  # a unit that nobody hears
        x = torch.randn(3, T, C)
        before = model(x)
        slim(model)
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["norm over tokens", "norm over tokens, folded"])
def test_with_samples_units_behind_a_norm_over_tokens_that_nobody_hears_go(kind: str):
    """Each token has its own statistics: a unit stays apart, and one that is constant is another one at each token."""
    torch.manual_seed(0)
    model = Net(MODELS[kind]).eval()
    x = torch.randn(3, T, C)
    with torch.no_grad():
        for tensor in (model.norm.running_mean, model.norm.running_var, model.norm.weight, model.norm.bias):
            tensor.uniform_(0.5, 2)
        model.a.weight[1] = 0
        model.c.weight[:, 3] = 0
        before = model(x)
        slimmed = slim(model, outputs=lambda net: net(x))
        [layer] = [one for one in slimmed.layers if one.name == "a"]
        assert (layer.dead, layer.folded, layer.constant) == (1, 0, 1)
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-4)


def test_layers_over_tokens_whose_features_stay_last_are_still_slimmed():
    """What is known stays followed: refusing everything would be safe too."""
    model = Net(MODELS["features last"])
    with torch.no_grad():
        model.b.weight[:, 3] = 0
    assert slim(model).layers[0].dead == 1
