"""What goes whole, by its name in recipes: channels by the filters that make them or by what takes them in, heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from deepcompression.network.channels import channel_groups
from deepcompression.network.names import is_layer
from deepcompression.network.resizing import Group, Role

Groups = tuple[list[Group], dict[str, str]]  # and reasons by the name of a layer, or of another tensor
Find = Callable[[nn.Module, Callable[[nn.Module], Any]], Groups]
_TURNED: dict[Role, Role] = {"out": "in", "in": "out", "depthwise": "depthwise", "along": "along"}
_NOT_TAKEN = "what it takes in is the model's input, or made by what must stay"


def taken_in(model: nn.Module, run: Callable[[nn.Module], Any]) -> Groups:
    """The groups of ``channel_groups``, named and judged by the weights that take their channels in.

    Args:
        model: as of ``channel_groups``.
        run: likewise.

    Returns:
        Groups whose ``makers`` are these weights, and reasons by the name of each layer that takes in none of them.
    """
    found, left = channel_groups(model, run)
    turned = [_turned(group) for group in found]
    taking = {member.module for group in turned for member in group.makers}
    layers = [name for name, module in model.named_modules() if is_layer(module) and name not in taking]
    whole = {name: why for name, why in left.items() if not found and name not in layers}
    return turned, {**whole, **dict.fromkeys(layers, _NOT_TAKEN)}


def _turned(group: Group) -> Group:
    return Group(group.channels, tuple(replace(one, role=_TURNED[one.role]) for one in group.members))


def heads(model: nn.Module, run: Callable[[nn.Module], Any]) -> Groups:
    """The groups of attention heads, each a channel.

    Args:
        model: as of ``channel_groups``.
        run: likewise.
    """
    return channel_groups(model, run, heads=True)


UNITS: dict[str, Find] = {"filter": channel_groups, "channel": taken_in, "head": heads}
