"""Which inputs of layers a table of names means, and why others cannot be quantized."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import NamedTuple

from torch import nn

from deepcompression.errors import StructureError
from deepcompression.network import names
from deepcompression.network.edits.quantize_values import MOST_BITS, Site, quantizers, uncalled
from deepcompression.network.names import join

FEWEST_BITS = 2


class Inputs(NamedTuple):
    """Sites with their bits, and why layers that only ``default`` means are left as they are, by tensor name."""

    sites: dict[Site, int]
    left: dict[str, str]


def inputs_of(model: nn.Module, bits: int | Mapping[str, int]) -> Inputs:
    """The first input of each layer whose weight is meant: Linear, Conv, ConvTranspose; of recurrent ones, when named.

    Args:
        model: in which the layers are.
        bits: for all, or by name pattern of the weights.

    Raises:
        StructureError: a pattern matches nothing, bits are impossible, a site is quantized already, or what is named
            has no input that could be quantized.
    """
    table = names.table_of(bits)
    named = names.resolve(model, {pattern: width for pattern, width in table.items() if pattern != "default"})
    layers = _layers(model)
    sites: dict[Site, int] = {}
    left = {} if not isinstance(bits, int) else _recurrent(model)
    for name, width in names.resolve(model, table).items():
        _check_bits(name, width)
        prefixes = layers.get(name, [])
        why = _unfit(model, name) if not prefixes else "; ".join(filter(None, (_why(model, one) for one in prefixes)))
        if why and name in named:
            raise StructureError(f"{name}: its input cannot be quantized: {why}; leave it out of activations")
        if why:
            left[name] = why
        else:
            sites.update({Site(prefix, "input", 0): width for prefix in prefixes})
    for site in sites:
        if any(one.site == site for one in quantizers(model.get_submodule(site.module))):
            raise StructureError(f"{site}: is quantized already; leave it out of activations")
    return Inputs(sites, left)


def _layers(model: nn.Module) -> dict[str, list[str]]:
    """The modules that multiply their first input by a tensor, by its first name."""
    first, found = names.first_names(model), defaultdict(list)
    for prefix, module in model.named_modules():
        own = ["weight"] if names.is_layer(module) else []
        if isinstance(module, nn.RNNBase):
            own = ["weight_ih_l0", "weight_ih_l0_reverse"]
        if isinstance(module, nn.RNNCellBase):
            own = ["weight_ih"]
        for one in own:
            if (name := join(prefix, one)) in first:
                found[first[name]].append(prefix)
    return found


def _why(model: nn.Module, prefix: str) -> str:
    return uncalled(model, Site(prefix, "input", 0))


def _unfit(model: nn.Module, name: str) -> str:
    """Why a tensor multiplies no input of a module."""
    prefix, _, own = name.rpartition(".")
    module = model.get_submodule(prefix)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) and own.startswith("weight"):
        return f"it multiplies what {prefix or 'the model'} computes inside, which is no input of a module"
    if isinstance(module, names.EMBEDDINGS):
        return "an embedding takes indices"
    if isinstance(module, nn.MultiheadAttention):
        return f"the attention {prefix} uses it inside, where nothing is called as a module"
    return "it is no weight of a Linear, Conv or recurrent layer"


def _recurrent(model: nn.Module) -> dict[str, str]:
    """Recurrent weights, which only their names mean."""
    found = {}
    for prefix, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase):
            own = "weight_ih_l0" if isinstance(module, nn.RNNBase) else "weight_ih"
            found[join(prefix, own)] = "the input of a recurrent layer is quantized only when named"
    return found


def _check_bits(name: str, width: int) -> None:
    if isinstance(width, bool) or not isinstance(width, int) or not FEWEST_BITS <= width <= MOST_BITS:
        raise StructureError(f"{name}: bits {width} is impossible, expected {FEWEST_BITS} to {MOST_BITS}")
