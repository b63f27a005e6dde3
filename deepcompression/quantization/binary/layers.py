"""Which layers are binarized, and why others stay float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from deepcompression.errors import StructureError
from deepcompression.network import names
from deepcompression.network.edits.quantize_values import Site, quantizers, uncalled


class Chosen(NamedTuple):
    """Bits by tensor name, and why other tensors stay float."""

    bits: dict[str, int]
    left: dict[str, str]


def chosen(model: nn.Module, bits: int | Mapping[str, int], keep: Sequence[str] | None, key: str) -> Chosen:
    """The weights of layers that are meant: all that ``bits`` means but those of ``keep``.

    Args:
        model: in which they are.
        bits: of all, or by name pattern.
        keep: names or patterns of what stays float; None: the first and the last layer, unless ``bits`` names them.
        key: of the recipe that has the bits, for messages.

    Raises:
        StructureError: a pattern matches nothing; a name stands in bits and keep; it is no weight of a layer; nothing
            is left.
    """
    table = names.table_of(bits)
    named = names.resolve(model, {pattern: width for pattern, width in table.items() if pattern != "default"})
    left = _kept(model, keep)
    for name in named:
        if keep is not None and name in left:
            raise StructureError(f"{name}: stands in keep and in {key}; name it in one of them")
        if name not in _of_layers(model).values():
            raise StructureError(f"{name}: is no weight of a Linear or Conv layer, and only these are binarized")
    every = names.resolve(model, table)
    found = {name: width for name, width in every.items() if name in named or name not in left}
    if not found:
        why = "keep names all of them" if keep is not None else "the first and the last layer stay float"
        raise StructureError(f"binarize: {key}: no layer is left: {why}; say what stays float, such as keep: []")
    return Chosen(found, {name: why for name, why in left.items() if name not in found})


def sites_of(model: nn.Module, bits: Mapping[str, int]) -> tuple[dict[Site, int], dict[str, str]]:
    """The first inputs of layers by the names of their weights, and why other layers' stay as they are.

    Args:
        model: in which they are.
        bits: by tensor name.

    Raises:
        StructureError: one of the sites is quantized already.
    """
    sites: dict[Site, int] = {}
    left: dict[str, str] = {}
    for prefix, name in _of_layers(model).items():
        site = Site(prefix, "input", 0)
        why = uncalled(model, site) if name in bits else ""
        if why:
            left[name] = why
        elif name in bits:
            sites[site] = bits[name]
            if any(one.site == site for one in quantizers(model.get_submodule(prefix))):
                raise StructureError(f"{site}: is quantized already; name {name} in keep, or leave activations out")
    return sites, left


def _kept(model: nn.Module, keep: Sequence[str] | None) -> dict[str, str]:
    """Why tensors stay float."""
    if keep is not None:
        return dict.fromkeys(names.select(model, keep), "stays float: named in keep")
    layers = names.prunable(model)
    ends = {layers[0]: "first", layers[-1]: "last"} if layers else {}
    return {name: f"stays float: the {end} layer" for name, end in ends.items()}


def _of_layers(model: nn.Module) -> dict[str, str]:
    """The name of the weight of each layer, by the layer's."""
    first = names.first_names(model)
    own = {prefix: names.join(prefix, "weight") for prefix, module in model.named_modules() if names.is_layer(module)}
    return {prefix: first[name] for prefix, name in own.items() if name in first}
