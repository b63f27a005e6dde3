"""L0 gates: the paper's formulas, exact zeros, noise that comes from the seed, and what training leaves."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from trainings import trained

from deepcompression.errors import StructureError
from deepcompression.network.state import bits_of, plain_state
from deepcompression.pruning.gates import draw
from deepcompression.pruning.gradual import GradualPruning
from deepcompression.pruning.l0 import BETA, GAMMA, L0, ZETA, Gate
from deepcompression.structure.constraints import structured
from deepcompression.structure.hold import held_by
from deepcompression.training.loop import Trained
from deepcompression.training.method import Context, Now
from deepcompression.training.problem import Problem
from deepcompression.training.session import Session, attach
from tasks.methods.l0 import Settings

ADAM = {"factory": "torch.optim:AdamW", "kwargs": {"lr": 0.01}}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


def problem() -> Problem:
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    return Problem((x, y), (x, y), batch_size=16)


def train(model: nn.Module, method: L0 | None = None, **more: Any) -> Trained:
    given: dict[str, Any] = {"epochs": 6, "optimizer": ADAM} | more
    return trained(model, problem(), [method or L0(3.0, speed=10)], **given)


def test_gates_follow_the_paper() -> None:
    """Drawn gates are open as often as equation 12 says, and still ones are those of equation 13."""
    gate = Gate(torch.ones(40_000), start=0.7)
    draw([gate], seed=0, step=0)
    assert float((gate.drawn() > 0).float().mean()) == pytest.approx(0.7, abs=0.01)
    assert float(gate.expected().detach()) == pytest.approx(0.7 * 40_000, rel=1e-4)
    alpha = float(gate.log_alpha[0].detach())
    assert 1 / (1 + math.exp(BETA * math.log(-GAMMA / ZETA) - alpha)) == pytest.approx(0.7)
    wanted = min(1, max(0, 1 / (1 + math.exp(-alpha)) * (ZETA - GAMMA) + GAMMA))
    assert float(gate.still()[0].detach()) == pytest.approx(wanted)


@pytest.mark.parametrize("granularity", ["weight", "filter"])
@pytest.mark.parametrize(
    ("layer", "axis"), [(nn.Linear(5, 4), 0), (nn.Conv2d(2, 4, 3), 0), (nn.ConvTranspose2d(2, 4, 3), 1)]
)
def test_open_gates_change_nothing_and_closed_ones_leave_plus_zero(
    layer: nn.Module, axis: int, granularity: Any
) -> None:
    """At first a net computes in evaluation what it did; a closed gate makes +0.0, of a negative weight too."""
    before = layer.weight.detach().clone()
    with Session(layer, [L0(granularity=granularity)], 1, Context()) as session:
        (gate, _), *_ = held_by(layer, Gate).values()
        layer.eval()
        assert torch.equal(layer.weight, before)
        with torch.no_grad():
            gate.log_alpha.select(axis, 1).fill_(-9.0)
    gone = layer.weight.detach().select(axis, 1)
    assert bool((bits_of(gone) == 0).all()) and session.accounts[0][1].structure == {"weight": ("zeros",)}
    assert torch.equal(layer.weight.detach().select(axis, 0), before.select(axis, 0))


def test_training_closes_gates_and_zeros_stay() -> None:
    """Where gates close there are exact zeros, which the account holds; what was zero is; the rest has learnt."""
    model = net()
    with torch.no_grad():
        model[0].weight[3] = 0
    made = train(model, L0(3.0, speed=30), epochs=12)
    weight, account = model[0].weight.detach(), made.accounts[0][1]
    assert bool((weight[3] == 0).all()) and 0.05 < float((weight != 0).float().mean()) < 0.5
    assert not bool((bits_of(weight)[weight == 0] != 0).any())
    assert made.structure == structured(["0.weight", "2.weight"]) == account.structure
    last, first = made.fit.history[-1], made.fit.history[0]
    assert last["l0/expected"] < 0.5 < first["l0/expected"] and made.fit.best_metric > 0.6
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_noise_comes_from_seed_and_step_alone() -> None:
    """Each step has gates of its own, the same at every look; it moves no other generator."""
    model, method = net(), L0()
    with attach(model, [method], 4, seed=3) as session:
        state = torch.get_rng_state()
        seen = []
        for step in (0, 1, 0):
            method.before_step(model, Now(step, 4))
            seen.append(model[0].weight.detach().clone())
            assert torch.equal(model[0].weight, seen[-1])
        assert torch.equal(torch.get_rng_state(), state) and session.now.step == 0
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


def test_an_interrupted_training_ends_in_the_same_bits(tmp_path: Path) -> None:
    """Gates, their optimizer's state and their noise go on from a checkpoint as if nothing had happened."""
    whole = net()
    train(whole)

    class Stop(Exception):
        """The process that was killed."""

    def told(progress: Any) -> None:
        if progress.epoch > 3:
            raise Stop

    with pytest.raises(Stop):
        train(net(), checkpoint=tmp_path / "c.pt", progress=told)
    again = net()
    train(again, checkpoint=tmp_path / "c.pt")
    state = plain_state(whole)
    assert all(torch.equal(one, state[name]) for name, one in plain_state(again).items())


def test_a_padding_row_is_always_open() -> None:
    """What stands for nothing in a batch is not pruned, however far its gate has gone."""
    gate = Gate(torch.ones(3, 2), start=0.5, padding=1)
    with torch.no_grad():
        gate.log_alpha.fill_(-9.0)
    assert gate(torch.ones(3, 2)).tolist() == [[0, 0], [1, 1], [0, 0]]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (L0(-1.0), r"0\.weight: l0 with penalty -1\.0; expected 0 or more"),
        (L0(start=1.0), "a start between 0 and 1 and a speed above 0, got 1.0 and 50.0"),
        (L0(granularity="row"), "granularity 'row' is not known"),  # type: ignore[arg-type]
        (L0({"0": 1e5}, speed=100), r"0\.weight: l0 closed all of its gates; lower its penalty, now 100000"),
    ],
)
def test_what_is_impossible_is_told_in_one_line(method: L0, message: str) -> None:
    """Numbers are refused before anything trains; an emptied layer afterwards, with what to lower."""
    with pytest.raises(StructureError, match=message):
        train(net(), method)


def test_it_shares_no_tensor_with_other_pruning_and_goes_before_share() -> None:
    """Two methods that decide over the same zeros are refused; so are gates over a codebook."""
    with pytest.raises(StructureError, match=r"0\.weight: prune and l0 both claim its sparsity"):
        trained(net(), problem(), [GradualPruning(0.5), L0()], epochs=1, optimizer=ADAM)
    with pytest.raises(StructureError, match=r"0\.weight: is shared already; l0 goes before share"):
        train(net(), structure=structured([], ["0.weight"]))


def test_gates_learn_faster_and_do_not_decay() -> None:
    """The optimizer gets them in a group of their own; without a rate of which theirs is a multiple, it says so."""
    model = net()
    with attach(model, [L0(speed=20)], 1) as session:
        rest, gates = session.parameters(lr=0.1)
        with pytest.raises(
            StructureError, match=r"learns at 20 times the model's rate; give session\.parameters\(\) lr="
        ):
            session.parameters()
    assert (rest["lr"], gates["lr"], gates["weight_decay"]) == (0.1, 2.0, 0.0)
    assert len(gates["params"]) == 2 and len(rest["params"]) == 4


def test_recipe_keys_are_the_library_ones() -> None:
    """A key that a recipe has must reach the method, and the defaults agree."""
    assert Settings().make().__dict__ == L0().__dict__
    given = Settings(penalty={"conv*": 2.0}, granularity="filter", start=0.5, speed=3)
    assert given.make().__dict__ == L0({"conv*": 2.0}, "filter", 0.5, 3.0).__dict__


def test_gates_are_bits_of_tensors() -> None:
    """Half-precision weights keep their type."""
    gate = Gate(torch.ones(4, dtype=torch.bfloat16), start=0.9)
    made: Tensor = gate(torch.ones(4, dtype=torch.bfloat16))
    assert made.dtype == torch.bfloat16
