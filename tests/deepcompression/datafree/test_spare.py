"""What is spared by name and shape, and what cannot be asked for."""

from __future__ import annotations

import pytest

from deepcompression.datafree.spare import Asked, asked, planned
from deepcompression.datafree.treatment import TENSOR, per_of
from deepcompression.errors import StructureError

RESNET = {
    "conv1.weight": ("float32", (64, 3, 7, 7)),
    "bn1.weight": ("float32", (64,)),
    "bn1.num_batches_tracked": ("int64", ()),
    "fc.weight": ("float32", (1000, 512)),
    "layer1.0.conv1.weight": ("float32", (64, 64, 3, 3)),
    "layer1.1.depthwise.weight": ("float32", (256, 1, 3, 3)),
    "layer4.1.conv2.weight": ("float32", (512, 512, 3, 3)),
}


def test_first_last_and_depthwise_layers_get_more() -> None:
    """In the alphabet's order of a .safetensors file too: by shape where it tells, by name else."""
    plan = planned(RESNET, asked(0.5, 4, TENSOR, []))
    assert {name: (one.density, one.bits) for name, one in plan.items()} == {
        "conv1.weight": (1.0, 6),
        "bn1.weight": (1.0, None),
        "bn1.num_batches_tracked": (1.0, None),
        "fc.weight": (1.0, 6),
        "layer1.0.conv1.weight": (0.5, 4),
        "layer1.1.depthwise.weight": (1.0, 6),
        "layer4.1.conv2.weight": (0.5, 4),
    }
    assert all(one.why for name, one in plan.items() if (one.density, one.bits) != (0.5, 4))


def test_nothing_is_spared_when_asked_not_to() -> None:
    """Vectors and integers are kept all the same."""
    plan = planned(RESNET, asked(0.5, 4, TENSOR, [], spare=False))
    assert {name for name, one in plan.items() if one.lossless} == {"bn1.weight", "bn1.num_batches_tracked"}
    assert len({(one.density, one.bits) for one in plan.values() if not one.lossless}) == 1


def test_layers_are_ordered_by_their_numbers() -> None:
    """Layer 10 comes behind layer 2, whatever the alphabet says."""
    names = sorted(f"{number}.weight" for number in range(12))
    plan = planned(dict.fromkeys(names, ("float32", (64, 64))), asked(None, 4, TENSOR, []))
    assert [name for name, one in plan.items() if one.bits == 6] == ["0.weight", "11.weight"]


def test_embeddings_are_not_pruned() -> None:
    """An embedding keeps all its weights and gets the bits of the others; so nothing is said where none are pruned."""
    about = {
        "wte.weight": ("float32", (5000, 64)),
        "a.weight": ("float32", (64, 64)),
        "b.weight": ("float32", (64, 64)),
    }
    assert planned(about, asked(0.2, 4, TENSOR, []))["wte.weight"].density == 1
    assert planned(about, asked(None, 4, TENSOR, []))["wte.weight"].why == ""


def test_kept_by_pattern_and_groups_that_do_not_divide() -> None:
    """What is not as asked has its reason."""
    plan = planned(RESNET, asked(None, 4, per_of("group:64"), ["fc.*"], spare=False))
    assert plan["fc.weight"].lossless and "fc.*" in plan["fc.weight"].why
    assert str(plan["layer4.1.conv2.weight"]) == "4 bits a group:64"
    assert str(plan["conv1.weight"]) == "4 bits a row" and "64 does not divide" in plan["conv1.weight"].why


def test_impossible_settings_are_one_clear_line() -> None:
    """Each says what was wrong and what is expected."""
    for density, bits in ((0.0, None), (1.5, 4), (-1, None), (float("nan"), 4), (0.5, 0), (0.5, 13)):
        with pytest.raises(StructureError, match="is impossible; expected"):
            asked(density, bits, TENSOR, [])
    for text in ("rows", "group", "group:0", "group:x", ""):
        with pytest.raises(StructureError, match="expected tensor, row or group:N"):
            per_of(text)
    with pytest.raises(StructureError, match="give bits too"):
        asked(0.5, None, per_of("row"), [])
    with pytest.raises(StructureError, match=r"keep 'fd\.\*' matches no tensor; there are .*fc\.weight"):
        planned(RESNET, Asked(keep=("fd.*",)))
    assert asked(None, None, TENSOR, []).bits == 6
    assert asked(0.5, None, TENSOR, []).bits is None
