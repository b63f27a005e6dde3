"""Importance by input: against sums over unfolded inputs, and what it prunes that magnitude does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainings import prune_gradually

from deepcompression.network import state
from deepcompression.pruning.prune import prune
from deepcompression.pruning.wanda import Wanda
from deepcompression.training.context import context_of
from deepcompression.training.device import Compute
from deepcompression.training.problem import Problem


class Conv1D(nn.Linear):
    """The transformers library's: its weight is (in, out)."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__(nf, nx)
        self.nf, self.nx, self.bias = nf, nx, nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


LAYERS = [
    (Conv1D(6, 4), (5, 3, 4)),
    (nn.Linear(6, 4), (5, 6)),
    (nn.Linear(6, 4), (5, 3, 6)),
    (nn.Conv2d(4, 6, 3), (5, 4, 7, 7)),
    (nn.Conv2d(4, 6, 3, groups=2), (5, 4, 7, 7)),
    (nn.Conv1d(4, 2, 3), (5, 4, 9)),
    (nn.ConvTranspose2d(4, 6, 3), (5, 4, 7, 7)),
]


def step(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    samples, targets = batch
    outputs = model(samples)
    return outputs.square().mean(), outputs, targets


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_scores_are_magnitude_times_the_size_of_the_input(layer: nn.Module, shape: tuple[int, ...]):
    """For every kind of layer, with groups and transposed: the root mean square of the channel that a weight sees."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, shape[0] + 1).reshape(
        -1, *[1] * (len(shape) - 1)
    )
    wanda = Wanda(context_of(Problem((x, torch.zeros(len(x))), None, step=step), Compute()))
    wanda.refresh(layer)
    weight = layer.weight.detach()
    found = wanda("weight", weight)
    assert found.shape == weight.shape
    channels = x.movedim(-1 if isinstance(layer, nn.Linear) else 1, 0).flatten(1).square().mean(1).sqrt()
    wanted = torch.empty_like(weight)
    groups = getattr(layer, "groups", 1)
    for place in torch.cartesian_prod(*(torch.arange(n) for n in weight.shape)).tolist():
        if isinstance(layer, nn.ConvTranspose2d | Conv1D):
            channel = place[0]
        else:
            channel = place[0] // (weight.shape[0] // groups) * weight.shape[1] + place[1]
        wanted[tuple(place)] = weight[tuple(place)].abs() * channels[channel]
    assert torch.allclose(found, wanted, rtol=1e-4)


def test_weights_of_silent_inputs_go_first():
    """What magnitude would keep, a large weight on an input that is always zero, is pruned before all others."""
    net = nn.Linear(4, 3)
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 0
    with torch.no_grad():
        net.weight[:, 2] = 100.0
    problem = Problem((x, x[:, :3].argmax(1)), (x, x[:, :3].argmax(1)), batch_size=16)
    wanda = Wanda(context_of(problem, Compute()))
    wanda.refresh(net)
    kept = prune(state.plain_state(net), {"weight": 0.75}, score=wanda).state["weight"]
    assert bool((kept[:, 2] == 0).all()) and int((kept != 0).sum()) == 9
    adam = {"factory": "torch.optim:Adam", "kwargs": {"lr": 0.01}}
    made = prune_gradually(
        net, problem, {"weight": 0.5}, score=Wanda(context_of(problem, Compute())), epochs=3, optimizer=adam
    )
    assert bool((made.state["weight"][:, 2] == 0).all())


def test_tied_weights_and_what_has_no_input():
    """A weight used twice has the inputs of both uses; a tensor that no layer multiplies is scored by magnitude."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(3, 4)
            self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(3 * self.a(x))

    net = Twice().train()
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    wanda = Wanda(context_of(Problem((x, torch.zeros(10)), None, step=step, batch_size=5), Compute()))
    wanda.refresh(net)
    second = 3 * net.a(x).detach()
    wanted = ((x.square().sum(0) + second.square().sum(0)) / 20).sqrt()
    assert torch.allclose(wanda("a.weight", torch.ones(4, 4)), wanted.expand(4, 4), rtol=1e-4)
    assert torch.equal(wanda("table.weight", -torch.ones(3, 4)), torch.ones(3, 4))
    assert net.training
