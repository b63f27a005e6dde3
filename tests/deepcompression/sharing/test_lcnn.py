"""Dictionaries: layers in two, from given weights, and through a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deepcompression import torch as files
from deepcompression.errors import EditError, StructureError
from deepcompression.measure.flops import count
from deepcompression.network.edits.apply import apply, apply_all
from deepcompression.network.trace import shapes
from deepcompression.sharing.lcnn import columns_of, look_up, parted, wanted

LAYERS: list[tuple[Any, tuple[int, ...]]] = [
    (lambda: nn.Conv1d(6, 5, 3, stride=2, padding=1), (2, 6, 9)),
    (lambda: nn.Conv2d(6, 5, (3, 2), padding=(1, 0), dilation=(1, 2), bias=False), (2, 6, 8, 9)),
    (lambda: nn.Conv2d(6, 5, 3, padding="same", padding_mode="reflect"), (2, 6, 8, 8)),
    (lambda: nn.Conv3d(6, 5, 2), (2, 6, 3, 4, 3)),
    (lambda: nn.Linear(6, 5), (2, 4, 6)),
]


def net() -> nn.Sequential:
    """A convolution of one channel, one of six, a depthwise one, a linear layer."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(128, 10)).eval()


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_with_as_many_vectors_as_inputs_a_layer_gives_what_it_gave(make: Any, shape: tuple[int, ...]) -> None:
    """Every kind of layer, its stride, borders and places between: a whole basis loses nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(make()).eval()
    x = torch.randn(shape)
    before = model(x)
    layers, _ = wanted(model, {"0": 1.0}, {"0": 6}, shapes(model, lambda one: one(x)))
    look_up(model, layers)
    assert torch.allclose(model(x), before, atol=1e-5) and model[0].lookup.weight.shape[1] == 6


@pytest.mark.parametrize("fit", ["kmeans", "learned"])
def test_kernels_that_are_made_of_few_vectors_are_found_to_be(fit: Any) -> None:
    """Multiples of three vectors, either way round: nothing is lost by one lookup a column; the same seed, the same."""
    draw = torch.Generator().manual_seed(1)
    vectors = nn.functional.normalize(torch.randn(3, 7, generator=draw), dim=1)
    columns = torch.randn(60, 1, generator=draw) * vectors[torch.arange(60) % 3]
    weight = columns.reshape(15, 2, 2, 7).movedim(-1, 1)
    dictionary, lookup = parted(weight, 3, 1, fit, seed=2)
    assert torch.allclose(columns_of(lookup) @ dictionary, columns_of(weight), atol=1e-4)
    assert int(columns_of(lookup).count_nonzero(1).max()) == 1
    assert all(torch.equal(*pair) for pair in zip(parted(weight, 3, 1, fit, seed=2), (dictionary, lookup), strict=True))


def test_what_is_near_by_more_vectors_is_nearer() -> None:
    """A random weight: each further lookup, and vector, brings the kernels nearer; zeros in columns stay harmless."""
    weight = torch.randn(12, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[0] = 0

    def gap(size: int, nonzero: int) -> float:
        dictionary, lookup = parted(weight, size, nonzero)
        return float((columns_of(lookup) @ dictionary - columns_of(weight)).norm())

    assert gap(4, 1) > gap(4, 2) > gap(6, 2) > gap(6, 3)


def test_layers_for_which_it_pays_get_a_dictionary_and_a_new_model_becomes_the_same(tmp_path: Path) -> None:
    """Left alone with the reason: one channel, groups, what would cost more. Fewer multiplications are counted."""
    model, x = net(), torch.randn(3, 1, 8, 8)
    layers, left = wanted(model, {"default": 0.5}, {"default": 2}, shapes(model, lambda one: one(x)))
    assert [(one.layer, one.size, one.nonzero) for one in layers] == [("2", 3, 2)]
    assert left["3"] == "it has 8 groups" and left["0"].startswith("with a dictionary it would multiply 1.03 times")
    dense = count(model, [x[:1]])
    edits, rows = look_up(model, layers)
    counted = {one.name: one for one in count(model, [x[:1]]).layers}
    assert rows[0].lookups == counted["2.lookup"].nonzero / 36 == 2 * 8 * 9
    assert counted["2.dictionary"].macs == 36 * 3 * 6 and dense.macs > sum(one.nonzero for one in counted.values())
    files.save(model.state_dict(), tmp_path / "a.dcz", edits=edits)
    assert torch.equal(files.load_into(net(), tmp_path / "a.dcz")(x), model(x))
    again = files.run(net(), tmp_path / "a.dcz", form="dense")
    assert torch.allclose(again(x), model(x), atol=1e-5)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"module": "3", "size": 2}, "3 cannot have a dictionary: it has 8 groups"),
        ({"module": "1", "size": 2}, "a ReLU is no Conv1d, Conv2d, Conv3d or Linear"),
        ({"module": "", "size": 2}, "the model cannot have a dictionary: it is the whole model"),
        ({"module": "2", "size": 7}, "2 takes 6 inputs, for which a dictionary of 7 is too large"),
        ({"module": "2", "size": 0}, "size is a whole number above 0"),
        ({"module": "2"}, "the key size is missing"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused(record: dict[str, Any], words: str) -> None:
    """One line, and nothing is as large as whoever wrote the file wants."""
    with pytest.raises(EditError, match=words):
        apply(net(), {"kind": "dictionary", **record})


def test_a_layer_with_an_edit_before_and_a_tied_one_are_refused() -> None:
    """What hooks of the layer did would be lost, and the other use of the weight would lose it."""
    values = {"kind": "quantize_values", "range": "dynamic", "bits": 8, "scheme": "symmetric", "sites": ["2:input[0]"]}
    with pytest.raises(EditError, match="it has hooks, such as those of an edit made before"):
        apply_all(net(), [values, {"kind": "dictionary", "module": "2", "size": 2}])
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(EditError, match="its weight is tied to another layer's"):
        apply(tied, {"kind": "dictionary", "module": "0", "size": 2})
    twice = nn.ModuleList([layer := nn.Linear(4, 4), layer])
    apply(twice, {"kind": "dictionary", "module": "0", "size": 2})
    assert twice[0] is twice[1] and twice[0].dictionary.weight.shape == (2, 4)


def test_what_cannot_be_done_is_told_before_anything_trains() -> None:
    """A named layer with the reason, an impossible size, a weight that is no number."""
    model = net()
    seen = shapes(model, lambda one: one(torch.randn(2, 1, 8, 8)))
    with pytest.raises(StructureError, match=r"^lcnn: 3.weight cannot have a dictionary: it has 8 groups"):
        wanted(model, {"3": 2}, {"default": 2}, seen)
    with pytest.raises(StructureError, match=r"^lcnn: 2: size 9: expected 1 to 6, its inputs, or a fraction of them"):
        wanted(model, {"2": 9}, {"default": 2}, seen)
    with pytest.raises(StructureError, match=r"^lcnn: no layer of the model gets a dictionary: 0: with a dictionary"):
        wanted(model, {"default": 1.0}, {"default": 6}, seen)
    with pytest.raises(StructureError, match="lcnn: a weight is NaN or infinite"):
        parted(torch.full((2, 2), torch.nan), 1, 1)
