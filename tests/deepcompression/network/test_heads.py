"""Attention heads: found in what a forward does, whichever way it is written."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepcompression.network.channels import channel_groups
from deepcompression.network.edits.apply import apply
from deepcompression.network.edits.resize import cut_state, record_of
from deepcompression.network.resizing import resize

WIDTH, HEADS, SIZE = 12, 3, 4


class Attention(nn.Module):
    """Three heads of four; ``fused``: by PyTorch's one operation; ``packed``: queries, keys and values by one layer;
    ``fixed``: the number of heads is written in the code.
    """

    def __init__(self, fused: bool = False, packed: bool = False, fixed: bool = False) -> None:
        super().__init__()
        self.fused, self.packed, self.heads = fused, packed, HEADS if fixed else -1
        if packed:
            self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        else:
            self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.three(x)
        if self.fused:
            found = F.scaled_dot_product_attention(q, k, v)
        else:
            found = (q @ k.transpose(-1, -2) / SIZE**0.5).softmax(-1) @ v
        made: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return made

    def three(self, x: Tensor) -> Any:
        if self.packed:
            return self.qkv(x).view(*x.shape[:2], 3, self.heads, SIZE).permute(2, 0, 3, 1, 4).unbind(0)
        layers = (self.q, self.k, self.v)
        return [layer(x).view(*x.shape[:2], self.heads, SIZE).transpose(1, 2) for layer in layers]


class Net(nn.Module):
    """An attention with a shortcut, a feed-forward with another."""

    def __init__(self, **how: bool) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(WIDTH), Attention(**how)
        self.wide, self.narrow = nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm(x))
        made: Tensor = x + self.narrow(F.gelu(self.wide(x)))
        return made


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_heads_are_removed_whole_with_all_that_makes_them(fused: bool, packed: bool) -> None:
    """Queries, keys, values and what takes them in; a thin net gives what zeros for a head give; no other group."""
    torch.manual_seed(0)
    model, x = Net(fused=fused, packed=packed).eval(), torch.randn(2, 5, WIDTH)
    groups, left = channel_groups(model, lambda one: one(x), heads=True)
    [group] = groups
    assert group.channels == HEADS and "wide" in left
    makers = {member.tensor for member in group.makers}
    assert makers == {f"attention.{name}.weight" for name in (["qkv"] if packed else ["q", "k", "v"])}
    masked, cut = copy.deepcopy(model), resize(model, [(group, [0, 2])])
    with torch.no_grad():
        masked.attention.out.weight[:, SIZE : 2 * SIZE] = 0
    record, state = record_of(model, cut), cut_state(model.state_dict(), cut)
    thin = copy.deepcopy(model)
    apply(thin, record)
    thin.load_state_dict(state)
    assert thin.attention.out.in_features == 2 * SIZE
    assert torch.allclose(thin(x), masked(x), atol=1e-6)


def test_heads_whose_number_is_written_in_the_code_are_left_with_the_reason() -> None:
    """And PyTorch's own attention, which cannot have fewer."""
    x = torch.randn(2, 5, WIDTH)
    groups, left = channel_groups(Net(fixed=True).eval(), lambda one: one(x), heads=True)
    assert groups == [] and left["attention.q"].startswith("without a third of its channels a copy does not run")
    groups, left = channel_groups(
        nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).eval(), lambda one: one(x, x, x), heads=True
    )
    assert groups == []


def test_the_width_of_a_feed_forward_is_a_group_of_its_own() -> None:
    """What is no head is found as before, also beside the one operation for attention."""
    model, x = Net(fused=True).eval(), torch.randn(2, 5, WIDTH)
    groups, _ = channel_groups(model, lambda one: one(x))
    sizes = {group.makers[0].tensor: group.channels for group in groups}
    assert sizes == {"wide.weight": 20}
