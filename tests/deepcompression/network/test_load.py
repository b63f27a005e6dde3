"""Loading: every value arrives, or one line says which does not; ties are found where they lie."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from deepcompression import torch as bridge
from deepcompression.errors import StructureError, WeightsError
from deepcompression.network import names
from deepcompression.network.state import dense_bytes, plain_state
from deepcompression.structure import hold


class Tied(nn.Module):
    """An encoder and a decoder on one weight, a norm, and (where asked for) what no file holds."""

    def __init__(self, hidden: str = "") -> None:
        super().__init__()
        self.enc = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.dec = nn.Linear(4, 4)
        self.dec.weight = self.enc.weight
        if hidden == "buffer":
            self.register_buffer("angles", torch.arange(4.0), persistent=False)
        if hidden == "attribute":
            self.scale = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.dec(self.norm(self.enc(x)))


def by_data() -> Tied:
    model = Tied()
    model.dec.weight = nn.Parameter(torch.empty(4, 4))
    model.dec.weight.data = model.enc.weight.data
    return model


def saved(model: nn.Module, path: Path) -> Path:
    bridge.save(model.state_dict(), path)
    return path


def test_a_model_on_the_meta_device_gets_memory_and_every_value(tmp_path: Path):
    """Large models are built on meta: to come back empty, or with ties cut, would be found out too late."""
    path = saved(Tied().half(), tmp_path / "m.dcz")
    with torch.device("meta"):
        model = Tied().half()
    model.enc.bias.requires_grad_(False)
    bridge.load_into(model, path)
    file = bridge.load(path)
    assert all(torch.equal(tensor, file[name]) for name, tensor in model.state_dict().items())
    assert model.dec.weight is model.enc.weight and not model.enc.bias.requires_grad
    assert model.eval()(torch.ones(2, 4).half()).isfinite().all()


def test_a_model_that_is_partly_on_meta_keeps_what_is_not(tmp_path: Path):
    """Only what has no memory is replaced: an optimizer may hold the rest already."""
    path = saved(Tied(), tmp_path / "m.dcz")
    model = Tied()
    kept, model.norm = model.enc.weight, nn.BatchNorm1d(4, device="meta")
    bridge.load_into(model, path)
    assert model.enc.weight is kept and torch.equal(kept, bridge.load(path)["enc.weight"])
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_equal_tensors_of_a_file_stay_two_in_a_model_that_does_not_tie_them(tmp_path: Path):
    """A file stores equal tensors once; training one of them must not move the other."""
    bridge.save({"0.weight": torch.ones(3, 3), "1.weight": torch.ones(3, 3)}, tmp_path / "m.dcz")
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    bridge.load_into(model, tmp_path / "m.dcz")
    model[0].weight.data.zero_()
    assert model[1].weight.all()


@pytest.mark.parametrize(("hidden", "name"), [("buffer", "angles"), ("attribute", "scale")])
def test_what_no_file_holds_cannot_stay_on_meta(hidden: str, name: str, tmp_path: Path):
    """A non-persistent buffer has values that only building the model makes."""
    path = saved(Tied(hidden), tmp_path / "m.dcz")
    with torch.device("meta"):
        model = Tied(hidden)
    with pytest.raises(WeightsError, match=rf"m\.dcz: {name} is on the meta device, and not in the state_dict"):
        bridge.load_into(model, path)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


@pytest.mark.parametrize("make", [Tied, by_data])
def test_unlike_values_under_two_names_of_one_tensor_are_refused(make: Callable[[], nn.Module]):
    """Which of the two would have won was chance."""
    model = make()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bridge.load_state(model, state, where="f")
    state["dec.weight"][0, 0] += 1
    with pytest.raises(WeightsError, match=r"f: enc\.weight and dec\.weight are one tensor .* unlike values"):
        bridge.load_state(model, state, where="f")
    del state["enc.weight"]
    bridge.load_state(model, state, where="f")
    assert torch.equal(model.enc.weight, state["dec.weight"])


def test_casts_that_lose_nothing_pass_and_others_are_told_or_refused(caplog: pytest.LogCaptureFixture):
    """A model in another dtype than its file must not round, or drop a fraction, without a word."""
    caplog.set_level(logging.WARNING, "deepcompression")
    exact = {"weight": torch.ones(2, 2).half() / 3, "bias": torch.zeros(2, dtype=torch.int64)}
    model = nn.Linear(2, 2)
    bridge.load_state(model, exact, where="f")
    assert torch.equal(model.weight, exact["weight"].float()) and not caplog.records
    bridge.load_state(nn.Linear(2, 2).half(), {"weight": torch.ones(2, 2) / 3, "bias": torch.zeros(2)}, where="f")
    assert caplog.messages == [
        "f: the model holds fewer digits than the file: weight from float32 to float16 is rounded"
    ]
    counter = nn.BatchNorm1d(2, affine=False)
    state = {**counter.state_dict(), "num_batches_tracked": torch.tensor(0.5)}
    with pytest.raises(WeightsError, match="num_batches_tracked is float32, the model's is int64"):
        bridge.load_state(counter, state, where="f")
    state["num_batches_tracked"] = torch.tensor(1j)
    with pytest.raises(WeightsError, match="num_batches_tracked is complex64"):
        bridge.load_state(counter, state, where="f")


def test_what_would_become_infinite_is_refused():
    """A file of float32 in a model of float16: digits may go with a warning, weights may not turn into infinity."""
    state = {"weight": torch.tensor([[1.0, 7e4]]), "bias": torch.tensor([torch.inf])}
    with pytest.raises(WeightsError, match="weight is float32, the model's is float16, which does not hold its values"):
        bridge.load_state(nn.Linear(2, 1).half(), state, where="f")
    state["weight"][0, 1] = 7.0
    bridge.load_state(nn.Linear(2, 1).half(), state, where="f")


def test_weights_that_are_no_numbers_are_told_by_name(caplog: pytest.LogCaptureFixture):
    """A checkpoint of a training that went wrong must not look like a bad metric; a mask of -inf is no weight."""
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2,), -torch.inf))
    state = {**model.state_dict(), "bias": torch.tensor([torch.nan, 1.0])}
    bridge.load_state(model, state, where="f")
    assert caplog.messages == ["f: weights that are NaN or infinite: bias"]


@pytest.mark.parametrize(
    ("weight", "told"),
    [
        (torch.eye(2).to_sparse(), "a torch.sparse_coo tensor"),
        (torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8), "torch.qint8"),
        (torch.empty(2, 2, device="meta"), "on the meta device"),
    ],
)
def test_tensors_without_plain_values_are_refused_by_name(weight: Tensor, told: str):
    """A checkpoint may hold any kind of tensor; torch's own message for such ones is a page long."""
    with pytest.raises(WeightsError, match=rf"^f: weight is .*{told}.*; only dense ones with values can be loaded$"):
        bridge.load_state(nn.Linear(2, 2, bias=False), {"weight": weight}, where="f")


def test_two_parameters_on_one_memory_are_one_tensor():
    """Tied by ``.data``: held once, saved once, counted once, and tied for good afterwards."""
    model = by_data()
    state = plain_state(model)
    assert names.prunable(model) == ["enc.weight"] and state["enc.weight"] is state["dec.weight"]
    assert dense_bytes(model) == dense_bytes(Tied())
    model.enc.weight.data[0] = 0
    assert hold.hold(model).zeros == ["enc.weight"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    hold.bake(model)
    assert model.dec.weight is model.enc.weight and not model.dec.weight[0].any()


def test_unlike_views_of_one_memory_are_refused():
    """A transposed decoder has no mask of its own: its load would undo what pruning did to the encoder."""
    model = Tied()
    model.dec.weight = nn.Parameter(model.enc.weight.detach().t())
    for use in (plain_state, lambda one: hold.hold(one, ["dec.weight"])):
        with pytest.raises(StructureError, match=r"enc\.weight and dec\.weight are unlike views of the same memory"):
            use(model)


def test_views_without_an_element_in_common_are_two_tensors():
    """Parameters cut from one buffer (flattened recurrent weights, packed projections) lie beside each other."""
    flat = torch.randn(4, 8)
    model = nn.Module()
    model.left, model.right, model.rows = (nn.Parameter(part) for part in (flat[:2, :4], flat[:2, 4:], flat[2:]))
    assert len({id(one) for one in plain_state(model).values()}) == 3
    assert hold.hold(model, ["left"]).zeros == ["left"]
