"""What has a codebook of its own: a tensor, each of its channels, a part of one, or several channels together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from torch import nn

from deepcompression.errors import StructureError
from deepcompression.network import names
from deepcompression.network.channel_axis import channel_axis
from deepcompression.structure.constraints import SHARED, of_kind
from deepcompression.structure.shared import Shared

Per = Literal["tensor", "channel", "group", "channels"]


def parts(model: nn.Module, chosen: Iterable[str], per: Per = "tensor", count: int | None = None) -> dict[str, Shared]:
    """What shares values in each tensor, by its name; vectors have one codebook in any case.

    Args:
        model: with ordinary parameters.
        chosen: names of some.
        per: one codebook for a tensor; for each output channel; for each ``count`` consecutive elements of a channel,
            laid flat (``group``); or for each ``count`` consecutive channels.
        count: of elements, which divides those of a channel, or of channels, which divides their number.

    Raises:
        StructureError: a tensor has no axis of channels, or groups do not divide it.
    """
    return {name: _part(model, name, per, count) for name in chosen}


def _part(model: nn.Module, name: str, per: Per, count: int | None) -> Shared:
    axis = None if per == "tensor" else channel_axis(model, name)
    if axis is None:
        return Shared()
    weight = names.parameters(model)[name]
    channels = weight.shape[axis]
    each = weight.numel() // max(channels, 1)
    if per == "channel":
        return Shared(axis)
    whole, what = (each, f"{each} elements of a channel") if per == "group" else (channels, f"{channels} channels")
    if not count or whole % count:
        raise StructureError(
            f"{name}: groups of {count} do not divide its {what}; take a divisor of {whole}, or leave it out of bits "
            "by name"
        )
    size = count if per == "group" else count * each
    return Shared() if size == weight.numel() else Shared(axis) if size == each else Shared(axis, size)


def refuse_apart(name: str, part: Shared, words: Iterable[str]) -> None:
    """Raise where codebooks of a tensor's parts would drive apart what shares values already.

    Args:
        name: of the tensor.
        part: of it that would have a codebook each.
        words: its constraints.

    Raises:
        StructureError: they would.
    """
    if part.axis is not None and of_kind(words, SHARED):
        raise StructureError(
            f"{name}: shares values already, which codebooks of its channels or groups would drive apart; per: tensor, "
            "or leave it out of bits by name"
        )
