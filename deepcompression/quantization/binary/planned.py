"""What makes tensors binary, and what stands against it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network.channel_axis import channel_axis
from deepcompression.network.parametrized import SOURCE
from deepcompression.network.parametrized import VALUES as AFTER_MASK
from deepcompression.quantization.binary import weights_of
from deepcompression.quantization.binary.asked import Weights
from deepcompression.quantization.binary.latent import Latent
from deepcompression.structure.constraints import Structure, of_order

OTHERWISE = "kind: dorefa, which has one scale for a tensor, or name it in keep"


def planned(
    model: nn.Module, how: Weights | None, bits: Mapping[str, int], structure: Structure, zeros: Mapping[str, bool]
) -> dict[str, partial[Latent]]:
    """What makes each tensor binary.

    Args:
        model: in which they are.
        how: weights are binarized; None: not at all.
        bits: by tensor name.
        structure: what is true of them before.
        zeros: whether some of a tensor are pruned.

    Raises:
        StructureError: one has other values to keep, or no axis of filters to have a scale each.
    """
    if how is None:
        return {}
    made = {}
    for name, width in bits.items():
        kind = partial(_latent, how.kind, width, _axis(model, name, how.kind), zeros[name])
        word = kind(torch.zeros(())).word
        other = [one for one in of_order(structure.get(name, ()), SOURCE, AFTER_MASK) if one != word]
        if other:
            raise StructureError(f"{name}: is {other[0]} already, which binarize would undo; name it in keep")
        made[name] = kind
    return made


def _axis(model: nn.Module, name: str, word: str) -> int:
    """The axis of filters, where each has a scale."""
    return (channel_axis(model, name, OTHERWISE) or 0) if weights_of(word).by_filter else 0


def _latent(word: str, bits: int, axis: int, zeros: bool, _: Tensor) -> Latent:
    return weights_of(word)(bits, axis, zeros)
