"""RB sparsity: gates by their formula, noise that comes from the seed, and what training leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from trainings import trained

from deepcompression.errors import StructureError
from deepcompression.network.state import plain_state
from deepcompression.pruning.gates import draw
from deepcompression.pruning.rb import RB, Random
from deepcompression.structure.constraints import structured
from deepcompression.structure.hold import held_by
from deepcompression.training.loop import Trained
from deepcompression.training.method import Now
from deepcompression.training.problem import Problem
from deepcompression.training.ramps import Ramp
from deepcompression.training.session import attach

ADAM = {"factory": "torch.optim:AdamW", "kwargs": {"lr": 0.01}}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))


def problem() -> Problem:
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    return Problem((x, y), (x, y), batch_size=16)


def train(model: nn.Module, method: RB, **more: Any) -> Trained:
    return trained(model, problem(), [method], **{"epochs": 25, "optimizer": ADAM, **more})


def test_gates_are_drawn_as_often_as_their_probability_says() -> None:
    """And without chance are open above a half; gradients are those of the probability."""
    gate = Random(torch.ones(40_000))
    with torch.no_grad():
        gate.logits.fill_(torch.tensor(0.3).logit())
    draw([gate], seed=0, step=0)
    drawn = gate(torch.ones(40_000))
    assert set(drawn.unique().tolist()) == {0.0, 1.0} and float(drawn.detach().mean()) == pytest.approx(0.3, abs=0.01)
    assert float(gate.count().detach()) == 0 and not gate.eval()(torch.ones(40_000)).any()
    gate.count().backward()
    assert torch.allclose(gate.logits.grad, torch.full((40_000,), 0.3 * 0.7))
    closed = Random(torch.tensor([-1.0, 0.0, 2.0]))
    with torch.no_grad():
        closed.logits.copy_(torch.tensor([-1.0, 1.0, 1.0]))
    out = closed.eval()(torch.tensor([-1.0, 3.0, 2.0]))
    assert out.tolist() == [0.0, 0.0, 2.0] and not torch.signbit(out).any()


def test_the_loss_is_the_squared_distance_from_the_level() -> None:
    """In units of the width; the level falls exponentially from 1."""
    model, method = net(), RB(density=0.25, ramp=0.5, width=0.1)
    with attach(model, [method], 100) as session:
        gates = [gate for gate, _ in held_by(model, Random).values()]
        with torch.no_grad():
            gates[0].logits[:, :3] = -1.0  # 96 of 288 weights closed
        method.before_step(model, Now(25, 100))
        level = 0.25**0.5
        found = float(session.loss(torch.tensor(2.0), None, None).detach())
        assert found == pytest.approx(2 + ((192 / 288 - level) / 0.1) ** 2, rel=1e-5)
    ramp = Ramp("exponential", 0.5, 1.0)
    assert [ramp.level(Now(step, 4), 0.25) for step in (0, 1, 2, 3)] == [1.0, 0.5, 0.25, 0.25]


def test_a_training_ends_near_the_density_that_was_asked_for() -> None:
    """The same from the same seed; zeros stay in what follows; gates are gone."""
    ends = []
    for _ in range(2):
        model = net()
        done = train(model, RB(0.4))
        ends.append(plain_state(model))
    assert all(torch.equal(ends[0][name], one) for name, one in ends[1].items()) and set(ends[0]) == set(
        net().state_dict()
    )
    weights = [ends[0][name] for name in ("0.weight", "2.weight")]
    density = sum(int((one != 0).sum()) for one in weights) / sum(one.numel() for one in weights)
    assert density == pytest.approx(0.4, abs=0.06) and done.fit.best_metric > 0.8
    assert done.structure == structured(["0.weight", "2.weight"])
    assert done.accounts[0][1].notes == [f"rb: density {density:.3g}, asked for 0.4"]


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (RB(density=0.0), "rb: expected a density and a ramp above 0"),
        (RB(width=0.0), "rb: expected width and speed above 0"),
        (RB(layers=("9",)), "pattern '9' matches"),
    ],
)
def test_what_is_impossible_is_refused(method: RB, words: str) -> None:
    """Before anything trains, in one line."""
    with pytest.raises(StructureError, match=words):
        train(net(), method, epochs=1)


def test_a_layer_that_closes_altogether_is_named() -> None:
    """Nothing is emptied silently."""
    model, method = net(), RB(0.5)
    closed = pytest.raises(StructureError, match=r"0\.weight: rb closed all of its gates")
    with closed, attach(model, [method], 1), torch.no_grad():
        next(iter(held_by(model, Random).values()))[0].logits.fill_(-1.0)
