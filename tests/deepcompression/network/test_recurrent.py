"""Recurrent layers step by step: the same as PyTorch's kernels, and rounded where an edit says so."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils import _pytree

from deepcompression.codec.edits import pack, unpack
from deepcompression.errors import EditError, InputError
from deepcompression.network.edits.apply import apply_all
from deepcompression.network.edits.integers import levels, on_grid, range_of
from deepcompression.network.edits.quantize_values import Site
from deepcompression.network.edits.recurrent import forward
from deepcompression.quantization.inputs import inputs_of

RECORD = {"kind": "quantize_values", "range": "dynamic", "bits": 8, "scheme": "asymmetric"}


WEIGHTS = [f"r.weight_{of}_l{layer}" for layer in (0, 1) for of in ("ih", "hh")]


def tensors(given: Any) -> list[Tensor]:
    output, state = given
    output = output.data if isinstance(output, PackedSequence) else output
    return [one for one in _pytree.tree_leaves((output, state)) if isinstance(one, Tensor)]


def rounded(value: Tensor) -> Tensor:
    return on_grid(value, *range_of(value, 8, "asymmetric"), *levels(8, "asymmetric"))


def every(side: str, number: int, value: Tensor) -> Tensor:
    return value


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN_TANH", "RNN_RELU", "projected"])
def test_step_by_step_is_what_the_kernels_compute(kind: str) -> None:
    """Layers, directions, layouts, packed sequences of unlike length, states before, projections, no biases."""
    torch.manual_seed(0)
    value, series = torch.randn(3, 6, 4), [torch.randn(length, 4) for length in (3, 6, 5)]
    for layers, both in product((1, 2), (False, True)):
        batch_first, bias = both, layers == 2
        keys: dict[str, Any] = {"num_layers": layers, "bidirectional": both, "batch_first": batch_first, "bias": bias}
        if kind.startswith("RNN"):
            module: nn.RNNBase = nn.RNN(4, 5, nonlinearity=kind[4:].lower(), **keys)
        else:
            module = nn.GRU(4, 5, **keys) if kind == "GRU" else nn.LSTM(4, 5, proj_size=2 * (kind != "LSTM"), **keys)
        for given in (value, value[0], pack_sequence(series, enforce_sorted=False)):
            first = module(given)
            for state in (None, first[1]):
                pairs = zip(tensors(module(given, state)), tensors(forward(module, given, state, every)), strict=True)
                assert all(one.shape == two.shape and torch.allclose(one, two, atol=1e-5) for one, two in pairs)


def test_inputs_of_layers_and_hidden_states_are_rounded_by_what_comes() -> None:
    """Each by its own range, each step's hidden state alone, as PyTorch's dynamic quantization does; copies too."""
    torch.manual_seed(0)
    model, x = nn.ModuleDict({"r": nn.GRU(3, 4, num_layers=2)}), torch.randn(5, 2, 3)
    sites = inputs_of(model, dict.fromkeys(WEIGHTS, 8), "dynamic").sites
    assert sorted(map(str, sites)) == ["r:hidden[0]", "r:hidden[1]", "r:input[0]", "r:layer[1]"]
    state = model.state_dict()
    cells = [nn.GRUCell(3, 4), nn.GRUCell(4, 4)]
    for layer, cell in enumerate(cells):
        cell.load_state_dict({name: state[f"r.{name}_l{layer}"] for name in cell.state_dict()})
    apply_all(model, [{**RECORD, "sites": [str(site)]} for site in sites])
    assert {name for name in model.state_dict() if name.endswith("edit")} == {
        f"r.{one}_edit" for one in ("input_0", "hidden_0", "layer_1", "hidden_1")
    }
    wanted = x
    for cell in cells:
        hidden, given = torch.zeros(2, 4), []
        for value in rounded(wanted):
            apart = hidden - rounded(hidden)  # what goes on is not rounded: the gate that keeps it is what is left
            plain = cell(value, rounded(hidden))
            gates = nn.functional.linear(value, cell.weight_ih, cell.bias_ih).chunk(3, 1)[1]
            gates = gates + nn.functional.linear(rounded(hidden), cell.weight_hh, cell.bias_hh).chunk(3, 1)[1]
            hidden = plain + gates.sigmoid() * apart
            given.append(hidden)
        wanted = torch.stack(given)
    with torch.no_grad():
        assert torch.allclose(model["r"](x)[0], wanted, atol=1e-5)
        again = copy.deepcopy(model)
        for weight in again.parameters():
            weight.zero_()
        assert not again["r"](x)[0].any() and model["r"](x)[0].any()


@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_the_hidden_state_of_a_cell_is_rounded(make: Any) -> None:
    """As that of a layer of one step."""
    torch.manual_seed(0)
    layer = {nn.LSTMCell: nn.LSTM, nn.GRUCell: nn.GRU, nn.RNNCell: nn.RNN}[make](3, 4)
    model, x, h = nn.ModuleDict({"c": make(3, 4), "r": layer}), torch.randn(2, 3), torch.randn(1, 2, 4)
    layer.load_state_dict({f"{name}_l0": value for name, value in model["c"].state_dict().items()})
    exact = model["c"](x)
    apply_all(model, [{**RECORD, "sites": ["c:hidden[0]"]}, {**RECORD, "sites": ["r:hidden[0]"]}])
    wanted = _pytree.tree_leaves(layer(x[None], (h, h) if make is nn.LSTMCell else h)[1])
    got = _pytree.tree_leaves(model["c"](x, (h[0], h[0]) if make is nn.LSTMCell else h[0]))
    assert all(torch.allclose(one[0], two, atol=1e-6) for one, two in zip(wanted, got, strict=True))
    none = zip(_pytree.tree_leaves(exact), _pytree.tree_leaves(model["c"](x)), strict=True)
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in none)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"range": "static"}, r"range of r:hidden\[1\] is static"),
        ({"sites": ["l:hidden[0]"]}, r"l:hidden\[0\] cannot be quantized: a Linear is no recurrent layer"),
        ({"sites": ["r:hidden[2]"]}, r"r:hidden\[2\] cannot be quantized: it has 1 layers of 2 directions"),
        ({"sites": ["r:layer[0]"]}, r"r:layer\[0\] cannot be quantized: it has 1 layers of 2 directions"),
    ],
)
def test_sites_that_a_module_has_not(changes: dict[str, Any], words: str) -> None:
    """One line, and the model is as it was."""
    model = nn.ModuleDict({"r": nn.LSTM(3, 4, bidirectional=True), "l": nn.Linear(2, 2)})
    with pytest.raises(EditError, match=words):
        apply_all(model, [{**RECORD, "sites": ["r:hidden[0]"]}, {**RECORD, "sites": ["r:hidden[1]"], **changes}])
    assert "forward" not in vars(model["r"]) and not model["r"]._forward_pre_hooks


def test_directions_have_one_input() -> None:
    """Unlike bits for the one value are refused, for no order may decide; a projection's input is out of reach."""
    model = nn.ModuleDict({"r": nn.LSTM(3, 4, num_layers=2, bidirectional=True, proj_size=2)})
    both = dict.fromkeys(["r.weight_ih_l1", "r.weight_ih_l1_reverse"], 8)
    assert inputs_of(model, both, "dynamic").sites == {Site("r", "layer", 1): 8}
    assert inputs_of(model, {"r.weight_hh_l1_reverse": 4}, "dynamic").sites == {Site("r", "hidden", 3): 4}
    for layer, site in ((0, "input"), (1, "layer")):
        table = {f"r.weight_ih_l{layer}": 8, f"r.weight_ih_l{layer}_reverse": 4}
        with pytest.raises(InputError, match=rf"4 bits for r:{site}\[{layer}\], which has 8 by another weight"):
            inputs_of(model, table, "dynamic")
    with pytest.raises(InputError, match=r"r\.weight_hr_l0: its input cannot be quantized: .* no projection's"):
        inputs_of(model, {"r.weight_hr_l0": 8}, "dynamic")


def test_files_say_which_version_made_such_sites() -> None:
    """An older reader tells its user what to install."""
    for site, since in (("r:input[0]", "0.2.0"), ("r:hidden[0]", "0.3.0"), ("r:layer[1]", "0.3.0")):
        (content,) = pack([{**RECORD, "sites": [site]}]).values()
        assert unpack(content)[0]["since"] == since
