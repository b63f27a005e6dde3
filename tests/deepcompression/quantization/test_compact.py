"""A penalty on the tails of weights: its moments, what it does to a grid's error, what it leaves alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from trainings import trained

from deepcompression.errors import StructureError
from deepcompression.network.state import plain_state
from deepcompression.quantization.compact import Compact, kurtosis, mean_square
from deepcompression.structure.constraints import structured
from deepcompression.training.problem import Problem
from deepcompression.training.session import attach
from tasks.methods.compact import Settings

ADAM = {"factory": "torch.optim:AdamW", "kwargs": {"lr": 0.02, "weight_decay": 0.0}}


def heavy(seed: int = 0) -> nn.Linear:
    """A layer whose weights have long tails, a third of them zero."""
    torch.manual_seed(seed)
    layer = nn.Linear(24, 16)
    with torch.no_grad():
        layer.weight.copy_(0.1 * torch.randn(16, 24) ** 3 * (torch.rand(16, 24) > 0.33))
    return layer


def problem() -> Problem:
    x = torch.randn(128, 24, generator=torch.Generator().manual_seed(1))
    return Problem((x, x[:, :16].argmax(1)), (x, x[:, :16].argmax(1)), batch_size=32)


def error(weight: Tensor, bits: int = 4) -> float:
    """The part of a tensor's power that a symmetric grid up to its largest value loses."""
    scale = weight.abs().max() / (2 ** (bits - 1) - 1)
    return float(((weight / scale).round() * scale - weight).square().sum() / weight.square().sum())


def test_moments_are_those_of_the_weights_that_are_not_zero() -> None:
    """Pruned weights would make every distribution look heavy-tailed; scipy has the same fourth moment."""
    weight = heavy().weight.detach()
    alive = weight[weight != 0].double().numpy()
    assert float(kurtosis(weight)) == pytest.approx(stats.kurtosis(alive, fisher=False), rel=1e-4)
    assert float(mean_square(weight)) == pytest.approx(np.square(alive).mean(), rel=1e-5)
    assert float(kurtosis(torch.zeros(3))) == float(mean_square(torch.zeros(3))) == 0
    evenly = torch.linspace(-1, 1, 100_001)
    assert float(kurtosis(evenly)) == pytest.approx(1.8, rel=1e-3)


@pytest.mark.parametrize("by", ["kurtosis", "l2"])
def test_the_penalty_is_in_the_loss_by_its_formula(by: Any) -> None:
    """Twice the penalty is twice the share of it; the first mean square is the unit of l2."""
    model = heavy()
    with attach(model, [Compact(0.5, by, target=2.0)], 3) as session:
        total = session.loss(torch.tensor(1.0), None, None)
        wanted = (kurtosis(model.weight) - 2).square() if by == "kurtosis" else torch.tensor(1.0)
        assert float(total.detach()) == pytest.approx(1 + 0.5 * float(wanted.detach()), rel=1e-5)
        total.backward()
        assert bool(model.weight.grad.isfinite().all()) and bool(model.weight.grad.any())  # type: ignore[union-attr]
        with torch.no_grad():
            model.weight *= 2
        again = session.loss(torch.tensor(0.0), None, None)
        assert float(again.detach()) == pytest.approx(0.5 * float(wanted.detach()) * (1 if by == "kurtosis" else 4))


def test_trained_so_weights_lose_less_on_a_grid_of_few_bits() -> None:
    """What it is for: beside the same training without it, lower kurtosis, half the error at most, zeros kept."""
    errors, tails = {}, {}
    for penalty in (0.0, 1.0):
        model = heavy()
        trained(model, problem(), [Compact(penalty)], structure=structured(["weight"]), epochs=40, optimizer=ADAM)
        weight = plain_state(model)["weight"]
        assert bool((weight[heavy().weight == 0] == 0).all())
        errors[penalty], tails[penalty] = error(weight), float(kurtosis(weight))
    assert tails[1.0] < tails[0.0]
    assert errors[1.0] < errors[0.0] / 2


def test_figures_tell_how_far_it_is() -> None:
    """Without them nobody sees whether the penalty is too weak."""
    model = heavy()
    with attach(model, [Compact()], 1) as session:
        figures = session.after_epoch(0.0)
    assert figures["compact/kurtosis"] == pytest.approx(float(kurtosis(model.weight.detach())))
    assert figures["compact/penalty"] == pytest.approx(
        float((kurtosis(model.weight.detach()) - 1.8).square()), rel=1e-5
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"penalty": -1.0}, "weight: compact with penalty -1.0; expected 0 or more"),
        ({"penalty": {"nothing.*": 1.0}}, "matches no"),
        ({"by": "spread"}, "expected kurtosis or l2"),
        ({"target": 0.5}, "no kurtosis is below 1"),
    ],
)
def test_bad_numbers_are_one_line_before_training(keys: dict[str, Any], message: str) -> None:
    """A penalty that pushes the other way would show only after hours."""
    with pytest.raises(StructureError, match=message):
        attach(heavy(), [Compact(**keys)], 1)


def test_a_recipe_s_keys_are_the_method_s() -> None:
    """A key that is not handed on would be ignored in silence."""
    made: Any = Settings(penalty={"fc*": 2.0}, by="l2", target=2.5).make()
    assert (made.penalty, made.by, made.target) == ({"fc*": 2.0}, "l2", 2.5)
