"""Nothing is left out without a word: every tensor is done, or left alone and why; naming one works or says why not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from deepcompression.errors import StructureError
from deepcompression.network import names
from deepcompression.network.coverage import coverage, selected, sentence, warning
from deepcompression.network.names import prunable, select
from deepcompression.network.state import density, plain_state
from deepcompression.structure import hold

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")


class Transposed(nn.Module):
    """A linear layer of somebody, that is no nn.Linear."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, rows: Tensor) -> Tensor:
        return rows @ self.weight


class Bare(nn.Module):
    """Matrices that stand in the user's own module: a parameter, integers, complex numbers, buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(3, 4))
        self.integers = nn.Parameter(torch.ones(3, 4, dtype=torch.int8), requires_grad=False)
        self.complex = nn.Parameter(torch.ones(3, 4, dtype=torch.complex64))
        self.register_buffer("table", torch.ones(3, 4))
        self.register_buffer("mask", torch.ones(3, 4, dtype=torch.bool))
        self.register_buffer("mean", torch.ones(4))


class Doubled(nn.Module):
    """A parametrization of the user's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def doubled() -> nn.Module:
    layer = nn.Linear(4, 4)
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def tied() -> nn.Module:
    """A language model's usual ends."""
    model = nn.ModuleDict({"embedding": nn.Embedding(5, 4, padding_idx=0), "head": nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["embedding"].weight
    return model


def pruned_by_torch() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(4, 4), "weight", 0.5)


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda: nn.Linear(3, 4), {}),
        (lambda: nn.Linear(3, 4).requires_grad_(False), {}),
        (lambda: nn.ConvTranspose2d(3, 4, 2), {}),
        (lambda: Transposed(3, 4), {"weight": "Transposed is no Linear or Conv"}),
        (lambda: nn.Bilinear(2, 3, 4), {"weight": "Bilinear is no Linear or Conv"}),
        (lambda: nn.EmbeddingBag(5, 4), {"weight": "embedding"}),
        (tied, {"embedding.weight": "embedding, tied"}),
        (lambda: nn.LSTM(3, 4), {"weight_ih_l0": "recurrent", "weight_hh_l0": "recurrent"}),
        (lambda: nn.GRUCell(3, 4), {"weight_ih": "recurrent", "weight_hh": "recurrent"}),
        (lambda: nn.MultiheadAttention(4, 2), {"in_proj_weight": "attention pack"}),
        (lambda: nn.TransformerEncoderLayer(4, 2, 8), {"self_attn.in_proj_weight": "attention pack"}),
        (lambda: nn.LayerNorm((3, 4)), {"weight": "normalisation", "bias": "normalisation"}),
        (
            Bare,
            {
                "matrix": "Bare is no Linear or Conv",
                "integers": "int8",
                "complex": "complex64",
                "table": "float32 buffer",
            },
        ),
        (
            lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
            {"parametrizations.weight.original0": "weight_norm", "parametrizations.weight.original1": "weight_norm"},
        ),
        (lambda: nn.utils.weight_norm(nn.Conv2d(2, 2, 1)), {"weight_g": "weight_norm", "weight_v": "weight_norm"}),
        (
            lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
            {"parametrizations.weight.original": "spectral_norm"},
        ),
        (lambda: nn.utils.spectral_norm(nn.Linear(4, 4)), {"weight_orig": "spectral_norm"}),
        (doubled, {"parametrizations.weight.original": "Doubled"}),
        (pruned_by_torch, {"weight_orig": "l1_unstructured", "weight_mask": "float32 buffer"}),
    ],
)
def test_every_matrix_that_default_leaves_alone_is_listed_with_its_reason(
    make: Callable[[], nn.Module], left: dict[str, str]
):
    """Foreign layers, normed layers and bare parameters were left out in silence."""
    model = make()
    rows = coverage(model, prunable(model))
    found = {row.tensor: row.reason for row in rows if row.matrix and not row.done}
    assert set(found) == set(left)
    assert all(part in found[name] for name, part in left.items())
    parameters = {id(one): one.numel() for one in model.parameters()}
    buffers = [row for row in rows if "buffer" in row.reason]
    assert sum(row.elements for row in rows if row not in buffers) == sum(parameters.values())


def test_the_table_counts_tied_tensors_once_and_sums_vectors_up():
    """Sizes must add up to the model's, whatever names a tensor has."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    model[1].weight = model[0].weight
    rows = coverage(model, ["1.weight"])
    assert [(row.tensor, row.elements, row.done) for row in rows] == [("0.weight", 16, True), ("4 vectors", 16, False)]
    assert rows[0].shape == (4, 4) and [row.bytes for row in rows] == [64, 64]
    named = coverage(model, ["0.bias"], {"0.weight": "too dense"})
    assert [(row.tensor, row.reason) for row in named][:2] == [("0.weight", "too dense"), ("0.bias", "")]
    assert coverage(model, [])[0].reason == "named by no pattern"


def test_a_sentence_tells_the_largest_matrices_and_a_warning_that_most_bytes_stay():
    """People read one line: it must name what matters, and be loud where most of the model is left."""
    model = nn.ModuleDict({"big": Transposed(60, 10), **{f"c{i}": Transposed(3, i + 1) for i in range(3)}})
    model["out"] = nn.Linear(10, 10, bias=False)
    rows = coverage(model, ["out.weight"])
    told = sentence(rows)
    assert told.startswith(
        "left alone 4 matrices, 618 of 718 weights (86%): big.weight 600, c2.weight 9, c1.weight 6 ("
    )
    assert told.endswith("; and 1 more") and told in warning(rows)
    assert not warning(coverage(model, ["out.weight", "big.weight"]))
    assert sentence(coverage(nn.Linear(2, 2), ["weight"])) == ""
    assert "vectors" in warning(coverage(nn.BatchNorm1d(4), []))


@pytest.mark.parametrize(
    ("make", "pattern", "parts"),
    [
        (
            lambda: nn.ModuleDict({"a": parametrizations.weight_norm(nn.Linear(4, 4))}),
            "a",
            ["a.weight is computed by weight_norm", "a.parametrizations.weight.original1", "remove_parametrizations"],
        ),
        (
            lambda: nn.ModuleDict({"a": nn.utils.spectral_norm(nn.Linear(4, 4))}),
            "a.weight",
            ["a.weight is computed by spectral_norm from a.weight_orig", "torch.nn.utils.remove_spectral_norm"],
        ),
        (lambda: nn.ModuleDict({"a": doubled()}), "[ab]*", ["a.weight is computed by Doubled"]),
        (lambda: nn.ModuleDict({"a": pruned_by_torch()}), "a", ["torch.nn.utils.prune.remove"]),
        (
            lambda: nn.ModuleDict({"a": nn.utils.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")}),
            "a.weight_hh_l0",
            ["a.weight_hh_l0 is computed by weight_norm"],
        ),
        (lambda: nn.ModuleDict({"rnn": nn.LSTM(3, 4)}), "rnn", ["named in full: rnn.weight_ih_l0"]),
        (lambda: nn.ModuleDict({"emb": nn.Embedding(3, 4)}), "e*", ["named in full: emb.weight"]),
        (Bare, "integers", ["integers is a parameter of int8"]),
        (Bare, "table", ["table is a buffer of float32"]),
    ],
)
def test_a_pattern_for_what_cannot_be_selected_says_why(make: Callable[[], nn.Module], pattern: str, parts: list[str]):
    """That pattern 'a' matches no tensor and the nearest are a helps nobody."""
    with pytest.raises(StructureError) as caught:
        select(make(), [pattern])
    assert all(part in str(caught.value) for part in [repr(pattern), *parts]) and "\n" not in str(caught.value)


class Conv1D(Transposed):
    """GPT-2's, as the transformers library has it."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__(nx, nf)
        self.nf, self.nx = nf, nx


def test_the_linear_layer_of_gpt2_is_selected():
    """Most of a GPT-2 is Conv1D; one that is tied with an embedding is an embedding all the same."""
    model = nn.ModuleDict({"wte": nn.Embedding(5, 3), "fc": Conv1D(4, 3), "head": Conv1D(3, 5)})
    model["head"].weight = model["wte"].weight
    assert prunable(model) == ["fc.weight"]
    assert list(select(model, ["f*"])) == ["fc.weight"]
    assert [row.tensor for row in coverage(model, prunable(model)) if not row.done] == ["wte.weight"]


def test_a_default_that_selects_nothing_is_refused_and_names_the_largest():
    """A stage that would do nothing must be told before anything trains, with what could be named instead."""
    with pytest.raises(StructureError, match=r"such as \{1.weight: 0.2\}.*1.weight 12 \(Transposed is no"):
        selected(nn.Sequential(nn.Embedding(2, 3), Transposed(3, 4)), {"default": 0.2})
    with pytest.raises(StructureError, match=r"weight of its own\. There are weight 12"):
        selected(Transposed(3, 4), {"default": None})
    with pytest.raises(StructureError, match="nor is there any other matrix"):
        selected(nn.BatchNorm1d(3), {"default": 0.2})
    assert selected(Transposed(3, 4), {"weight": 0.2}) == {"weight": 0.2}


def test_torchscript_is_left_alone_and_refused_by_name_before_anything_trains():
    """Nothing can be held in a compiled module: naming its weights must not end in a traceback after a training."""
    model = nn.ModuleDict({"body": torch.jit.script(nn.Linear(4, 4)), "head": nn.Linear(4, 4)})
    told = "in a TorchScript module, which takes no masks or codebooks"
    assert [row.reason for row in coverage(model, ["head.weight"]) if row.matrix] == [told, ""]
    for use in (lambda: select(model, ["body"]), lambda: hold.hold(model, ["body.weight"])):
        with pytest.raises(StructureError, match=r"^body.weight is in a TorchScript module"):
            use()
    with pytest.raises(StructureError, match=rf"of its own. There are weight 16 \({told}\)$"):
        selected(torch.jit.script(nn.Linear(4, 4)), {"default": 0.5})


def test_matrices_without_elements_are_not_worth_a_sentence():
    """Zero of so many weights left alone is no news."""
    model = nn.ModuleDict({"empty": nn.Embedding(0, 4), "head": nn.Linear(4, 4)})
    assert sentence(coverage(model, ["head.weight"])) == ""


def test_a_tied_embedding_is_selected_only_by_name():
    """Each row of it stands for an input: pruning it by default cost a language model half of its accuracy."""
    assert prunable(tied()) == []
    assert select(tied(), ["head"]) == select(tied(), ["embedding"]) == ["embedding.weight"]


@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
@pytest.mark.parametrize("new", [True, False])
def test_held_structure_and_the_users_own_parametrizations_live_together(name: str, new: bool):
    """Holding, training and baking must leave what the user registered as it was, and keep what is pruned."""
    norm = getattr(parametrizations if new else nn.utils, name)
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    model(torch.randn(2, 4))
    source = "0.parametrizations.weight.original" if new else f"0.weight_{'v' if name == 'weight_norm' else 'orig'}"
    source += "1" if new and name == "weight_norm" else ""
    keys, kinds = list(model.state_dict()), [type(module) for module in model.modules()]
    with torch.no_grad():
        dict(model.named_parameters())[source][0, :2] = 0
        model[1].weight[0] = 0
        model[0].bias[1] = 0
    held = hold.hold(model, [source, "1.weight", "0.bias"])
    assert held.zeros == [source, "1.weight", "0.bias"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
    hold.bake(model)
    assert list(model.state_dict()) == keys and [type(module) for module in model.modules()] == kinds
    state = plain_state(model)
    assert not state[source][0, :2].any() and state[source][1:].all()
    assert not state["1.weight"][0].any() and state["1.weight"][1:].all() and state["0.bias"][1] == 0
    twin = nn.Sequential(norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    twin.load_state_dict(state)
    sample = torch.randn(3, 4)
    torch.testing.assert_close(twin.eval()(sample), model.eval()(sample))


def test_density_of_all_weights_counts_every_parameter_once():
    """A fifth of what was selected says nothing of a model of which most was not."""
    model = nn.ModuleDict(
        {"a": Transposed(10, 9), "b": nn.Linear(2, 5, bias=False), "again": nn.Linear(2, 5, bias=False)}
    )
    model["again"].weight = model["b"].weight
    nn.init.zeros_(model["b"].weight)
    state = plain_state(copy.deepcopy(model))
    assert density(state, prunable(model)) == 0
    assert density(state, dict.fromkeys(names.first_names(model).values())) == pytest.approx(0.9)
