"""Channels by what takes them in, and heads, pruned and removed as filters are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network.names import parameters
from deepcompression.pruning.filters import choose, cut, cut_state, edit_of, masked, refuse_unlike, thinned
from deepcompression.pruning.units import UNITS
from deepcompression.pruning.worth import by_filters, l1


class Attending(nn.Module):
    """Two layers of attention with heads of 4, and a feed-forward."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({name: nn.Linear(12, 12) for name in ("q", "k", "v", "out")}) for _ in range(2)
        )
        self.wide, self.narrow = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            three = (block[name](x).view(*x.shape[:2], -1, 4).transpose(1, 2) for name in ("q", "k", "v"))
            found = nn.functional.scaled_dot_product_attention(*three)
            x = x + block["out"](found.transpose(1, 2).flatten(2))
        made: Tensor = x + self.narrow(self.wide(x).relu())
        return made


def convolutional() -> nn.Sequential:
    """A net in which two layers have inputs that can go."""
    layers = [nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8 * 16, 3)).eval()


def pruned(model: nn.Module, x: Tensor, granularity: str, density: Any) -> tuple[nn.Module, list[Any], dict[str, str]]:
    """The thin model, after it was seen to give what the masked one gives; what was chosen; what was left."""
    run = lambda one: one(x)  # noqa: E731
    choices, left = choose(model, density, by_filters(l1), run, UNITS[granularity])
    places = cut(model, choices)
    assert places is not None and edit_of(model, places)["kind"] == "resize"
    state = masked(model, choices)[0]
    thin = thinned(model, choices)
    assert all(torch.equal(one, thin.state_dict()[name]) for name, one in cut_state(state, places).items())
    model.load_state_dict(state)
    assert refuse_unlike(thin, model, run) < 1e-5
    return thin, choices, left


def test_channels_go_by_what_takes_them_in() -> None:
    """Inputs with the smallest sums go, from what makes them too; behind a flattening each has many places."""
    torch.manual_seed(0)
    model, x = convolutional(), torch.randn(4, 2, 8, 8)
    least = model[3].weight.detach().abs().sum((0, 2, 3)).argsort()[:3].tolist()
    thin, choices, left = pruned(model, x, "channel", {"3": 0.5, "6": 0.25})
    assert [one.group.makers[0].tensor for one in choices] == ["3.weight", "6.weight"]
    assert sorted(set(range(6)) - set(choices[0].kept)) == sorted(least)
    assert thin[0].weight.shape == (3, 2, 3, 3) and thin[3].weight.shape == (2, 3, 3, 3)
    assert thin[6].in_features == 32 and left == {
        "0": "what it takes in is the model's input, or made by what must stay"
    }
    with pytest.raises(
        StructureError, match=r"^0.weight: its channels cannot be removed: what it takes in is the model"
    ):
        pruned(convolutional(), x, "channel", {"0": 0.5})


def test_heads_go_where_they_are_named() -> None:
    """One head of one attention, with its queries, keys, values and what takes it in; a feed-forward has none, and goes
    narrower as filters do.
    """
    torch.manual_seed(0)
    model, x = Attending().eval(), torch.randn(2, 5, 12)
    thin, choices, left = pruned(model, x, "head", {"blocks.0.q": 0.67})
    assert [(one.group.channels, len(one.kept)) for one in choices] == [(3, 2)]
    assert thin.blocks[0]["v"].out_features == thin.blocks[0]["out"].in_features == 8
    assert thin.blocks[1]["q"].out_features == 12 and left["wide"] == "it makes no heads"
    with pytest.raises(StructureError, match=r"^wide.weight: its channels cannot be removed: it makes no heads"):
        pruned(Attending().eval(), x, "head", {"wide": 0.5})
    narrow, _, _ = pruned(Attending().eval(), x, "filter", {"wide": 0.5})
    assert parameters(narrow)["narrow.weight"].shape == (12, 10)
