"""Layers of a model, one after the other."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcompression.errors import StructureError
from deepcompression.network.state import plain_state
from deepcompression.pruning.prune import prune
from deepcompression.quantization import linear
from deepcompression.reconstruction.calls import Call, Calls
from deepcompression.reconstruction.layer import Wanted
from deepcompression.reconstruction.reconstruct import Done, Reconstruction, Task, reconstruct
from deepcompression.sharing.share import share
from deepcompression.structure.constraints import constraint


class Same(nn.Conv2d):
    """Pads by itself, as EfficientNets from TensorFlow do."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(functional.pad(x, (0, 1, 1, 0)), self.weight, self.bias, self.stride)


def _net() -> nn.Module:
    torch.manual_seed(0)
    body = [
        Same(3, 8, 2, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True),
        nn.Conv2d(8, 16, 3, groups=8, padding="same", dilation=2), nn.ReLU(),
        nn.Conv2d(16, 12, 1, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
    ]  # fmt: skip
    net = nn.Sequential(*body, nn.Linear(48, 6)).eval()
    net[1].running_var.fill_(0.3)
    return net


class Heads(nn.Module):
    """Three layers of one input, whose products meet; a matrix that nothing multiplies by as a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(6, 4, bias=bias) for bias in (True, False, True))
        self.table = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)) @ self.table


SAMPLES = torch.randn(48, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def _task(model: nn.Module, wanted: Wanted, structure: Mapping[str, Any] | None = None, x: Tensor = SAMPLES) -> Task:
    names = [name for name, one in model.named_parameters() if one.ndim > 1]
    return Task(dict.fromkeys(names, wanted), lambda: x.split(16), lambda net, batch: net(batch), structure or {})


def _off(model: nn.Module, other: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        before = model(x)
        return float((other(x) - before).square().mean() / before.var())


def test_columns_are_what_weights_multiply() -> None:
    """Of every kind of call: the matrix times them is what the layer gives, whatever pads, strides or groups it."""
    net = _net()
    seen: list[Call] = []
    outputs: dict[str, Tensor] = {}
    for name, module in net.named_modules():
        module.register_forward_hook(lambda _, __, out, name=name: outputs.setdefault(f"{name}.weight", out))
    weights = {name: one for name, one in net.named_parameters() if one.ndim > 1}
    net[2].inplace = False
    with torch.no_grad(), Calls(weights, seen.append):
        net(SAMPLES[:4])
    assert [call.name for call in seen] == ["0.weight", "3.weight", "5.weight", "9.weight"]
    for call in seen:
        columns, weight = call.columns(call.batch), weights[call.name]
        made = weight.detach().reshape(len(columns), -1, columns.shape[1]) @ columns  # (groups, rows, places)
        out = outputs[call.name]
        bias = getattr(net.get_submodule(call.name[:-7]), "bias", None)
        plain = out if bias is None else out - bias.detach().reshape(1, -1, *[1] * (out.ndim - 2))
        assert torch.allclose(made.reshape(len(weight), -1), plain.movedim(1, 0).flatten(1), atol=1e-4)


@pytest.mark.parametrize("wanted", [Wanted(bits=3), Wanted(bits=4, method="linear"), Wanted(density=0.6)])
def test_outputs_stay_nearer_than_when_each_weight_is_for_itself(wanted: Wanted) -> None:
    """On samples that it has not seen, beside share, quantize and prune of the same size."""
    net, made = _net(), _net()
    done = reconstruct(made, _task(made, wanted))
    names, state = [one.name for one in done.layers], plain_state(net)
    if wanted.density:
        state = prune(state, dict.fromkeys(names, wanted.density)).state
    elif wanted.method == "kmeans":
        state = share(state, dict.fromkeys(names, 3), init="optimal").state
    else:
        state = linear.quantize(state, linear.table(net, dict.fromkeys(names, 4), per="tensor", range="mse")).state
    plain = _net()
    plain.load_state_dict(state)
    fresh = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(2))
    assert _off(net, made, fresh) < 0.7 * _off(net, plain, fresh)
    assert [one.constant for one in done.layers] == ["1.running_mean", "3.bias", "5.bias", "9.bias"]


def test_layers_of_one_input_are_one_pass_and_what_is_no_layer_is_told() -> None:
    """Attention's projections; without a bias the constant stays, and says why."""
    torch.manual_seed(0)
    net, passes = Heads().eval(), []
    x = torch.randn(40, 5, 6)
    task = replace(_task(net, Wanted(bits=3), x=x), feed=lambda: passes.append(1) or [x])  # type: ignore[func-returns-value]
    before = copy.deepcopy(net)
    done = reconstruct(net, task)
    assert {one.name: bool(one.constant) for one in done.layers} == {
        "q.weight": True,
        "k.weight": False,
        "v.weight": True,
    }
    assert len(passes) == 2 and "no bias" in done.layers[1].fixed
    assert list(done.left) == ["table"] and torch.equal(net.table, before.table)
    assert _off(before, net, x) < 0.1


def test_what_is_there_is_kept_and_fitted() -> None:
    """Zeros stay zeros, what shares stays together, integers stay, and outputs come nearer."""
    net = _net()
    names = ["0.weight", "3.weight", "5.weight", "9.weight"]
    state = prune(plain_state(net), {"0.weight": 0.6, "5.weight": 0.5}).state
    state = share(state, {"0.weight": 2, "3.weight": 2}).state
    done = linear.quantize(state, linear.table(net, {"9.weight": 3}, per="channel", range="mse"))
    words = {"0.weight": ("zeros", "shared"), "3.weight": ("shared",), "5.weight": ("zeros",), **done.structure}
    rough, made = _net(), _net()
    rough.load_state_dict(done.state)
    made.load_state_dict(done.state)
    before = plain_state(made)
    # What it aims at is the outputs of what it is given: here those of the dense net are wanted.
    task = replace(_task(made, Wanted(), words), targets=net)
    reconstruct(made, task)
    after = plain_state(made)
    for name in names:
        assert not torch.equal(before[name], after[name])
        for word in words[name]:
            constraint(word).check(name, before[name], after[name])
    assert _off(net, made, SAMPLES) < 0.7 * _off(net, rough, SAMPLES)


def test_interrupted_work_goes_on_where_it_was() -> None:
    """Layers that are done are put in as they were, and no sample is looked at for them."""
    whole, again = _net(), _net()
    done: dict[str, Done] = {}
    first = reconstruct(whole, _task(whole, Wanted(bits=3)), done=lambda one: done.update({one.layer.name: one}))
    second = reconstruct(
        again, _task(again, Wanted(bits=3)), earlier=lambda name: done.get(name) if name < "5" else None
    )
    assert first == second
    for name, one in whole.state_dict().items():
        assert torch.equal(one, again.state_dict()[name])


def test_values_that_are_not_finite_are_one_line() -> None:
    """Which layer they go into; so is the want of samples."""
    net = _net()
    with pytest.raises(StructureError, match=r"^reconstruct: what goes into 0.weight is not finite"):
        reconstruct(net, _task(net, Wanted(bits=3), x=SAMPLES * float("inf")))
    with pytest.raises(StructureError, match="no samples"):
        reconstruct(net, replace(_task(net, Wanted(bits=3)), feed=list))


def _conv1d() -> nn.Module:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nf, self.nx = 5, 7
            self.weight = nn.Parameter(torch.randn(7, 5))
            self.bias = nn.Parameter(torch.zeros(5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight)

    return Conv1D()


def test_the_linear_layer_of_transformers_has_its_inputs_on_the_first_axis() -> None:
    """Its weight is (in, out), and so is what comes back."""
    torch.manual_seed(0)
    net = _conv1d()
    x = torch.randn(64, 7) @ torch.randn(7, 7)
    before = copy.deepcopy(net)
    done: Reconstruction = reconstruct(net, _task(net, Wanted(bits=3), x=x))
    assert done.layers[0].values == 8 and _off(before, net, x) < 0.02


def test_constants_stay_as_fine_as_they_were() -> None:
    """What a stage before rounded to float16 takes no more room afterwards; what it did not is not rounded."""
    net = _net()
    with torch.no_grad():
        net[3].bias.copy_(net[3].bias.half())
    before = net[3].bias.clone()
    reconstruct(net, _task(net, Wanted(bits=3)))
    assert not torch.equal(net[3].bias, before) and torch.equal(net[3].bias, net[3].bias.half().float())
    assert not torch.equal(net[5].bias, net[5].bias.half().float())


def test_independent_layers_are_the_same_in_one_pass_or_many() -> None:
    """What goes into them is what did before any of them changed, and so it matters not when it is looked at."""
    nets, passes = [], []
    for together in (1, 9):
        net = _net()
        seen: list[int] = []
        task = replace(_task(net, Wanted(bits=3)), together=together, independent=True)
        feed = lambda seen=seen: seen.append(1) or SAMPLES.split(16)  # noqa: E731
        reconstruct(net, replace(task, feed=feed))
        nets.append(net.state_dict())
        passes.append(len(seen))
    assert passes == [5, 2]  # one finds the order of calls
    assert all(torch.equal(one, nets[1][name]) for name, one in nets[0].items())
