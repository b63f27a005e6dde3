"""``{"kind": "bypass", "module": name}``: the module returns its input; input and output must have one shape."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from deepcompression.network.edits.record import Record, add_tensor, check_keys, misfit, module_of, own_tensors, text
from deepcompression.network.names import is_conv1d


class Bypassed(nn.Module):
    """Returns its first input, whatever else it is called with."""

    edit: Tensor

    def forward(self, value: Any, *_: object, **__: object) -> Any:
        """The value itself."""
        return value


def apply(model: nn.Module, record: Record) -> None:
    """Put a ``Bypassed`` in the module's place, wherever the module stands.

    Raises:
        EditError: no such module, or its output has another shape than its input.
    """
    check_keys(record, "module")
    name = text(record, "module")
    module = module_of(model, record, name)
    why = "it is the whole model" if module is model else _changes(module)
    if why:
        raise misfit(record, f"{name or 'the model'} cannot be left out: {why}")
    made = Bypassed().train(module.training)
    near = next(iter(own_tensors(module).values()), None)
    add_tensor(
        made, record, name, "edit", torch.zeros((), dtype=torch.uint8, device=near.device if near is not None else None)
    )
    for parent in list(model.modules()):
        for place, child in parent._modules.items():
            if child is module:
                parent._modules[place] = made


def _changes(module: Any) -> str:
    """Why a module's output has not its input's shape, as far as that is known of its class; else empty."""
    if isinstance(module, Bypassed):
        return "it is left out already"
    if isinstance(module, nn.Linear) and module.in_features != module.out_features:
        return f"it makes {module.out_features} features of {module.in_features}"
    if is_conv1d(module) and module.nx != module.nf:
        return f"it makes {module.nf} features of {module.nx}"
    if isinstance(module, _ConvNd):
        if module.in_channels != module.out_channels:
            return f"it makes {module.out_channels} channels of {module.in_channels}"
        return "" if _keeps_places(module) else "its output has other places than its input"
    if isinstance(module, nn.RNNBase | nn.RNNCellBase | nn.MultiheadAttention | nn.Embedding | nn.EmbeddingBag):
        return f"what a {type(module).__name__} returns is not of its input's form"
    return ""


def _keeps_places(layer: Any) -> bool:
    if any(stride != 1 for stride in layer.stride):
        return False
    if isinstance(layer.padding, str):
        return bool(layer.padding == "same")
    extra = layer.output_padding
    sizes = zip(layer.padding, layer.dilation, layer.kernel_size, extra, strict=True)
    return all(
        2 * padding == dilation * (size - 1) + (more if layer.transposed else 0)
        for padding, dilation, size, more in sizes
    )
