"""Tensors that are zero throughout, without elements, or of other widths: no stage freezes them or dies of them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from trainings import finetune, prune_gradually, share_training

from deepcompression import torch as bridge
from deepcompression.allocation.sensitivity import sensitivity
from deepcompression.cli import show
from deepcompression.codec import file
from deepcompression.network.names import prunable
from deepcompression.network.state import density, plain_state
from deepcompression.pruning.prune import prune
from deepcompression.pruning.slim import slim
from deepcompression.pruning.wanda import Wanda
from deepcompression.quantization.precision import round_precision
from deepcompression.sharing.share import share
from deepcompression.structure import check, hold
from deepcompression.structure.constraints import structured
from deepcompression.training.context import context_of
from deepcompression.training.device import Compute
from deepcompression.training.problem import Problem

FIT = {"epochs": 2, "optimizer": {"factory": "torch.optim:SGD", "kwargs": {"lr": 0.1}}}


class Adapted(nn.Module):
    """A layer with a low-rank branch whose second part begins at zero, and a convolution that begins as identity."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv1d(2, 2, 3, padding=1)
        nn.init.dirac_(self.mix.weight)
        self.base, self.down, self.up = nn.Linear(6, 3), nn.Linear(6, 2), nn.Linear(2, 3, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x.reshape(-1, 2, 3)).flatten(1)
        return self.base(x) + self.up(self.down(x))


def problem() -> Problem:
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    return Problem((x, x[:, :3].argmax(1)), (x, x[:, :3].argmax(1)), batch_size=8)


def test_a_tensor_that_is_zero_throughout_is_held_only_by_name_and_with_a_warning(caplog: pytest.LogCaptureFixture):
    """Held, a zero-initialised layer gets no gradient, for ever."""
    caplog.set_level(logging.WARNING, "deepcompression")
    assert hold.hold(Adapted()).zeros == ["mix.weight"] and not caplog.messages
    hold.hold(Adapted(), ["up.weight"])
    hold.hold(Adapted(), shared=["up.weight"])
    assert caplog.messages == 2 * [
        "up.weight is zero throughout, and is held so: it can never learn; leave it out if it should"
    ]


def test_a_zero_initialised_layer_learns_while_it_is_pruned_gradually():
    """It has no small weights yet: it learns first, then it is pruned as every other."""
    model = Adapted()
    pruned = prune_gradually(model, problem(), {"up.weight": 0.5, "base.weight": 0.5}, **FIT)
    assert {layer.name: layer.nonzero for layer in pruned.layers} == {"up.weight": 3, "base.weight": 9}
    assert int((model.up.weight != 0).sum()) == 3


def test_a_zero_initialised_layer_that_is_said_to_be_pruned_stays_zero():
    """Who names it among the zeros means it."""
    model = Adapted()
    prune_gradually(model, problem(), {"base.weight": 0.5}, zeros=["up.weight"], **FIT)
    assert not model.up.weight.any()


def test_finetuning_after_pruning_leaves_a_zero_initialised_layer_free():
    """What prune reports as without non-zeros is no structure to hold."""
    model = Adapted()
    made = prune(plain_state(model), dict.fromkeys(prunable(model), 0.5))
    model.load_state_dict(made.state)
    finetune(model, problem(), zeros=[layer.name for layer in made.layers if layer.nonzero], **FIT)
    assert model.up.weight.all() and int((model.base.weight != 0).sum()) == 9


def test_sharing_while_training_leaves_a_zero_initialised_layer_free(caplog: pytest.LogCaptureFixture):
    """There is no codebook of no values; the layer trains on."""
    caplog.set_level(logging.WARNING, "deepcompression")
    model = Adapted()
    made = share_training(model, problem(), {"up.weight": 2, "base.weight": 2}, **FIT)
    assert [layer.name for layer in made.layers] == ["base.weight"] and model.up.weight.any()
    assert "zero throughout, with nothing to share: up.weight; these train freely" in caplog.text


class Empty(nn.Module):
    """Layers without inputs or outputs, as configurations with a width of zero make them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.none, self.out = nn.Linear(6, 0), nn.Linear(0, 4), nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.none(torch.relu(self.a(x))))


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_tensors_without_elements_go_through_every_stage(tmp_path: Path):
    """Their density, error and bits are no division by zero."""
    model, names = Empty(), ["a.weight", "none.weight", "out.weight"]
    score = Wanda(context_of(problem(), Compute()))
    score.refresh(model)
    state = prune(plain_state(model), dict.fromkeys(names, 0.5), score=score).state
    state = prune(state, dict.fromkeys(names, 0.5), scope="global").state
    state = prune(state, quality=dict.fromkeys(names, 0.1)).state
    model.load_state_dict(share(state, dict.fromkeys(names, 2)).state)
    share_training(model, problem(), dict.fromkeys(names, 2), **FIT)
    prune_gradually(model, problem(), dict.fromkeys(names, 0.4), **FIT)
    finetune(model, problem(), zeros=names, shared=["a.weight"], **FIT)
    sensitivity(model, problem(), names, bits=[2])
    slim(model)
    for rest in ("int8", "float16"):
        state = round_precision(plain_state(model), shared=names, codebook="float16", rest=rest).state
    assert density(state, ["a.weight"]) == 1.0
    bridge.save(state, tmp_path / "m.dcz")
    assert all(torch.equal(one, state[name]) for name, one in bridge.load(tmp_path / "m.dcz").items())
    show.print_report("m.dcz", file.inspect(tmp_path / "m.dcz"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_models_of_other_widths_go_through_every_stage(dtype: torch.dtype, tmp_path: Path):
    """What stages cannot do in a dtype would be found out after the training."""
    model = Adapted().to(dtype)
    nn.init.normal_(model.up.weight)
    x, y = problem().train
    split = (x.to(dtype), y)
    own, names = Problem(split, split, batch_size=8), prunable(model)
    prune_gradually(model, own, dict.fromkeys(names, 0.5), **FIT)
    share_training(model, own, dict.fromkeys(names, 2), zeros=names, **FIT)
    state = share(plain_state(model), dict.fromkeys(names, 2)).state
    model.load_state_dict(state)
    finetune(model, own, zeros=names, shared=names, **FIT)
    state = round_precision(plain_state(model), shared=names, codebook="float16", rest="float16").state
    check.check(plain_state(model), state, structured(names, names))
    bridge.save(state, tmp_path / "m.dcz")
    back = bridge.load(tmp_path / "m.dcz")
    assert all(torch.equal(one, state[name]) and one.dtype == dtype for name, one in back.items())
