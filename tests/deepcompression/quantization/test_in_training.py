"""Learned steps: what is computed, what is left of it in a model, beside what, and that it can go on."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset, TensorDataset
from trainings import trained

import deepcompression.torch as bridge
from deepcompression.errors import StructureError
from deepcompression.network.edits.quantize_values import Site
from deepcompression.network.state import is_zero, plain_state
from deepcompression.pruning.gradual import GradualPruning
from deepcompression.quantization.binarize import Activations as BinaryInputs
from deepcompression.quantization.binarize import Binarize
from deepcompression.quantization.in_training import Activations, QuantizedTraining, Weights
from deepcompression.quantization.ranges import RANGES
from deepcompression.quantization.sites import measured
from deepcompression.quantization.trained_grid import TrainedGrid
from deepcompression.sharing.reassign import TrainedSharing
from deepcompression.structure.check import check
from deepcompression.structure.hold import hold_by
from deepcompression.training.context import context_of
from deepcompression.training.device import Compute
from deepcompression.training.method import Context
from deepcompression.training.problem import Problem
from deepcompression.training.session import attach

ADAM = {"factory": "torch.optim:AdamW", "kwargs": {"lr": 0.005, "weight_decay": 0.1}}


def problem() -> Problem:
    """Three classes that a small net can learn."""
    x = torch.randn(192, 6, generator=torch.Generator().manual_seed(0))
    y = x[:, :3].argmax(1)
    return Problem((x, y), (x, y), batch_size=32)


def net() -> nn.Sequential:
    """The input of its first layer is signed, that of the second is not."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))


def train(model: nn.Module, *methods: Any, **more: Any) -> Any:
    given: dict[str, Any] = {"epochs": 4, "optimizer": ADAM, "compute": Compute("cpu")} | more
    return trained(model, problem(), methods, **given)


def by_hand(v: Tensor, s: Tensor, low: int, high: int, outer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Section 2.1 of the paper in float64: the values, the gradient of the latent ones and that of the steps by place,
    where ``outer`` is the gradient of the values."""
    v, s, outer = v.double(), s.double(), outer.double()
    below, above = v / s <= low, v / s >= high
    integers = torch.where(below, low, torch.where(above, high, (v / s).round()))
    inside = ~below & ~above
    slope = torch.where(below, low, torch.where(above, high, integers - v / s))
    return integers * s, torch.where(inside, outer, 0.0), outer * slope


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("axis", [None, 0])
def test_weights_follow_the_paper(bits: int, axis: int | None) -> None:
    """First step, values, gradients, and what a step of SGD does to the learned step."""
    torch.manual_seed(bits)
    most = 2 ** (bits - 1) - 1
    layer = nn.Linear(40, 5)
    with torch.no_grad():
        layer.weight.normal_().mul_(torch.tensor([0.01, 0.1, 1.0, 10.0, 0.3])[:, None])
        layer.weight[0, 0] = -0.0
    weight, outer = layer.weight.detach().clone(), torch.randn(5, 40)
    alive = [row[row != 0].double().abs().mean() for row in weight]
    mean = weight[weight != 0].double().abs().mean() if axis is None else torch.stack(alive)[:, None]
    first = (2 * mean / math.sqrt(most)).expand(5 if axis == 0 else 1, 1)
    hold_by(layer, {"weight": lambda one: TrainedGrid(one, bits, axis, "lsq", "symmetric")})
    grid: Any = layer.parametrizations.weight[0]
    step = grid.range.scale().detach()
    assert torch.allclose(step.double(), first, rtol=1e-6)
    values, inner, slopes = by_hand(weight, step, -most, most, outer)
    assert torch.allclose(layer.weight.double(), values, rtol=1e-6, atol=0)
    assert torch.equal(torch.signbit(layer.weight), layer.weight < 0)  # 0 is +0.0
    (layer.weight * outer).sum().backward()
    assert torch.allclose(layer.parametrizations.weight.original.grad.double(), inner, rtol=1e-6, atol=0)
    torch.optim.SGD([grid.range.step.times], lr=1e-3).step()
    gradient = slopes.sum() if axis is None else slopes.sum(1, keepdim=True)
    count = 200 if axis is None else 40
    moved = step.double() - 1e-3 * gradient / math.sqrt(count * most)
    assert torch.allclose(grid.range.scale().double(), moved, rtol=1e-4)


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("site", [0, 2])
def test_activations_follow_the_paper(bits: int, site: int) -> None:
    """The first step from samples, signed or not; output and gradient of a layer with a quantized input."""
    model, (x, y) = net(), problem().train
    value = (x if site == 0 else model[:2](x)).detach()
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if site == 0 else (0, 2**bits - 1)
    with attach(model, [QuantizedTraining(activations={str(site): bits})], 5, samples=[(x, y)]) as session:
        step = model[site].input_0_range.range.step
        first = 2 * float(value.double().abs().mean()) / math.sqrt(high)
        assert float(step().detach()) == pytest.approx(first, rel=1e-6)
        outer = torch.randn(192, model[site].out_features)
        (model[site](value) * outer).sum().backward()
        inputs, _, slopes = by_hand(value, step().detach(), low, high, outer @ model[site].weight.detach())
        expected = nn.functional.linear(inputs.float(), model[site].weight, model[site].bias)
        assert torch.allclose(model[site](value), expected, atol=1e-5)
        gradient = float(slopes.sum()) / math.sqrt(value[0].numel() * high) / float(step().detach())
        assert float(step.times.grad) == pytest.approx(gradient, rel=1e-3)
        assert session.groups == [{"params": [step.times], "weight_decay": 0.0}]
        session.after_step()
    account = session.accounts[0][1]
    assert [edit["scheme"] for edit in account.edits] == ["symmetric" if site == 0 else "asymmetric"]
    assert float(model[site].input_0_scale) == pytest.approx(first, rel=1e-6)


def test_a_mask_and_a_grid_on_one_tensor_and_what_stays_of_them(tmp_path: Path) -> None:
    """Gradual pruning beside it, zeros of the input, then a file, the user's own model, and more training."""
    model = net()
    with torch.no_grad():
        model[0].weight[:, 5] = 0.0
    before = plain_state(model)
    quantize = QuantizedTraining(Weights({"0": 4, "2": 8}, per="channel"), 8)
    zeros = {"0.weight": ("zeros",)}
    made = train(model, quantize, GradualPruning({"2.weight": 0.5}), epochs=12, structure=zeros)
    state = plain_state(model)
    assert made.structure == {"0.weight": ("zeros", "grid(4, 0)"), "2.weight": ("zeros", "grid(8, 0)")}
    check(before, state, made.structure)
    assert int((~is_zero(state["2.weight"])).sum()) <= 48
    last = made.fit.history[-1]
    assert (last["quantize/bits"], last["quantize/activation_bits"]) == ((4 * 192 + 8 * 96) / 288, 8)
    assert made.fit.best_metric > 0.85
    edits = [edit for _, account in made.accounts for edit in account.edits]
    assert [edit["sites"] for edit in edits] == [["0:input[0]"], ["2:input[0]"]]
    grid = ["2.input_0_scale", "2.input_0_zero_point"]
    assert list(state) == ["0.weight", "0.bias", "0.input_0_scale", "2.weight", "2.bias", *grid]
    bridge.save(state, tmp_path / "m.dcz", edits=edits)
    again = bridge.load_into(net(), tmp_path / "m.dcz")
    x = problem().train[0]
    assert torch.equal(model.eval()(x), again.eval()(x))
    later = train(again, epochs=2, structure=made.structure)
    check(state, plain_state(again), later.structure)
    assert not torch.equal(plain_state(again)["0.bias"], state["0.bias"])
    assert torch.equal(plain_state(again)["0.input_0_scale"], state["0.input_0_scale"])
    train(again, QuantizedTraining(Weights({"0": 4}, per="channel")), epochs=1, structure=made.structure)
    check(state, plain_state(again), made.structure)


class Twice(nn.Module):
    """Two layers on one value; and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.idle = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 6) -> (n, 3)."""
        return self.one(x) + self.other(x)


@pytest.mark.parametrize("form", ["tensors", "dataset", "stream"])
def test_first_ranges_are_of_samples_from_all_of_the_split(form: str) -> None:
    """Not of the first ones, which are all of one class where a split is sorted; a stream's come as they come."""
    x = torch.arange(200.0).sub(50)[:, None].repeat(1, 6)
    y = torch.zeros(200, dtype=torch.int64)
    split = {"tensors": (x, y), "dataset": TensorDataset(x, y), "stream": Stream(x, y)}[form]
    context = context_of(Problem(split, split, batch_size=16), Compute("cpu"), seed=3)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    seen = measured(model, context, {Site("0", "input", 0): 8}, 32)[0].seen
    assert (seen.most > 100) == (form != "stream")
    assert seen.count == 32 * 6 and next(iter(context.batches("wanda", 32)))[0].max() == -35
    if form != "stream":  # by the first samples every sign would be -1, which is refused
        only = Binarize(None, BinaryInputs(samples=32), keep=[])
        only.attach(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)), context)


class Stream(IterableDataset[Any]):
    def __init__(self, *columns: Tensor) -> None:
        self.columns = columns

    def __iter__(self) -> Any:
        return zip(*self.columns, strict=True)


def test_layers_of_one_value_share_a_step() -> None:
    """One record, one scale; a layer that the forward never comes by is an error before training."""
    model = Twice()
    made = train(model, QuantizedTraining(activations={"one": 8, "other": 8}), epochs=1)
    (edit,) = made.accounts[0][1].edits
    assert edit["sites"] == ["one:input[0]", "other:input[0]"]
    assert model.one.input_0_scale == model.other.input_0_scale
    with pytest.raises(StructureError, match=r"idle:input\[0\]: the forward never comes by it"):
        train(Twice(), QuantizedTraining(activations=8))


def test_one_value_before_two_layers_is_rounded_once_a_forward() -> None:
    """Each forward has a graph of its own, also for the same batch; gradients are those of two roundings."""
    model, (x, _) = Twice(), problem().train
    x, found = x.clone().requires_grad_(), []
    with attach(model, [QuantizedTraining(activations={"one": 4, "other": 4})], 5, samples=[x]) as session:
        for _ in range(2):
            found.append(model(x).square().sum())
        found[1].backward()
        found[0].backward()
        gradient, times = x.grad, model.one.input_0_range.range.step.times
        apart = [one.detach().clone().requires_grad_() for one in (x, x)]
        model.one.input_0_range.forget()
        (2 * (model.one(apart[0]) + model.other(apart[1])).square().sum()).backward()
        assert torch.allclose(gradient, apart[0].grad + apart[1].grad, rtol=1e-5, atol=1e-5)
        assert model.one.input_0_range is model.other.input_0_range and float(times.grad) != 0
        with torch.no_grad():
            assert not model(x).requires_grad
        session.after_step()


def test_weights_that_are_zero_throughout_train_freely(caplog: pytest.LogCaptureFixture) -> None:
    """Zero-initialised heads have no step to begin with; they are told, not held at zero."""
    model = net()
    nn.init.zeros_(model[2].weight)
    made = train(model, QuantizedTraining(4), epochs=2)
    assert made.structure == {"0.weight": ("grid(4)",)}
    assert bool(model[2].weight.any())
    assert "2.weight is zero throughout" in caplog.text


def test_adam_moves_a_step_by_a_part_of_itself() -> None:
    """Trained as it is, a step smaller than the rate would be below zero after one step of Adam."""
    grid = TrainedGrid(
        1e-3 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0)), 8, None, "lsq", "symmetric"
    )
    before = grid.range.scale().detach()
    assert before < 0.001
    grid.range.step().sum().backward()
    torch.optim.Adam([grid.range.step.times], lr=0.01).step()
    assert torch.allclose(grid.range.scale(), 0.99 * before, rtol=1e-4)


@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_file_is_as_small_as_the_integers(bits: int, per: Any) -> None:
    """The codec finds the grid: at most the order-0 entropy of the integers, 2 % and 64 bytes, beside the scales."""
    model = nn.Linear(200, 60, bias=False)
    nn.init.normal_(model.weight, generator=torch.Generator().manual_seed(0))
    with attach(model, [QuantizedTraining(Weights(bits, per=per))], 1) as session:
        grid = model.parametrizations.weight[0].range.scale()
        assert session.groups[0]["params"][0].shape == grid.shape
    integers = (model.weight.detach() / grid.detach()).round().numpy()
    assert np.array_equal(integers.astype(np.float32) * grid.detach().numpy(), model.weight.detach().numpy())
    counts = np.unique(integers, return_counts=True)[1] / integers.size
    entropy = -(counts * np.log2(counts)).sum() * integers.size / 8
    assert len(bridge.encode(plain_state(model), "adaptive")) <= 1.02 * entropy + 64 + 4 * grid.numel()


@pytest.mark.parametrize(
    ("methods", "structure", "message"),
    [
        ([QuantizedTraining(4), TrainedSharing(4)], {}, r"0\.weight: .*quantize and share both claim its values"),
        ([QuantizedTraining(4)], {"2.weight": ("zeros", "shared")}, r"2\.weight: is shared already"),
        (
            [QuantizedTraining(4)],
            {"2.weight": ("grid(8)",)},
            r"2\.weight: is grid\(8\) already, which grid\(4\) would undo",
        ),
        ([QuantizedTraining({"0": 1})], {}, r"0\.weight: bits 1 is impossible, expected 2 to 16"),
        ([QuantizedTraining(4), QuantizedTraining(2)], {}, r"0\.weight: quantize and quantize both claim its values"),
        ([QuantizedTraining(Weights(4, "pact"))], {}, r"quantize: weights: range 'pact' is none of minmax, lsq"),
        ([QuantizedTraining(Weights(4, scheme="asymmetric"))], {}, r"scheme: asymmetric goes with minmax or learned"),
        ([QuantizedTraining(4, freeze_bn=1.5)], {}, r"freeze_bn 1\.5 is impossible, expected a fraction from 0 to 1"),
        ([QuantizedTraining(None, 17)], {}, r"0\.weight: bits 17 is impossible"),
        (
            [QuantizedTraining(None, {"0.bias": 8})],
            {},
            r"0\.bias: its input cannot be quantized: it is no weight of a Linear",
        ),
        ([QuantizedTraining(None, 8)], {}, r"^quantize: activations needs samples of the training data"),
    ],
)
def test_what_is_impossible_is_refused_before_training(methods: Any, structure: Any, message: str) -> None:
    """In one line; the model is an ordinary one then."""
    model = net()
    with pytest.raises(StructureError, match=message):
        attach(model, methods, 1, structure=structure)
    assert [type(one) for one in model] == [nn.Linear, nn.ReLU, nn.Linear]
    assert list(model.state_dict()) == ["0.weight", "0.bias", "2.weight", "2.bias"]


RANGED = [
    (word, scheme) for word, one in RANGES.items() for scheme in ("symmetric", "asymmetric")[: 1 + one.asymmetric]
]


@pytest.mark.parametrize(("word", "scheme"), RANGED)
def test_every_range_trains_into_a_file(word: str, scheme: Any, tmp_path: Path) -> None:
    """Weights on grids of so many bits, inputs by edits: the file makes the same network of the user's class."""
    weights = Weights(4, word, "channel", scheme) if RANGES[word].weights else None
    model = net()
    made = train(model, QuantizedTraining(weights, Activations(6, word, scheme)), epochs=5)
    assert made.fit.best_metric > 0.7
    (account,) = (account for _, account in made.accounts)
    if word == "pact":
        assert account.notes == ["0:input[0]: values below 0 come by, so pact2 stands in for pact"]
    for one in model.state_dict() if weights else ():
        if one.endswith("weight"):
            assert made.structure[one] == ("grid(4, 0)",)
            assert max(len(row.unique()) for row in model.state_dict()[one]) <= 16
    bridge.save(plain_state(model), tmp_path / "m.dcz", edits=account.edits)
    again = bridge.load_into(net(), tmp_path / "m.dcz")
    x = problem().train[0]
    assert torch.equal(model.eval()(x), again.eval()(x))
    assert [one["scheme"] for one in account.edits] == [scheme, "asymmetric"]  # unsigned values are from 0 on


@pytest.mark.parametrize(("bits", "word"), [(16, "lsq"), (12, "minmax"), (2, "tqt")])
def test_bits_are_from_2_to_16(bits: int, word: str) -> None:
    """Many integers are as exact as few."""
    model = net()
    made = train(model, QuantizedTraining(Weights(bits, word)), epochs=1)
    assert made.structure["0.weight"] == (f"grid({bits})",)
    check(plain_state(model), plain_state(model), made.structure)


class Turned(nn.Module):
    """Convolutions there and back."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.there, self.back = nn.Conv1d(2, 4, 1), nn.ConvTranspose1d(4, 2, 3, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(n, 2, l) -> (n, 2, l + 2)."""
        found: Tensor = self.back(self.there(x))
        return found


def test_channels_are_where_the_layer_has_its_outputs() -> None:
    """A transposed convolution's are on axis 1; with groups they are on none, and that is said."""
    model = Turned()
    with attach(model, [QuantizedTraining(Weights(4, per="channel"))], 1) as session:
        shapes = [one.parametrizations.weight[0].range.scale().shape for one in (model.there, model.back)]
    assert shapes == [(4, 1, 1), (1, 2, 1)]
    assert session.accounts[0][1].structure["back.weight"] == ("grid(4, 1)",)
    with pytest.raises(StructureError, match=r"back\.weight: is of a transposed convolution with 2 groups"):
        attach(Turned(groups=2), [QuantizedTraining(Weights(4, per="channel"))], 1)


def test_levels_of_pact_are_in_the_loss() -> None:
    """Their squares, as much as is asked for."""
    model, (x, y) = net(), problem().train
    with attach(model, [QuantizedTraining(activations=Activations(4, "pact", penalty=0.5))], 5, samples=[(x, y)]) as on:
        levels = [float(model[site].input_0_range.range.level().detach()) for site in (0, 2)]
        loss = on.loss(torch.zeros(()), (x, y), None).detach()
        assert float(loss) == pytest.approx(0.5 * sum(one**2 for one in levels))


class Normed(nn.Sequential):
    """With BatchNorm between two layers."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))


def test_batchnorm_stands_still_for_the_last_part() -> None:
    """Its statistics do not move, whatever mode a loop puts the model in; its weights learn; afterwards it is free."""
    model, seen, (x, y) = Normed(), [], problem().train
    with attach(model, [QuantizedTraining(4, freeze_bn=0.5)], 8) as session:
        optimizer = torch.optim.SGD(session.parameters(lr=0.1))
        for _ in range(8):
            model.train()
            outputs = model(x)
            optimizer.zero_grad()
            nn.functional.cross_entropy(outputs, y).backward()
            optimizer.step()
            session.step()
            seen.append([one.clone() for one in (*model[1].buffers(), model[1].weight)])
    moved = [[not torch.equal(*pair) for pair in zip(*two, strict=True)] for two in pairwise(seen)]
    assert moved == [[True] * 4] * 3 + [[False, False, False, True]] * 4
    model.train()(x)
    assert not torch.equal(model[1].running_mean, seen[-1][0])


def test_a_model_without_batchnorm_has_none_to_freeze(caplog: pytest.LogCaptureFixture) -> None:
    """A key that does nothing is told."""
    attach(net(), [QuantizedTraining(4, freeze_bn=0.5)], 1).close()
    assert "freeze_bn: the model has no BatchNorm with running statistics" in caplog.text


def test_a_tied_tensor_has_one_number_of_bits() -> None:
    """Two names of one tensor that say different things are refused; one grid is put at every use."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with pytest.raises(StructureError, match=r"0\.weight and 2\.weight are one tensor"):
        attach(model, [QuantizedTraining({"0.weight": 4, "2.weight": 8})], 1)
    with attach(model, [QuantizedTraining(4)], 1):
        assert model[0].parametrizations.weight[0] is model[2].parametrizations.weight[0]
    assert model[0].weight is model[2].weight and len(model[0].weight.unique()) <= 15


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.full((4, 6), math.nan), r"0:input\[0\]: NaN, infinity or more than 1e154 came by it"),
        (torch.zeros(0, 6), r"0:input\[0\]: all that came by it was empty"),
    ],
)
def test_samples_without_a_number_are_told(batch: Tensor, message: str) -> None:
    """Before anything trains, with the site."""
    with pytest.raises(StructureError, match=message):
        attach(net(), [QuantizedTraining(activations=8)], 1, samples=[batch])


def test_what_functions_multiply_is_noted() -> None:
    """It trains in float, and nothing else says so."""

    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            return y @ y.T

    model, method = Squared(), QuantizedTraining(activations=8)
    method.attach(model, Context(samples=lambda count: [torch.randn(8, 4)]))
    method.close(model)
    (note,) = method.finish(model).notes
    assert note.startswith(
        "activations: matmul stays float, 1 call a forward in the model's own forward: it multiplies"
    )
