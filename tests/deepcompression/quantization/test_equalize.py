"""Channels of one range: which ones can be scaled, that nothing else changes, and that one scale serves them then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompression.network.state import plain_state
from deepcompression.quantization.equalize import equalize
from deepcompression.quantization.linear import quantize, table


def block(inputs: int, outputs: int, kernel: int, groups: int, norm: bool, act: Any) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs) if norm else nn.Identity(), act())


class Depthwise(nn.Module):
    """An inverted bottleneck with a residual."""

    def __init__(self, norm: bool = True, act: Any = nn.ReLU) -> None:
        super().__init__()
        self.stem = block(3, 8, 3, 1, norm, act)
        self.wide = block(8, 16, 1, 1, norm, act)
        self.deep = block(16, 16, 3, 16, norm, act)
        self.thin = block(16, 8, 1, 1, norm, nn.Identity)
        self.last = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.thin(self.deep(self.wide(x)))
        return self.last(x.mean((2, 3)))


def made(norm: bool = True, act: Any = nn.ReLU) -> tuple[nn.Module, Tensor]:
    """A model whose channels have ranges far apart, in eval mode, and samples."""
    torch.manual_seed(0)
    model, samples = Depthwise(norm, act), torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 4:
                weight.mul_(torch.exp(1.5 * torch.randn(len(weight))).reshape(-1, 1, 1, 1))
            elif norm and name.endswith("1.weight"):
                weight.mul_(torch.exp(torch.randn(len(weight))))
        for _ in range(10):
            model(samples)
    return model.eval().requires_grad_(False), samples


@pytest.mark.parametrize("act", [nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.SiLU])
@pytest.mark.parametrize("norm", [True, False])
def test_outputs_stay_and_ranges_come_together(norm: bool, act: Any) -> None:
    """With BatchNorm all weights before it have one range; without, only where what lies between minds no scale."""
    model, samples = made(norm, act)
    before, expected = plain_state(model), model(samples)
    done = equalize(model, lambda one: one(samples))
    assert all(torch.equal(one, model.state_dict()[name]) for name, one in before.items())  # the model is as it was
    model.load_state_dict(done.state)
    assert torch.allclose(model(samples), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    spreads = {row.tensor: (row.before, row.after) for row in done.layers}
    exact = act in (nn.ReLU, nn.LeakyReLU)
    if norm:
        assert {"wide.0.weight", "deep.0.weight"} <= set(spreads)
        assert all(after < 1.01 for name, (_, after) in spreads.items() if name != "last.weight")
    elif exact:
        assert spreads["deep.0.weight"][1] < spreads["deep.0.weight"][0] / 3
    else:
        assert "deep.0.weight" not in spreads
        assert done.left["wide.0.weight"] == "something between minds the scale of its channels"


def test_one_scale_a_tensor_serves_afterwards() -> None:
    """Three bits a weight with one scale: what the model gives is nearer to what it gave."""
    model, samples = made()
    expected, off = model(samples), []
    for state in (plain_state(model), equalize(model, lambda one: one(samples)).state):
        model.load_state_dict(quantize(state, table(model, {"default": 4}, per="tensor", range="mse")).state)
        off.append(float((model(samples) - expected).norm() / expected.norm()))
        model.load_state_dict(state)
    assert off[1] < 0.6 * off[0]


def test_what_must_keep_its_values_is_left() -> None:
    """A grid, or shared values, would be lost; a dead channel has no range, and stays dead."""
    model, samples = made()
    with torch.no_grad():
        model.get_submodule("wide.0").weight[3] = 0  # type: ignore[index]
    done = equalize(model, lambda one: one(samples), {"deep.0.weight": "is grid(8) already"})
    assert torch.equal(done.state["deep.0.weight"], model.state_dict()["deep.0.weight"])
    assert done.left["deep.0.weight"] == "is grid(8) already"
    assert not bool(done.state["wide.0.weight"][3].any()) and not torch.equal(
        done.state["stem.0.weight"], model.state_dict()["stem.0.weight"]
    )
