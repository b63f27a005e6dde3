"""How long a training takes, told by a few of its batches."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from deepcompression.training.device import Compute
from deepcompression.training.pace import pace
from deepcompression.training.problem import Problem, cross_entropy_step


def slow(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
    """A step that takes a hundredth of a second."""
    time.sleep(0.01)
    return cross_entropy_step(model, batch)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


def data(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 4), torch.arange(count) % 3


def test_an_epoch_is_told_by_a_few_batches_and_no_parameter_moves() -> None:
    """A hundred batches of a hundredth of a second are a second or somewhat more, after a few of them."""
    model = net()
    before = [one.detach().clone() for one in model.parameters()]
    seen: list[int] = []

    def step(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        seen.append(len(batch[0]))
        return slow(model, batch)

    found = pace(model, Problem(data(400), data(20), step=step, batch_size=4), Compute("cpu"), enough=0.05)
    assert len(seen) < 20 and found.an_epoch > 1.0 and found.a_look >= 0.01
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_a_single_batch_is_enough_and_nothing_drawn_is_drawn_from_others() -> None:
    """A loader of the user's gives the same order afterwards as if nothing had been measured."""
    loader = DataLoader(TensorDataset(*data(40)), 10, shuffle=True, generator=torch.Generator().manual_seed(3))
    model, validation = net(), data(5)
    seeded = torch.get_rng_state()
    assert pace(model, Problem(loader, validation), Compute("cpu")).an_epoch > 0
    assert torch.equal(torch.get_rng_state(), seeded)
    assert loader.generator.get_state().equal(torch.Generator().manual_seed(3).get_state())
    assert pace(net(), Problem(data(8), data(5), batch_size=8), Compute("cpu")).an_epoch > 0
