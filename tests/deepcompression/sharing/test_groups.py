"""Codebooks of channels, of parts of channels, and of several channels together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network.state import plain_state
from deepcompression.sharing.groups import parts, refuse_apart
from deepcompression.sharing.share import share
from deepcompression.structure.rows import rows_of
from deepcompression.structure.shared import Shared


def pruned(*shape: int) -> Tensor:
    """Random weights of unlike scales in unlike channels, a third of them zero."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) * torch.rand(shape[0], *[1] * (len(shape) - 1))
    return torch.where(torch.rand(shape, generator=generator) < 0.67, weight, 0.0)


PARTS = [Shared(0), Shared(1), Shared(0, 24), Shared(1, 24), Shared(0, 96), Shared(1, 144)]


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.word)
@pytest.mark.parametrize("solver", ["own", "uniform", "sklearn"])
def test_each_part_is_shared_as_if_it_were_alone(part: Shared, solver: Any) -> None:
    """Channels of either axis, parts and several of them: what each part gets is what a tensor of it gets."""
    weight = pruned(6, 4, 12)
    made = share({"w": weight}, {"w": 2}, solver=solver, per={"w": part})
    before, after = (rows_of(one, part.axis, part.group) for one in (weight, made.state["w"]))
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new, share({"w": old}, {"w": 2}, solver=solver).state["w"])
        assert len(new[new != 0].unique()) <= 4 and torch.equal(new == 0, old == 0)
    assert made.layers[0].codebooks == len(before) and made.layers[0].small == 0


@pytest.mark.parametrize("solver", ["own", "uniform"])
def test_more_codebooks_lose_less(solver: Any) -> None:
    """Where channels have unlike scales, codebooks of their own have a smaller error."""
    weight = pruned(16, 200)
    errors = [
        share({"w": weight}, {"w": 3}, init=init, solver=solver, per={"w": part}).layers[0].squared_error
        for init, part in [("optimal" if solver == "own" else "linear", part) for part in (Shared(), Shared(0))]
    ]
    assert errors[1] < errors[0]


def test_weights_fewer_than_values_stay_as_they_are() -> None:
    """Fewer centroids than bits allow, and the account says how many parts are so; parts of zeros count for nothing."""
    weight = pruned(4, 9)
    weight[1] = 0.0
    made = share({"w": weight}, {"w": 4}, per={"w": Shared(0)})
    assert torch.equal(made.state["w"], weight)
    assert (made.layers[0].codebooks, made.layers[0].small) == (3, 3)


def test_a_padding_row_is_left_alone_and_halves_stay_halves() -> None:
    """Codebooks of an embedding's rows, the padding row but for itself; centroids rounded to the tensor's dtype."""
    weight = pruned(6, 50).to(torch.bfloat16)
    made = share({"e": weight}, {"e": 1}, padding={"e": 2}, per={"e": Shared(0)}).state["e"]
    assert made.dtype == torch.bfloat16 and torch.equal(made[2], weight[2])
    assert all(len(row[row != 0].unique()) == 2 for row in made[[0, 1, 3, 4, 5]])


def net() -> nn.Module:
    """Channels on axis 0, on axis 1, and on none."""
    return nn.ModuleDict(
        {
            "conv": nn.Conv2d(4, 6, 3),
            "up": nn.ConvTranspose2d(4, 6, 3),
            "grouped": nn.ConvTranspose2d(4, 6, 3, groups=2),
        }
    )


def test_parts_follow_the_channels_of_the_layer() -> None:
    """Each word of a recipe as the parts of tensors; what comes to whole channels or the whole tensor is called so."""
    chosen = ["conv.weight", "up.weight", "conv.bias"]
    for per, count, words in [
        ("tensor", None, ["shared", "shared", "shared"]),
        ("channel", None, ["shared(0)", "shared(1)", "shared"]),
        ("group", 9, ["shared(0, 9)", "shared(1, 9)", "shared"]),
        ("group", 36, ["shared(0)", "shared(1)", "shared"]),
        ("channels", 2, ["shared(0, 72)", "shared(1, 72)", "shared"]),
        ("channels", 1, ["shared(0)", "shared(1)", "shared"]),
        ("channels", 6, ["shared", "shared", "shared"]),
    ]:
        assert [one.word for one in parts(net(), chosen, per, count).values()] == words  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "per", "count", "told"),
    [
        ("conv.weight", "group", 8, "conv.weight: groups of 8 do not divide its 36 elements of a channel; take a"),
        ("conv.weight", "group", 72, "groups of 72 do not divide its 36 elements"),
        ("up.weight", "channels", 4, "up.weight: groups of 4 do not divide its 6 channels; take a divisor of 6"),
        ("grouped.weight", "channel", None, "grouped.weight: is of a transposed convolution with 2 groups"),
    ],
)
def test_groups_that_do_not_fit_are_refused(name: str, per: Any, count: int | None, told: str) -> None:
    """One line names the tensor, the rule and what would fit."""
    with pytest.raises(StructureError, match=told):
        parts(net(), [name], per, count)
    assert parts(net(), [name], "tensor")[name] == Shared()


def test_what_shares_values_is_not_driven_apart() -> None:
    """Codebooks of channels after sharing are refused; one for the tensor afterwards only merges values."""
    for words in (("zeros", "shared"), ("shared(0)",), ("shared(0, 8)",)):
        refuse_apart("w", Shared(), words)
        with pytest.raises(StructureError, match="w: shares values already, which codebooks of its channels or groups"):
            refuse_apart("w", Shared(0), words)
    refuse_apart("w", Shared(0), ("zeros", "grid(8)"))


def test_a_rate_goes_with_one_codebook() -> None:
    """Error and bits are weighed for a whole tensor."""
    state = plain_state(nn.Linear(20, 4))
    with pytest.raises(StructureError, match=r"weight: rate 0\.1 goes with one codebook; per: tensor, or rate: 0"):
        share(state, {"weight": 2}, rate=0.1, per={"weight": Shared(0)})
