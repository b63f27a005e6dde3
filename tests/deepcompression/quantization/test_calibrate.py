"""Grids of activations after training: which values, from which samples, how many passes; and what is refused."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import DataError, StructureError
from deepcompression.network.edits.apply import apply_all
from deepcompression.network.edits.quantize_values import Site
from deepcompression.quantization.calibrate import Calibration, Plan, calibrate
from deepcompression.quantization.inputs import inputs_of
from deepcompression.quantization.observers import OBSERVERS
from deepcompression.quantization.observers.histogram import Histogram
from deepcompression.training.device import Compute
from deepcompression.training.method import Context


class Net(nn.Module):
    """``a`` and ``b`` take one value; ``c`` takes another, nothing of which is below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)
        self.drop, self.norm = nn.Dropout(0.5), nn.BatchNorm1d(8)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        """Counts how often it was called."""
        self.calls += 1
        return self.c(self.drop((self.norm(self.a(x)) + self.b(x)).relu()))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


def samples(count: int = 64) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(1)) - 0.5


def context(value: Tensor, size: int = 8, wrap: Any = lambda x: (x, None)) -> Context:
    """Batches of tuples; ``wrap`` makes others."""

    def given(count: int) -> Iterator[Any]:
        return (wrap(one) for one in value[:count].split(size))

    return Context(given, lambda model, batch: model(_first(batch)), compute=Compute("cpu"))


def _first(batch: Any) -> Tensor:
    return batch["x"] if isinstance(batch, dict) else batch[0]


def calibrated(model: nn.Module, given: Context, bits: Any = 8, **plan: Any) -> Calibration:
    return calibrate(model, given, inputs_of(model, bits, plan.get("range", "static")).sites, Plan(**plan))


def quantized(found: Calibration, dense: nn.Module, blank: nn.Module) -> nn.Module:
    apply_all(blank, [one.record() for one in found.found])
    blank.load_state_dict({**dense.state_dict(), **found.state()})
    return blank.eval()


def test_one_pass_over_values_that_are_each_looked_at_once() -> None:
    """Sites of one value share a grid and a tensor; ranges are those of the values; the model is as it was."""
    model, x = net(), samples()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    found = calibrated(model, context(x), observer="minmax")
    assert model.calls == 8
    assert [one.sites for one in found.found] == [("a:input[0]", "b:input[0]"), ("c:input[0]",)]
    first, second = found.found
    assert (first.least, first.most, first.clipped) == (float(x.min()), float(x.max()), 0.0)
    assert (second.least, second.zero_point, second.scheme) == (0.0, 0, "asymmetric")
    assert found.samples == 64
    assert found.digest
    assert model.training
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    state = found.state()
    assert state["a.input_0_scale"] is state["b.input_0_scale"]
    assert sorted(state) == sorted(f"{one}.input_0_{what}" for one in "abc" for what in ("scale", "zero_point"))
    after = quantized(found, model, net())
    assert torch.allclose(after(x), model.eval()(x), atol=0.05)
    assert not torch.equal(after(x), model(x))


@pytest.mark.parametrize("wrap", [lambda x: (x, None), lambda x: {"x": x, "name": "n"}, lambda x: [x]])
def test_samples_of_any_form_and_any_cut(wrap: Any) -> None:
    """Dicts, tuples, lists; batches of other sizes give the same grids, bit for bit; other samples another digest."""
    first = calibrated(net(), context(samples()), observer="kl")
    other = calibrated(net(), context(samples(), 32, wrap), observer="kl")
    assert other.found == first.found
    fewer = calibrated(net(), context(samples()), observer="kl", samples=16)
    assert (fewer.samples, fewer.digest == first.digest) == (16, False)


@pytest.mark.parametrize("observer", [*OBSERVERS, "auto"])
@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_every_observer_can_be_named(observer: str, scheme: str) -> None:
    """Of 8 bits a net computes nearly the same, whoever chose the range."""
    found = calibrated(net(), context(samples()), observer=observer, scheme=scheme)
    model = net()
    assert [one.scheme for one in found.found] == [scheme, "asymmetric"]
    after = quantized(found, model, net())
    assert torch.allclose(after(samples()), model.eval()(samples()), atol=3.0 if observer == "moving_average" else 0.5)


def test_auto_takes_what_changes_outputs_least_on_samples_kept_apart() -> None:
    """Three quarters are looked at, a quarter judges; the error is that of the layer's own outputs, by hand."""
    model, x = net(), samples()
    x[8:16] *= 3  # the second batch, and each fourth from it on, is kept apart
    told: list[int] = []
    found = calibrate(model, context(x), inputs_of(model, 3).sites, Plan(observer="auto"), told.append)
    assert (model.calls, told) == (8, [*range(1, 9)])
    seen, apart = torch.cat([x[:8], x[16:40], x[48:]]), torch.cat([x[8:16], x[40:48]])
    one = found.found[0]
    assert (one.least, one.most) == (float(seen.min()), float(seen.max()))
    assert one.observer == min(one.errors, key=lambda name: one.errors[name])
    alone = calibrated(model, context(seen), 3, observer=one.observer).found[0]
    assert (alone.scale, alone.zero_point) == (one.scale, one.zero_point)
    expected, after = 0.0, quantized(found, model, net())
    for name in "ab":
        wanted = model.get_submodule(name)(apart).detach()
        expected += float((after.get_submodule(name)(apart).detach() - wanted).square().sum() / wanted.square().sum())
    assert one.errors[one.observer] == pytest.approx(expected, rel=1e-4)
    assert len(one.errors) > 3


@pytest.mark.parametrize("kind", ["dynamic", "dynamic_row", "dynamic_token"])
def test_dynamic_ranges_look_at_no_values(kind: str) -> None:
    """One forward, a site each, and no scale; what comes is as good as with static ranges."""
    model, x = net(), samples()
    found = calibrated(model, context(x), range=kind)
    assert model.calls == 1
    assert [(one.sites, one.scale, one.range) for one in found.found] == [
        ((f"{i}:input[0]",), None, kind) for i in "abc"
    ]
    assert set(found.state()) == {f"{one}.input_0_edit" for one in "abc"}
    assert torch.allclose(quantized(found, model, net())(x), model.eval()(x), atol=0.05)


@pytest.mark.parametrize("kind", ["static", "dynamic", "dynamic_token"])
@pytest.mark.parametrize("make", [nn.LSTM, nn.GRU, nn.LSTMCell, nn.GRUCell])
def test_recurrent_layers_when_they_are_named(make: Any, kind: str) -> None:
    """Their input is a site; alone it is left, and the table says why; static, inner weights are refused by name."""
    torch.manual_seed(0)
    cell = issubclass(make, nn.RNNCellBase)
    model, blank = (nn.Sequential(OrderedDict(r=make(4, 4), l=nn.Linear(4, 2)))[:1] for _ in range(2))
    x = torch.randn(6, 4) if cell else torch.randn(5, 3, 4)
    name = "r.weight_ih" + ("" if cell else "_l0")
    found = calibrated(model, context(x, 3), {name: 8}, range=kind)
    first = lambda out: out if isinstance(out, Tensor) else out[0]  # noqa: E731
    wanted, got = first(model(x)), first(quantized(found, model, blank)(x))
    assert torch.allclose(got, wanted, atol=0.05)
    assert not torch.equal(got, wanted)
    both = nn.ModuleDict({"r": make(4, 4), "l": nn.Linear(4, 4)})
    assert inputs_of(both, 8).left == {name: "the input of a recurrent layer is quantized only when named"}
    with pytest.raises(StructureError, match=r"r\.weight_hh.*its input cannot be quantized: it multiplies"):
        inputs_of(both, {name.replace("_ih", "_hh"): 8})


def test_ops_whose_input_cannot_be_quantized() -> None:
    """Named: one line says why. Meant by default alone: left, with why."""
    model = nn.ModuleDict({"m": nn.MultiheadAttention(4, 2), "e": nn.Embedding(3, 4), "l": nn.Linear(4, 4)})
    found = inputs_of(model, 8)
    assert found.sites == {Site("l", "input", 0): 8}
    assert list(found.left) == ["m.out_proj.weight"]
    for name, words in (
        ("m.out_proj", r"the attention m takes its projections' weights and never calls them"),
        ("m.in_proj_weight", r"the attention m uses it inside"),
        ("e", "an embedding takes indices"),
        ("l.bias", "it is no weight of a Linear, Conv or recurrent layer"),
    ):
        with pytest.raises(StructureError, match=f"its input cannot be quantized: {words}.*; leave it out of"):
            inputs_of(model, {name: 8})
    for bits in (1, 17):
        with pytest.raises(StructureError, match=rf"l\.weight: bits {bits} is impossible, expected 2 to 16"):
            inputs_of(model, {"l": bits})
    apply_all(
        model,
        [{"kind": "quantize_values", "sites": ["l:input[0]"], "range": "dynamic", "bits": 8, "scheme": "symmetric"}],
    )
    with pytest.raises(StructureError, match=r"l:input\[0\]: is quantized already; leave it out of activations"):
        inputs_of(model, 4)


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_sites_by_which_no_value_comes(kind: str) -> None:
    """By keyword, of another type, or never: named, in one line."""

    class Numbers(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return self.weight[x]

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.key, self.rest, self.numbers = nn.Linear(4, 4), nn.Linear(4, 4), Numbers(4, 4)

        def forward(self, x: Tensor) -> Any:
            self.key(input=x)
            return self.numbers((x > 0).long().argmax(1))

    for bits, words in (
        ({"key": 8}, r"activations: key:input\[0\] cannot be quantized: its input comes by keyword \(input=\)"),
        (
            {"rest": 8},
            r"rest:input\[0\] cannot be quantized: no value came by it in 64 samples: the forward",
        ),
        ({"numbers": 8}, r"numbers:input\[0\] cannot be quantized: a tensor of torch.int64 comes by it"),
    ):
        with pytest.raises(StructureError, match=words):
            calibrated(Odd(), context(samples()), bits, range=kind)


def test_samples_with_which_nothing_can_be_found() -> None:
    """None, not finite, one batch for auto, others at each pass: one line each."""
    with pytest.raises(StructureError, match="activations: no samples came to calibrate with"):
        calibrated(net(), context(samples()[:0], wrap=lambda x: (x, None)), samples=0)
    with pytest.raises(StructureError, match=r"activations needs samples of the training data"):
        calibrated(net(), Context())
    for bad in (math.nan, math.inf):
        x = samples()
        x[40, 2] = bad
        with pytest.raises(DataError, match=r"activations: a value that comes by a:input\[0\] is not finite"):
            calibrated(net(), context(x))
    with pytest.raises(StructureError, match="auto keeps a quarter of the batches apart, and there is one"):
        calibrated(net(), context(samples(), 64), observer="auto")
    generator = torch.Generator().manual_seed(0)
    drawn = Context(lambda count: (torch.randn(4, 4, generator=generator) for _ in range(4)), lambda model, x: model(x))
    with pytest.raises(DataError, match="the training split gave other samples at its second pass"):
        calibrated(net(), drawn, observer="auto")
    seeded = Context(lambda count: (torch.randn(4, 4) for _ in range(4)), lambda model, x: model(x))
    assert calibrated(net(), seeded, observer="auto").samples == 16


def test_calibration_that_is_cut_short_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in a forward, and begun again: the same grids, and no hook of the first."""
    model, add, count = net(), Histogram.add, iter(range(9))

    def dying(self: Histogram, value: Tensor) -> None:
        if next(count) == 7:
            raise KeyboardInterrupt
        add(self, value)

    with monkeypatch.context() as patch:
        patch.setattr(Histogram, "add", dying)
        with pytest.raises(KeyboardInterrupt):
            calibrated(model, context(samples()))
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert calibrated(model, context(samples())) == calibrated(net(), context(samples()))


def test_memory_does_not_grow_with_samples() -> None:
    """What is held between batches is a histogram a value, of a fixed size, whatever came by."""
    sizes = []
    for count in (8, 64):
        seen = Histogram()
        for batch in samples(count).split(8):
            seen.add(batch)
        sizes.append(seen.counts.numel())
    assert sizes[0] == sizes[1]


class Attending(nn.Module):
    """Products of all kinds beside those of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rest = nn.Linear(4, 4), nn.GRU(4, 4)
        self.own = nn.Parameter(torch.ones(4, 4))
        self.head = nn.MultiheadAttention(4, 2, batch_first=True)
        self.inner = nn.Sequential(Times(), Times())

    def forward(self, x: Tensor) -> Tensor:
        x = self.rest(self.first(x))[0]
        x = x @ x.transpose(-1, -2) @ x + torch.einsum("ij,jk->ik", x, self.own) + nn.functional.linear(x, self.own)
        x = self.head(x[None], x[None], x[None])[0][0]
        return self.inner(nn.functional.scaled_dot_product_attention(x[None], x[None], x[None])[0])


class Times(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.matmul(x.T).softmax(1).mm(x)


@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_what_functions_multiply_is_said_to_stay_float(kind: str) -> None:
    """Nothing is silent: each function, how often and where; a layer's own product, once on a grid, is not among it."""
    model = Attending()
    found = calibrated(model, context(samples()), {"first": 8}, range=kind)
    assert [one.split(":")[0] for one in found.floating] == [
        "matmul stays float, 4 calls a forward in the model's own forward, inner.0, inner.1",
        "einsum stays float, 1 call a forward in the model's own forward",
        "linear stays float, 1 call a forward in the model's own forward",
        "multi_head_attention_forward stays float, 1 call a forward in head",
        "scaled_dot_product_attention stays float, 1 call a forward in the model's own forward",
        "mm stays float, 2 calls a forward in inner.0, inner.1",
    ]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert not calibrated(net(), context(samples()), range=kind).floating


def test_layers_of_one_weight_have_the_same_bits() -> None:
    """Tied, or named twice: no order decides, one line does."""
    tied = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    tied[2].weight = tied[0].weight
    assert inputs_of(tied, {"2": 4}).sites == {Site("0", "input", 0): 4, Site("2", "input", 0): 4}
    for table in ({"0": 8, "2": 4}, {"0": 8, "0.weight": 4}):
        with pytest.raises(StructureError, match=r"are one tensor, 0\.weight, and cannot have 8 and 4; name it once"):
            inputs_of(tied, table)
