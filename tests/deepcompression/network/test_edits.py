"""Edits: what they do to a model, that they do all or nothing, and through a file."""

from __future__ import annotations

import copy
import io
from collections import OrderedDict
from collections.abc import Mapping
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import deepcompression
from deepcompression import torch as bridge
from deepcompression.codec.edits import SINCE
from deepcompression.errors import EditError, InputError, WeightsError
from deepcompression.network.channels import channel_groups
from deepcompression.network.edits.apply import KINDS, apply, apply_all, check, check_values
from deepcompression.network.edits.fold import foldable
from deepcompression.network.edits.integers import levels, on_grid, range_of
from deepcompression.network.edits.resize import cut_state, record_of
from deepcompression.network.load import load_state
from deepcompression.network.names import prunable
from deepcompression.network.parametrized import computed
from deepcompression.network.resizing import resize

GOLDEN = Path(__file__).resolve().parents[2] / "golden"
QUANTIZE = {"kind": "quantize_values", "range": "static", "bits": 8, "scheme": "asymmetric"}
DYNAMIC = {**QUANTIZE, "range": "dynamic", "scheme": "symmetric"}


class Conv1D(nn.Module):
    """As the transformers library has it for GPT-2."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) / 8), nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        """(..., nx) -> (..., nf)."""
        return torch.addmm(self.bias, x.reshape(-1, self.nx), self.weight).view(*x.shape[:-1], self.nf)


def small() -> nn.Sequential:
    """What the golden file with edits was made for."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, 4, 3),
            norm=nn.BatchNorm2d(4),
            act=nn.Tanh(),
            flat=nn.Flatten(),
            fc=parametrizations.weight_norm(nn.Linear(16, 3)),
        )
    )


def golden() -> Any:
    """The script that wrote the golden files."""
    spec = spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def mlp() -> nn.Sequential:
    """Two layers, the second with equal input and output, and a BatchNorm."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2)).eval()


def shot(model: nn.Module) -> tuple[Any, ...]:
    """What must not change where an edit is refused."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    return str(model), [(name, tensor.shape, tensor.sum()) for name, tensor in state.items()], hooks


# ---------------------------------------------------------------- the whole way


def test_the_golden_file_turns_a_model_into_that_of_its_tensors() -> None:
    """load_into makes all kinds of edits and loads strictly; what comes out is what the records say, by hand."""
    model = bridge.load_into(small(), GOLDEN / "v1-edits.dcz").eval()
    made = {name: torch.from_numpy(array) for name, array in golden().edited().items()}
    assert {name: tensor.tolist() for name, tensor in model.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in made.items()
    }
    assert type(model.fc) is nn.Linear
    assert (model.conv.out_channels, model.norm.num_features, model.fc.in_features) == (3, 3, 10)
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    value = nn.functional.conv2d(x, made["conv.weight"], made["conv.bias"])
    value = (torch.round(value / 0.03125) + 96).clamp(0, 255).sub(96) * 0.03125
    norm = [made[f"norm.{name}"] for name in ("running_mean", "running_var", "weight", "bias")]
    value = nn.functional.batch_norm(value, *norm).flatten(1)[:, made["fc.selected"]]
    scale = value.abs().max() / 7
    value = torch.round(value / scale).clamp(-8, 7) * scale
    assert torch.allclose(model(x), value @ made["fc.weight"].T + made["fc.bias"], atol=1e-6)
    check(model, lambda one: one(x))
    assert torch.equal(copy.deepcopy(model)(x), model(x))


def test_who_knows_no_edits_refuses_the_file() -> None:
    """Released `load_into` was this: the tensors into the model as it is. Each edit alone, and all, are refused."""
    state = bridge.load(GOLDEN / "v1-edits.dcz")
    with pytest.raises(WeightsError, match=r"does not fit the model; missing: .*; unexpected: .*; shape: "):
        load_state(small(), state, where="v1-edits.dcz")
    records = [
        {"kind": "resize", "tensors": {"3.weight": [1, 4], "3.bias": [1]}, "modules": {"3": {"out_features": 1}}},
        {"kind": "bypass", "module": "2"},
        {"kind": "bypass", "module": "1"},
        {"kind": "select_inputs", "module": "0", "count": 5},
        {**QUANTIZE, "sites": ["0:input[0]"]},
        {**DYNAMIC, "sites": ["0:output[0]"]},
    ]
    for record in records:
        model = mlp()
        apply(model, record)
        with pytest.raises(WeightsError, match="does not fit the model"):
            load_state(mlp(), model.state_dict(), where="w")
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(2, 2)))
    before = copy.deepcopy(model)
    apply_all(model, foldable(model))
    with pytest.raises(WeightsError, match="does not fit the model"):
        load_state(before, model.state_dict(), where="w")


def test_channels_removed_go_through_a_file(tmp_path: Path) -> None:
    """The record that the channel groups give, with sizes alone, is made of the user's model by load_into."""
    torch.manual_seed(0)
    build = lambda: nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2))  # noqa: E731
    model, x = build().eval(), torch.randn(3, 1, 4, 4)
    [group] = channel_groups(model, lambda one: one(x))[0]
    cut = resize(model, [(group, [0, 2, 5])])
    record, thin, before = record_of(model, cut), cut_state(model.state_dict(), cut), model[0].weight.detach()
    with torch.no_grad():
        masked = copy.deepcopy(model)
        masked[4].weight.view(2, 6, 4)[:, [1, 3, 4]] = 0
    assert record["tensors"]["0.weight"] == [3, 1, 3, 3]
    assert record["modules"] == {"0": {"out_channels": 3}, "1": {"num_features": 3}, "4": {"in_features": 12}}
    apply(model, record)
    load_state(model, thin, where="thin")
    assert torch.equal(model[0].weight, before[[0, 2, 5]])
    assert torch.allclose(model(x), masked(x), atol=1e-6)
    check(model, lambda one: one(x))
    bridge.save(model.state_dict(), tmp_path / "m.dcz", edits=[record])
    back = bridge.load_into(build(), tmp_path / "m.dcz").eval()
    assert torch.equal(back(x), model(x))
    assert deepcompression.inspect(tmp_path / "m.dcz")["edits"] == [{**record, "since": "0.2.0"}]


def test_a_file_that_does_not_fit_leaves_the_model_alone(tmp_path: Path) -> None:
    """After all edits were made, the strict load may fail: they are taken back; the message names the file."""
    model = small()
    before = shot(model)
    edits = golden().EDITS
    bridge.save({"a": torch.ones(1)}, tmp_path / "m.dcz", edits=edits)
    with pytest.raises(WeightsError, match=r"m\.dcz: does not fit the model; missing: "):
        bridge.load_into(model, tmp_path / "m.dcz")
    assert shot(model) == before
    with pytest.raises(EditError, match=r"m\.dcz: edit fold: the model computes no tensor 'fc\.weight'"):
        bridge.load_into(mlp(), tmp_path / "m.dcz")
    assert bridge.load_into(model, GOLDEN / "v1-edits.dcz") is model
    with pytest.raises(EditError, match=r"v1-edits\.dcz: edit fold"):
        bridge.load_into(model, GOLDEN / "v1-edits.dcz")


def test_a_model_on_the_meta_device_is_edited_and_filled() -> None:
    """As without edits, its memory comes with the file."""
    with torch.device("meta"):
        model = small()
    assert bridge.load_into(model, GOLDEN / "v1-edits.dcz")(torch.ones(1, 1, 4, 4)).shape == (1, 3)


# ---------------------------------------------------------------- kinds


def test_the_closed_set_of_kinds() -> None:
    """What can be written can be made."""
    assert set(KINDS) == set(SINCE)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"kind": "rotate"}, r"edit rotate: no version known here makes it; this is .*, which knows resize, "),
        ({"kind": "rotate", "since": "9.1"}, r"edit rotate: it needs deep-compression 9\.1; this is "),
        ({"kind": "threshold", "sites": ["0:hidden[0]"]}, "a site is module:input"),
        ({"kind": "threshold", "sites": ["9:input[0]"]}, "edit threshold: the model has no module '9'"),
        ({"kind": "threshold", "sites": ["0:input[0]"], "value": 1}, "edit threshold: the key 'value' is not known"),
        ({"kind": 3}, "an edit is a mapping with the key kind"),
        ("fold", "an edit is a mapping with the key kind, not 'fold'"),
    ],
)
def test_unknown_kinds_are_refused_before_anything(record: Any, message: str) -> None:
    """One line that says which version makes the edit; those before it in the list are not made either."""
    model = mlp()
    before = shot(model)
    with pytest.raises(EditError, match=message):
        apply_all(model, [{"kind": "bypass", "module": "2"}, record])
    assert shot(model) == before


SIZES = {"kind": "resize", "modules": {}, "tensors": {}}
MISFITS: list[tuple[dict[str, Any], str]] = [
    ({"kind": "bypass"}, "edit bypass: the key module is missing; expected module"),
    ({"kind": "bypass", "module": "2", "x": 1}, "edit bypass: the key 'x' is not known here; expected module"),
    ({"kind": "bypass", "module": 2}, "edit bypass: module is a text, not 2"),
    ({"kind": "bypass", "module": "9"}, "edit bypass: the model has no module '9'"),
    ({"kind": "bypass", "module": ""}, "edit bypass: the model cannot be left out: it is the whole model"),
    ({"kind": "bypass", "module": "0"}, "edit bypass: 0 cannot be left out: it makes 4 features of 6"),
    ({"kind": "fold", "tensor": "0.weight"}, "edit fold: the model computes no tensor '0.weight'"),
    ({"kind": "select_inputs", "module": "1", "count": 2}, "edit select_inputs: 1 is a BatchNorm1d; inputs are"),
    ({"kind": "select_inputs", "module": "0", "count": 6}, "edit select_inputs: 0 takes 6 inputs, of which 6 are no"),
    ({"kind": "select_inputs", "module": "0", "count": True}, "edit select_inputs: count is a whole number above 0"),
    ({**SIZES}, "edit resize: no tensor gets another shape"),
    ({**SIZES, "tensors": {"x": [1]}}, "edit resize: the model has no tensor 'x'"),
    ({**SIZES, "tensors": {"0.bias": [5]}}, r"edit resize: 0.bias has the shape \(4,\), of which \[5\] is no part"),
    ({**SIZES, "tensors": {"0.bias": [2, 2]}}, "edit resize: 0.bias has the shape"),
    ({**SIZES, "tensors": {"0.bias": 2}}, "edit resize: 0.bias would have the shape"),
    ({**SIZES, "tensors": {"0.bias": [0]}}, "edit resize: a size of 0.bias is a whole number above 0, not 0"),
    ({**SIZES, "tensors": [1]}, "edit resize: tensors is a mapping by names"),
    (
        {**SIZES, "tensors": {"0.bias": [3], "0.weight": [3, 6]}},
        r"edit resize: 0.weight would have the shape \(3, 6\), which does not fit in_features = 6, out_features = 4",
    ),
    ({**SIZES, "modules": {"x": {}}}, "edit resize: the model has no module 'x'"),
    ({**SIZES, "modules": {"0": 3}}, "edit resize: modules: 0 has attributes by name, not 3"),
    (
        {**SIZES, "modules": {"0": {"__class__": 3}}},
        "edit resize: 0: '__class__' may not be changed; of a Linear in_features, out_features may",
    ),
    ({**SIZES, "modules": {"": {"training": 1}}}, "'training' may not be changed; of a Sequential no attribute may"),
    ({**SIZES, "modules": {"0": {"out_features": -1}}}, "0: out_features is a whole number above 0, not -1"),
    ({**QUANTIZE, "sites": []}, "edit quantize_values: sites are a list of at least one"),
    (
        {**QUANTIZE, "sites": ["0"]},
        r"edit quantize_values: a site is module:input\[i\] or module:output\[i\], layer or hidden, not '0'",
    ),
    ({**QUANTIZE, "sites": ["9:input[0]"]}, "edit quantize_values: the model has no module '9'"),
    (
        {**QUANTIZE, "sites": ["0:input[0]"], "range": "wide"},
        "range is one of static, dynamic, dynamic_row, dynamic_token, not 'wide'",
    ),
    ({**QUANTIZE, "sites": ["0:input[0]"], "scheme": "odd"}, "scheme is one of symmetric, asymmetric, not 'odd'"),
    ({**QUANTIZE, "sites": ["0:input[0]"], "bits": 1}, "bits are from 2 to 16, not 1"),
    ({**QUANTIZE, "sites": ["0:input[0]", "0:input[0]"]}, "0 has a input_0_scale already"),
]


@pytest.mark.parametrize(("record", "message"), MISFITS, ids=[message[:60] for _, message in MISFITS])
def test_a_misfit_is_one_line_and_changes_nothing(record: Mapping[str, Any], message: str) -> None:
    """Whatever is wrong with the last edit, those before it are taken back, and the same model can be edited then."""
    model = mlp()
    before = shot(model)
    good = [{**DYNAMIC, "sites": ["3:output[0]"]}, {"kind": "select_inputs", "module": "3", "count": 3}]
    with pytest.raises(EditError, match=message) as caught:
        apply_all(model, [*good, record])
    assert "\n" not in str(caught.value)
    assert shot(model) == before
    apply_all(model, good)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1, 9)
    | st.sampled_from(
        [
            "",
            "0",
            "1",
            "3",
            "x",
            "0.weight",
            "3.bias",
            "static",
            "dynamic",
            "symmetric",
            "0:input[0]",
            "x:output[1]",
            "signs",
            "scaled",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["0", "3", "0.weight", "in_features", "out_features", "num_features"]), inner)
    ),
    max_leaves=6,
)
KEYS = [
    "module",
    "tensor",
    "count",
    "tensors",
    "modules",
    "sites",
    "range",
    "bits",
    "scheme",
    "since",
    "x",
    "values",
    "shape",
]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from([*KINDS, "x"]), st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4), st.data())
def test_any_plain_record_is_made_or_refused(kind: str, values: dict[str, Any], data: st.DataObject) -> None:
    """Records come from files of anybody: nothing but an EditError, and no half of an edit."""
    wanted = {"bypass": ["module"], "fold": ["tensor"], "select_inputs": ["module", "count"]}
    wanted |= {"resize": ["tensors", "modules"], "quantize_values": ["sites", "range", "bits", "scheme"]}
    wanted |= {"binary": ["sites", "values", "shape"]}
    if data.draw(st.booleans()):  # the right keys, so that their values are looked at
        values = {key: values.get(key, data.draw(VALUES)) for key in wanted.get(kind, [])}
    model = mlp()
    before = shot(model)
    try:
        apply(model, {"kind": kind, **values})
    except EditError as error:
        assert "\n" not in str(error)
        assert shot(model) == before


def test_bypass_everywhere() -> None:
    """A module that stands in several places is left out in all, also one that is called with more than its input."""
    block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    model = nn.ModuleDict({"a": block, "b": nn.ModuleList([block, nn.Conv1d(2, 2, 3, padding=1)])})
    apply_all(model, [{"kind": "bypass", "module": "b.0"}, {"kind": "bypass", "module": "b.1"}])
    assert list(model.state_dict()) == ["a.edit", "b.0.edit", "b.1.edit"]
    x = torch.ones(1, 2, 4)
    assert model["a"](x, src_mask=None) is x
    with pytest.raises(EditError, match="its output has other places than its input"):
        apply(nn.Sequential(nn.Conv1d(2, 2, 3)), {"kind": "bypass", "module": "0"})
    with pytest.raises(EditError, match="what a LSTM returns is not of its input's form"):
        apply(nn.Sequential(nn.LSTM(2, 2)), {"kind": "bypass", "module": "0"})


@pytest.mark.parametrize(
    ("layer", "shape", "count", "axis"),
    [
        (nn.Linear(6, 3), (2, 5, 6), 4, 1),
        (nn.Conv2d(4, 3, 1), (2, 4, 3, 3), 3, 1),
        (nn.Conv1d(4, 3, 1), (4, 5), 2, 1),
        (nn.ConvTranspose2d(4, 3, 2), (1, 4, 3, 3), 2, 0),
        (Conv1D(3, 6), (2, 5, 6), 4, 0),
    ],
    ids=lambda one: type(one).__name__,
)
def test_selected_inputs_are_as_if_the_weights_of_others_were_zero(
    layer: nn.Module, shape: tuple[int, ...], count: int, axis: int
) -> None:
    """Batched or not, whatever the layout of the weight, for each class of layer."""
    thin = copy.deepcopy(layer)
    record = {"kind": "select_inputs", "module": "", "count": count}
    apply(thin, record)
    numbers = torch.arange(count) + 1
    weight: Any = layer.weight
    state = {**layer.state_dict(), "weight": weight.detach().index_select(axis, numbers), "selected": numbers}
    check_values(thin, [record], state)
    thin.load_state_dict(state)
    with torch.no_grad():
        gone = torch.ones(weight.shape[axis], dtype=torch.bool).index_fill(0, numbers, False)
        weight.movedim(axis, 0)[gone] = 0
    x = torch.randn(shape)
    assert torch.allclose(thin(x), layer(x), atol=1e-6)
    with pytest.raises(EditError, match="selected must hold ascending numbers from 0 to"):
        check_values(thin, [record], {"selected": numbers.flip(0)})
    with pytest.raises(EditError, match="selected must hold ascending numbers from 0 to"):
        check_values(thin, [record], {"selected": numbers + 3})


def test_resize_keeps_ties_and_all_classes_of_the_closed_list() -> None:
    """Tied tensors stay one; attributes of each class change with them."""
    model = nn.ModuleDict(
        {
            "emb": nn.Embedding(5, 4),
            "head": nn.Linear(4, 5, bias=False),
            "ln": nn.LayerNorm(4),
            "gn": nn.GroupNorm(2, 4),
            "prelu": nn.PReLU(4),
            "dw": nn.Conv2d(4, 4, 3, groups=4),
            "up": nn.ConvTranspose1d(4, 6, 2, groups=2),
            "c1": Conv1D(4, 4),
            "own": nn.ParameterList([torch.ones(4)]),
        }
    )
    model["head"].weight = model["emb"].weight
    record = {
        "kind": "resize",
        "tensors": {
            "emb.weight": [5, 2],
            **{f"{name}.{own}": [2] for name in ("ln", "gn") for own in ("weight", "bias")},
            **{"prelu.weight": [2], "own.0": [3], "c1.weight": [4, 2], "c1.bias": [2]},
            **{"dw.weight": [2, 1, 3, 3], "dw.bias": [2], "up.weight": [2, 3, 2]},
        },
        "modules": {
            "emb": {"embedding_dim": 2},
            "head": {"in_features": 2},
            "ln": {"normalized_shape": [2]},
            "gn": {"num_channels": 2},
            "prelu": {"num_parameters": 2},
            "dw": {"groups": 2, "in_channels": 2, "out_channels": 2},
            "up": {"in_channels": 2},
            "c1": {"nf": 2},
        },
    }
    apply(model, record)
    assert model["head"].weight is model["emb"].weight
    x = torch.ones(3, 2)
    assert model["head"](model["emb"](torch.tensor([1]))).shape == (1, 5)
    assert model["ln"](x).shape == model["gn"](x).shape == model["prelu"](x).shape == x.shape
    assert model["dw"](torch.ones(1, 2, 3, 3)).shape == (1, 2, 1, 1)
    assert model["up"](torch.ones(1, 2, 3)).shape == (1, 6, 4)
    assert model["c1"](torch.ones(1, 4)).shape == (1, 2)
    with pytest.raises(EditError, match=r"the sizes of LSTM \(0\) are not changed"):
        apply(nn.Sequential(nn.LSTM(2, 2)), {**SIZES, "tensors": {"0.bias_ih_l0": [4]}})


def test_a_forward_of_a_fixed_size_is_named() -> None:
    """The one line says in which layer, and hooks of the trial are gone."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.inner = nn.Linear(2, 4), nn.Sequential(nn.Linear(4, 2))

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(self.a(x).view(-1, 4))

    model = Fixed()
    record = {
        "kind": "resize",
        "tensors": {"a.weight": [3, 2], "a.bias": [3], "inner.0.weight": [2, 3]},
        "modules": {"a": {"out_features": 3}, "inner.0": {"in_features": 3}},
    }
    apply(model, record)
    with pytest.raises(EditError, match=r"the edited model does not run: the model's own forward: RuntimeError: shape"):
        check(model, lambda one: one(torch.ones(1, 2)))
    with pytest.raises(EditError, match=r"the edited model does not run: inner\.0: RuntimeError: "):
        check(model, lambda one: one(torch.ones(4, 2)))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


# ---------------------------------------------------------------- quantize_values


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_grid_holds_zero_and_its_integers(bits: int, scheme: str) -> None:
    """Values are a scale times an integer of the range, rounded to nearest; 0 stays +0.0; twice is once."""
    low, high = levels(bits, scheme)
    value = torch.cat([torch.zeros(1), torch.randn(500, generator=torch.Generator().manual_seed(bits)) * 3 + 1])
    scale, zero = range_of(value, bits, scheme)
    after = on_grid(value, scale, zero, low, high)
    codes = (after / scale).round() + zero
    assert torch.equal((codes - zero) * scale, after)
    assert int(codes.min()) >= low
    assert int(codes.max()) <= high
    assert float(after[0]) == 0
    assert float((after - value).abs().max()) <= float(scale) * (0.5 if scheme == "symmetric" else 1.001)
    assert torch.equal(on_grid(after, scale, zero, low, high), after)
    flat = range_of(torch.zeros(3), bits, scheme)[0]
    assert float(flat) == 1


def test_gradients_are_those_of_lsq() -> None:
    """1 within the range and 0 beyond for the values; the rounding's error, or the end, for the scale."""
    value = torch.tensor([0.3, -9.0, 9.0, 1.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    on_grid(value, scale, torch.tensor(0), -4, 3).sum().backward()
    assert value.grad is not None
    assert value.grad.tolist() == [1, 0, 0, 1]
    assert scale.grad is not None
    assert float(scale.grad) == pytest.approx((1 - 0.6) - 4 + 3 + 0)


def test_sites_of_one_record_share_their_scale(tmp_path: Path) -> None:
    """One tensor under two names: stored once, loaded as one; hooks go along with copies, and classes stay."""
    model = mlp()
    record = {**QUANTIZE, "sites": ["0:output[0]", "1:input[0]"]}
    apply(model, record)
    assert model[0].output_0_scale is model[1].input_0_scale
    assert [type(one) for one in model] == [type(one) for one in mlp()]
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scale, zero = range_of(nn.functional.linear(x, model[0].weight, model[0].bias), 8, "asymmetric")
        model[0].output_0_scale.copy_(scale)
        model[0].output_0_zero_point.copy_(zero)
    bridge.save(model.state_dict(), tmp_path / "m.dcz", edits=[record])
    back = bridge.load_into(mlp(), tmp_path / "m.dcz")
    assert back[0].output_0_scale is back[1].input_0_scale
    assert torch.equal(back(x), model(x))
    assert not torch.equal(back(x), mlp()(x))
    stream = io.BytesIO()
    torch.save(model, stream)
    back[0].output_0_scale.fill_(float("nan"))
    bridge.save(back.state_dict(), tmp_path / "n.dcz", edits=[record])
    with pytest.raises(EditError, match=r"n\.dcz: edit quantize_values: the scale of 0:output\[0\] must be finite"):
        bridge.load_into(mlp(), tmp_path / "n.dcz")
    state = {**model.state_dict(), "1.input_0_zero_point": torch.tensor(256)}
    with pytest.raises(EditError, match=r"the zero point of 1:input\[0\] must be from 0 to 255, not 256"):
        check_values(model, [record], state)


@pytest.mark.parametrize("scheme", ["symmetric", "asymmetric"])
def test_rows_and_tokens_have_ranges_of_their_own(scheme: str, tmp_path: Path) -> None:
    """Each row, or vector, as if it came alone; fewer than two dimensions are one; the file says since when."""
    value = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 12).view(3, 4, 1)
    value[2, 3] = 0

    def rounded(kind: str, one: Tensor) -> Tensor:
        scale, zero = range_of(one, 4, scheme, kind)
        return on_grid(one, scale, zero, *levels(4, scheme))

    alone = [rounded("dynamic", row) for row in value]
    assert torch.equal(rounded("dynamic_row", value), torch.stack(alone))
    assert range_of(value, 4, scheme, "dynamic_row")[0].shape == (3, 1, 1)
    alone = [rounded("dynamic", token) for token in value.flatten(0, 1)]
    assert torch.equal(rounded("dynamic_token", value), torch.stack(alone).view_as(value))
    for kind in ("dynamic_row", "dynamic_token"):
        assert torch.equal(rounded(kind, value[0, 0]), rounded("dynamic", value[0, 0]))
        assert torch.equal(rounded(kind, value[0, 0, 0]), rounded("dynamic", value[0, 0, 0]))
        model, record = mlp(), {**DYNAMIC, "range": kind, "scheme": scheme, "sites": ["1:input[0]"]}
        apply(model, record)
        bridge.save(model.state_dict(), tmp_path / "m.dcz", edits=[record])
        assert deepcompression.File(tmp_path / "m.dcz").edits[0]["since"] == "0.3.0"
        back, x = bridge.load_into(mlp(), tmp_path / "m.dcz"), torch.randn(5, 6)
        assert torch.equal(back(x), model(x))
    with pytest.raises(EditError, match=r"not 'dynamic_column'; it needs deep-compression 9\.0"):
        apply(mlp(), {**DYNAMIC, "range": "dynamic_column", "since": "9.0", "sites": ["1:input[0]"]})


def test_sites_that_are_no_values() -> None:
    """What comes by keyword, is no float, or is never called is said, and never passed over."""

    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb, self.fc, self.rest = nn.Embedding(3, 2), nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=self.emb(x))

    run = lambda one: one(torch.tensor([[0, 1]]))  # noqa: E731
    for site, words in (
        ("fc:input[0]", r"fc:input\[0\] is not there: 0 values come by position"),
        ("fc:output[1]", r"fc:output\[1\] is not there: 1 values"),
        ("emb:input[0]", r"emb:input\[0\] is no floating-point tensor, but a tensor of torch\.int64"),
        ("rest:input[0]", r"the forward never comes by rest:input\[0\]: rest is not called"),
    ):
        model = Calls()
        apply(model, {**DYNAMIC, "sites": [site]})
        with pytest.raises(EditError, match=f"edit quantize_values: {words}"):
            check(model, run)
    attention = nn.Sequential(nn.MultiheadAttention(4, 2))
    with pytest.raises(EditError, match="the attention 0 takes its projections' weights and never calls them"):
        apply(attention, {**DYNAMIC, "sites": ["0.out_proj:input[0]"]})
    lstm = nn.Sequential(nn.LSTM(2, 2))
    apply_all(lstm, [{**DYNAMIC, "sites": ["0:output[0]"]}, {**DYNAMIC, "sites": ["0:input[0]"]}])
    output, _ = lstm(torch.ones(1, 1, 2))
    assert output.shape == (1, 1, 2)
    half = nn.Sequential(nn.Linear(2, 2)).bfloat16()
    apply(half, {**DYNAMIC, "sites": ["0:input[0]"]})
    assert half(torch.ones(1, 2).bfloat16()).dtype == torch.bfloat16
    assert half(torch.ones(0, 2).bfloat16()).shape == (0, 2)


# ---------------------------------------------------------------- fold


class Symmetric(nn.Module):
    """A parametrization of the user's own."""

    def forward(self, weight: Tensor) -> Tensor:
        """The upper triangle, mirrored."""
        return weight.triu() + weight.triu(1).T


def _pruned(layer: nn.Module) -> nn.Module:
    from torch.nn.utils import prune

    return prune.l1_unstructured(layer, "weight", amount=0.5)


MADE = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
    "own": lambda: parametrize.register_parametrization(nn.Linear(4, 4), "weight", Symmetric()) or None,
    "old weight_norm": lambda: torch.nn.utils.weight_norm(nn.Linear(4, 4)),
    "old spectral_norm": lambda: torch.nn.utils.spectral_norm(nn.Linear(4, 4)),
    "prune": lambda: _pruned(nn.Linear(4, 4)),
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_computed_weight_becomes_what_the_forward_used(kind: str, tmp_path: Path) -> None:
    """Bit for bit, selected by default, an ordinary layer; copies, which share a class, are not touched."""
    torch.manual_seed(0)
    model = nn.Sequential(MADE[kind](), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    with torch.no_grad():
        model(x)  # old hooks have a value, spectral norms an estimate
    model.eval()
    copied = copy.deepcopy(model)
    with torch.no_grad():
        expected, records = model(x), foldable(model)
    assert records == [{"kind": "fold", "tensor": "0.weight"}]
    model.train()
    apply_all(model, records)
    assert model.training
    assert torch.equal(model.eval()(x), expected)
    assert type(model[0]) is nn.Linear
    assert list(model.state_dict()) == ["0.bias", "0.weight", "1.weight", "1.bias"]
    assert not computed(model)
    assert prunable(model) == ["0.weight", "1.weight"]
    assert isinstance(model[0].weight, nn.Parameter)
    assert model[0].weight.requires_grad
    assert torch.equal(copied(x), expected)
    assert computed(copied)
    bridge.save(model.state_dict(), tmp_path / "m.dcz", edits=records)
    back = bridge.load_into(copied, tmp_path / "m.dcz")
    assert torch.equal(back(x), expected)


def test_one_of_two_parametrizations_of_a_module() -> None:
    """The other stays, also in a copy that shares the class; a refusal afterwards brings the first back."""
    layer = parametrizations.weight_norm(parametrizations.weight_norm(nn.LSTM(2, 2), "weight_hh_l0"), "weight_ih_l0")
    model, x = nn.Sequential(layer), torch.randn(3, 1, 2)
    copied, expected = copy.deepcopy(model), model(x)[0]
    first, second = foldable(model)
    with pytest.raises(EditError):
        apply_all(model, [first, {"kind": "bypass", "module": "9"}])
    assert foldable(model) == [first, second]
    assert torch.equal(model(x)[0], expected)
    apply(model, first)
    assert foldable(model) == [second]
    assert torch.allclose(model(x)[0], expected, atol=1e-6)
    apply(model, second)
    assert type(model[0]) is nn.LSTM
    assert torch.allclose(model(x)[0], expected, atol=1e-6)
    assert torch.equal(copied(x)[0], expected)
    with torch.no_grad():
        model[0].weight_hh_l0.zero_()
    assert not torch.allclose(model(x)[0], expected)


def test_a_hook_that_nobody_knows_is_not_taken_out() -> None:
    """It is named, with what to do."""

    class Doubled:
        name = "weight"

        def __call__(self, module: Any, _: object) -> None:
            module.weight = module.weight_orig * 2

    layer: Any = nn.Linear(2, 2)
    layer.weight_orig = layer._parameters.pop("weight")
    layer.register_forward_pre_hook(Doubled())
    layer.weight = layer.weight_orig * 2
    model = nn.Sequential(layer)
    assert foldable(model) == []
    with pytest.raises(
        EditError, match="this hook is not known, and cannot be taken out; do so in the model's factory"
    ):
        apply(model, {"kind": "fold", "tensor": "0.weight"})


def test_edits_are_inputs_of_the_user() -> None:
    """A misfit ends with exit code 2, as all that is wrong with an input."""
    assert issubclass(EditError, InputError)


# ---------------------------------------------------------------- binary

SIGNS = {"kind": "binary", "sites": ["0:input[0]"], "values": "signs", "shape": []}
SCALED = {"kind": "binary", "sites": ["2:input[0]"], "values": "scaled", "shape": [3, 1, 1]}


def maps() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.Identity(), nn.Conv2d(3, 2, 1))


def test_binary_values_go_through_a_file_into_the_users_model(tmp_path: Path) -> None:
    """Signs, and a scale above a threshold of each channel; 0 of either sign becomes 1, NaN stays to be seen."""
    edited = maps()
    apply_all(edited, [SIGNS, SCALED])
    names = ["0.input_0_edit", "2.input_0_scale", "2.input_0_threshold"]
    assert [name for name in edited.state_dict() if "input" in name] == names
    threshold = torch.tensor([0.5, -0.25, 0.0])
    state = {**edited.state_dict(), names[1]: torch.tensor(0.75), names[2]: threshold.reshape(3, 1, 1)}
    bridge.save(state, tmp_path / "m.dcz", edits=[SIGNS, SCALED])
    loaded = bridge.load_into(maps(), tmp_path / "m.dcz")
    with pytest.raises(InputError):
        bridge.load_into(maps(), bridge_file_without_edits(state, tmp_path))
    x = torch.randn(4, 2, 5, 5)
    x[0, 0, 0, :2] = torch.tensor([0.0, -0.0])
    middle = maps()[0](torch.where(x < 0, -1.0, 1.0))
    given = torch.where(middle > threshold.reshape(3, 1, 1), 0.75, 0.0)
    assert torch.equal(loaded(x), maps()[2](given))
    x[0] = torch.nan
    assert bool(loaded(x)[0].isnan().all()) and not bool(loaded(x)[1:].isnan().any())
    state[names[1]] = torch.tensor(-1.0)
    bridge.save(state, tmp_path / "n.dcz", edits=[SIGNS, SCALED])
    with pytest.raises(EditError, match=r"edit binary: the scale of 2:input\[0\] must be finite and above 0, not -1"):
        bridge.load_into(maps(), tmp_path / "n.dcz")


def bridge_file_without_edits(state: Any, folder: Path) -> Path:
    """What a reader sees who knows no edits."""
    bridge.save(state, folder / "plain.dcz")
    return folder / "plain.dcz"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"values": "sign"}, "values is one of signs, scaled, not 'sign'"),
        ({"shape": [3]}, r"signs have no threshold: shape is \[\], not \[3\]"),
        ({"values": "scaled", "shape": [2, 2]}, "shape is 1 but for channels"),
        ({"values": "scaled", "shape": [1 << 40]}, "shape is 1 but for channels, of which there are at most 16777216"),
        ({"values": "scaled", "shape": [0]}, "a size of shape is a whole number above 0, not 0"),
        ({"sites": ["9:input[0]"]}, "the model has no module '9'"),
        ({"bits": 1}, "the key 'bits' is not known here; expected sites, values, shape"),
    ],
)
def test_a_binary_edit_that_fits_nothing_is_refused(changes: Any, told: str) -> None:
    """One line, before memory is taken, and the model is as it was."""
    model = maps()
    before = shot(model)
    with pytest.raises(EditError, match=f"^edit binary: {told}"):
        apply(model, {**SIGNS, **changes})
    assert shot(model) == before
