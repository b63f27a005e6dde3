"""Retraining with structure held, and the correction of dropout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from trainings import finetune

from deepcompression.errors import DivergedError, StructureError
from deepcompression.network import state
from deepcompression.structure import check
from deepcompression.structure.constraints import structured
from deepcompression.training.dropout import corrected_dropout
from deepcompression.training.problem import Problem

SGD = {"factory": "torch.optim:SGD", "kwargs": {"lr": 0.1, "momentum": 0.9}}


def net() -> nn.Sequential:
    """Half of the first layer pruned, the second layer of two values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Dropout(0.5), nn.ReLU(), nn.Linear(10, 3))
    model[0].weight.data[:5] = 0
    model[3].weight.data = torch.where(model[3].weight > 0, 0.25, -0.5)
    return model


def problem() -> Problem:
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    return Problem((x, y), (x, y), batch_size=16)


def test_structure_is_held_and_training_helps():
    """Retraining is worth nothing if zeros return, and pointless if nothing is learnt."""
    model, data = net(), problem()
    before = state.plain_state(model)
    made = finetune(model, data, zeros=["0.weight"], shared=["3.weight"], epochs=8, optimizer=SGD)
    after = state.plain_state(model)
    assert list(after) == list(before)
    check.check(before, after, structured(["0.weight"], ["3.weight"]))
    assert made.structure == structured(["0.weight"], ["3.weight"])
    assert made.fit.history[-1]["val_loss"] < made.fit.history[0]["val_loss"] - 0.03
    assert made.fit.history[0]["val_accuracy"] <= made.fit.best_metric
    assert len(after["3.weight"].unique()) == 2
    assert not torch.equal(after["3.weight"].unique(), before["3.weight"].unique())


def test_dropout_is_corrected_while_training_and_restored_afterwards():
    """Han et al. 2015: the rate for a layer of density d is rate * sqrt(d)."""
    model, seen = net(), set()
    model[1].register_forward_hook(lambda module, *_: seen.add(module.p))
    made = finetune(model, problem(), zeros=["0.weight"], dropout={"1": "0"}, epochs=1, optimizer=SGD)
    assert seen == {0.5 * 0.5**0.5}
    assert made.accounts[0][1].report["dropout"] == {"1": corrected_dropout(0.5, 0.5)}
    assert model[1].p == 0.5


@pytest.mark.parametrize(
    ("dropout", "rule"),
    [
        ({"0": "3"}, "dropout '0': no dropout module of the model; it has: 1"),
        ({"1": "conv"}, "pattern 'conv' matches"),
    ],
)
def test_a_dropout_correction_that_names_nothing_is_refused(dropout: dict[str, str], rule: str):
    """A name that is no dropout module must not be ignored, nor leave the model held."""
    model = net()
    with pytest.raises(StructureError, match=rule):
        finetune(model, problem(), zeros=["0.weight"], dropout=dropout, epochs=1, optimizer=SGD)
    assert not nn.utils.parametrize.is_parametrized(model[0])


def test_after_divergence_the_model_is_baked_and_good():
    """Whoever catches the error has a usable model."""

    def explode(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        outputs = model(batch[0])
        return outputs.sum() * torch.inf, outputs, batch[1]

    model, data = net(), problem()
    before = state.plain_state(model)
    broken = Problem(data.train, data.validation, step=explode)
    with pytest.raises(DivergedError, match=r"epoch 1 at learning rate 0\.1"):
        finetune(model, broken, zeros=["0.weight"], epochs=2, optimizer=SGD)
    after = state.plain_state(model)
    assert all(torch.equal(after[name], before[name]) for name in before)
