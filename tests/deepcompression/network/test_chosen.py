"""Tensors chosen by what they are: by the class of their layer, by size, by a function of one's own."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from deepcompression.errors import FactoryError, StructureError
from deepcompression.network.names import resolve, select
from deepcompression.structure.hold import hold


class Mine(nn.Conv2d):
    """A subclass."""


def net() -> nn.Module:
    return nn.ModuleDict(
        {"a": nn.Conv2d(3, 4, 3), "b": Mine(4, 4, 1), "fc": nn.Linear(30, 20), "emb": nn.Embedding(9, 4),
         "rnn": nn.LSTM(4, 4), "bn": nn.BatchNorm2d(4)}
    )  # fmt: skip


@pytest.fixture(autouse=True)
def mine(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = ModuleType("of_mine")
    module.large = lambda model: [name for name, one in model.named_parameters() if one.numel() > 100]
    module.layers = lambda model: ("b", "f*")
    module.nothing, module.words, module.fails = (lambda model: []), (lambda model: "fc"), (lambda model: model["x"])
    module.numbers, module.unknown = (lambda model: [1]), (lambda model: ["fd"])
    monkeypatch.setitem(sys.modules, "of_mine", module)
    return module


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("type:Conv2d", ["a.weight", "b.weight"]),
        ("type:Mine", ["b.weight"]),
        ("type:_ConvNd & b", ["b.weight"]),
        ("type:Embedding", ["emb.weight"]),
        ("type:LSTM", ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]),
        ("min_size:100", ["a.weight", "fc.weight"]),
        ("min_size:36 & type:Embedding", ["emb.weight"]),
        ("type:Conv2d & min_size:100", ["a.weight"]),
        ("of_mine:large", ["a.weight", "fc.weight"]),
        ("of_mine:layers & type:Mine", ["b.weight"]),
    ],
)
def test_tensors_are_chosen_by_what_they_are(pattern: str, names: list[str]) -> None:
    """By class of layer, subclasses too; by size, of what is pruned by default; by a function; by several together."""
    assert select(net(), [pattern]) == names


def test_a_name_beats_a_choice_and_an_earlier_choice_a_later_one() -> None:
    """As of all patterns: what is written out says most."""
    table = {"type:Conv2d": 0.5, "min_size:1": 0.2, "b": 0.1, "default": 0.9}
    assert resolve(net(), table) == {"a.weight": 0.5, "b.weight": 0.1, "fc.weight": 0.2}


def test_held_tensors_have_the_class_of_their_layer() -> None:
    """In a training that holds zeros the layer's class is one of torch's making."""
    model = net()
    model["fc"].weight.data[0] = 0
    hold(model, ["fc.weight"])
    assert select(model, ["type:Linear"]) == ["fc.weight"]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (
            "type:Conv3d",
            "no layer of type Conv3d has a weight in this model; there are Conv2d, Embedding, LSTM, Linear",
        ),
        ("type:BatchNorm2d", "no layer of type BatchNorm2d has a weight"),
        ("min_size:many", "expected a whole number of elements behind min_size:, got 'many'"),
        ("min_size:1000", "the largest tensor has 600 elements"),
        ("type:Linear & type:Conv2d", "no tensor of the model is all of this"),
        ("type:Linear & fd", "'fd' matches no tensor"),
        (
            "of_mine:nothing",
            "of_mine:nothing(model) should return a list of names of tensors or layers, one at least, got none",
        ),
        ("of_mine:words", "one at least, got 'fc'"),
        ("of_mine:numbers", "one at least, got [1]"),
        ("of_mine:fails", "of_mine:fails(model) failed: KeyError: 'x'"),
        ("of_mine:unknown", "'fd' matches no tensor of the model; the nearest are"),
    ],
)
def test_what_chooses_nothing_is_told(pattern: str, words: str) -> None:
    """In one line, with what there is, and what a function should have given."""
    with pytest.raises(StructureError) as caught:
        select(net(), [pattern])
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_function_that_is_not_there_is_told() -> None:
    """As any other callable of a recipe."""
    with pytest.raises(FactoryError, match="of_mine has no attribute 'smal'"):
        select(net(), ["of_mine:smal"])
