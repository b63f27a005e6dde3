"""Which inputs of layers a table of names means, and why others cannot be quantized."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import NamedTuple

from torch import nn

from deepcompression.errors import StructureError
from deepcompression.network import names
from deepcompression.network.edits.quantize_values import MOST_BITS, Site, quantizers, uncalled
from deepcompression.network.edits.recurrent import HIDDEN, LAYER
from deepcompression.network.names import join

FEWEST_BITS = 2


class Inputs(NamedTuple):
    """Sites with their bits, and why layers that only ``default`` means are left as they are, by tensor name."""

    sites: dict[Site, int]
    left: dict[str, str]


def inputs_of(model: nn.Module, bits: int | Mapping[str, int], range: str = "static") -> Inputs:
    """The first input of each layer whose weight is meant: Linear, Conv, ConvTranspose; of recurrent ones, when named.

    Args:
        model: in which the layers are.
        bits: for all, or by name pattern of the weights.
        range: that they will have; where it is not static, also what recurrent layers compute inside, by the names of
            the weights that multiply it.

    Raises:
        StructureError: a pattern matches nothing, bits are impossible, or unlike for one value; a site is quantized
            already, or what is named has no input that could be quantized.
    """
    table = names.table_of(bits)
    named = names.resolve(model, {pattern: width for pattern, width in table.items() if pattern != "default"})
    layers = _layers(model)
    sites: dict[Site, int] = {}
    left = {} if not isinstance(bits, int) else _recurrent(model)
    for name, width in names.resolve(model, table).items():
        _check_bits(name, width)
        found = [site for site in layers.get(name, []) if range != "static" or site.side == "input"]
        why = _unfit(model, name) if not found else "; ".join(filter(None, (uncalled(model, site) for site in found)))
        if why and name in named:
            raise StructureError(f"{name}: its input cannot be quantized: {why}; leave it out of activations")
        if why:
            left[name] = why
        else:
            _add(sites, found, width, name)
    for site in sites:
        if any(one.site == site for one in quantizers(model.get_submodule(site.module))):
            raise StructureError(f"{site}: is quantized already; leave it out of activations")
    return Inputs(sites, left)


def _add(sites: dict[Site, int], found: Sequence[Site], width: int, name: str) -> None:
    for site in found:
        if sites.setdefault(site, width) != width:
            raise StructureError(
                f"{name}: {width} bits for {site}, which has {sites[site]} by another weight that multiplies it; give "
                "both the same"
            )


def _layers(model: nn.Module) -> dict[str, list[Site]]:
    """What is multiplied by a tensor, by its first name."""
    first, found = names.first_names(model), defaultdict(list)
    for prefix, module in model.named_modules():
        for own, side, number in _multiplied(module):
            if (name := join(prefix, own)) in first:
                found[first[name]].append(Site(prefix, side, number))
    return found


def _multiplied(module: nn.Module) -> Iterator[tuple[str, str, int]]:
    """Weights of a module's own, each with the side and number of what it multiplies."""
    if names.is_layer(module):
        yield "weight", "input", 0
    if isinstance(module, nn.RNNCellBase):
        yield from (("weight_ih", "input", 0), ("weight_hh", HIDDEN, 0))
    if isinstance(module, nn.RNNBase):
        ways = ("", "_reverse") if module.bidirectional else ("",)
        for layer, (way, suffix) in product(range(module.num_layers), enumerate(ways)):
            yield f"weight_ih_l{layer}{suffix}", LAYER if layer else "input", layer
            yield f"weight_hh_l{layer}{suffix}", HIDDEN, layer * len(ways) + way


def _unfit(model: nn.Module, name: str) -> str:
    """Why a tensor multiplies no input of a module."""
    prefix, _, own = name.rpartition(".")
    module = model.get_submodule(prefix)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase) and own.startswith("weight"):
        inside = f"it multiplies what {prefix or 'the model'} computes inside"
        return f"{inside}, whose range is known only as it comes: activations with range: dynamic, but no projection's"
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
