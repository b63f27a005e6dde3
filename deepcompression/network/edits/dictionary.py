"""``{"kind": "dictionary", "module": name, "size": k}``: a layer multiplies its inputs by a dictionary of k vectors,
once, and looks up a few of the products for each place of a kernel.

Bagherinezhad, Rastegari, Farhadi (2017), "LCNN: lookup-based convolutional neural network", arXiv 1611.06473.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.network.edits.record import Record, check_keys, misfit, module_of, own_tensors, text, whole
from deepcompression.network.names import parameters

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Dictionary(nn.Module):
    """A layer in two: ``dictionary`` multiplies what comes in, ``lookup``, mostly zero, combines the products.

    What the paper's layer computes is these two layers one after the other; whatever knows layers knows them.
    """

    def __init__(self, dictionary: nn.Module, lookup: nn.Module) -> None:
        super().__init__()
        self.dictionary = dictionary
        self.lookup = lookup

    def forward(self, value: Tensor) -> Tensor:
        """What the layer gave, as far as its kernels are sums of the dictionary's vectors."""
        made: Tensor = self.lookup(self.dictionary(value))
        return made


def apply(model: nn.Module, record: Record) -> None:
    """Put a ``Dictionary`` in the layer's place, wherever it stands; its weights are 0 until a state_dict is loaded.

    Raises:
        EditError: no such module, one that cannot be parted, or an impossible size.
    """
    check_keys(record, "module", "size")
    name, size = text(record, "module"), whole(record, "size", record["size"])
    module: Any = module_of(model, record, name)
    why = unfit(model, module)
    if why:
        raise misfit(record, f"{name or 'the model'} cannot have a dictionary: {why}")
    if size > inputs_of(module):
        raise misfit(record, f"{name} takes {inputs_of(module)} inputs, for which a dictionary of {size} is too large")
    made = _parted(module, size).train(module.training)
    for parent in list(model.modules()):
        for place, child in parent._modules.items():
            if child is module:
                parent._modules[place] = made


def unfit(model: nn.Module, module: Any) -> str:
    """Why a module cannot be parted into a dictionary and what looks up in it; empty: it can."""
    if module is model:
        return "it is the whole model"
    if not isinstance(module, (*CONVOLUTIONS, nn.Linear)):
        return f"a {type(module).__name__} is no Conv1d, Conv2d, Conv3d or Linear"
    if not any(type(module).forward is kind.forward for kind in (*CONVOLUTIONS, nn.Linear)):
        return f"{type(module).__name__} has a forward of its own"
    if getattr(module, "groups", 1) != 1:
        return f"it has {module.groups} groups"
    weight = own_tensors(module).get("weight")
    if weight is None:
        return "it has no weight of its own; fold it first"
    if sum(one is weight for one in parameters(model).values()) > _names(model, module):
        return "its weight is tied to another layer's"
    hooks = (module._forward_hooks, module._forward_pre_hooks)
    return "it has hooks, such as those of an edit made before; let this one come first" if any(hooks) else ""


def inputs_of(module: Any) -> int:
    """Channels, or features, that a layer takes in."""
    taken: int = module.in_features if isinstance(module, nn.Linear) else module.in_channels
    return taken


def _names(model: nn.Module, module: nn.Module) -> int:
    """Under how many names a module stands in the model."""
    return sum(one is module for _, one in model.named_modules(remove_duplicate=False))


def _parted(module: Any, size: int) -> Dictionary:
    weight, bias = module.weight, module.bias is not None
    meant: dict[str, Any] = {"device": "meta", "dtype": weight.dtype}
    if isinstance(module, nn.Linear):
        dictionary: Any = nn.Linear(module.in_features, size, bias=False, **meant)
        lookup: Any = nn.Linear(size, module.out_features, bias=bias, **meant)
    else:
        kind = next(one for one in CONVOLUTIONS if isinstance(module, one))
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        same = {name: getattr(module, name) for name in names}
        dictionary = kind(module.in_channels, size, 1, bias=False, **meant)
        lookup = kind(size, module.out_channels, bias=bias, **same, **meant)
    made = Dictionary(dictionary, lookup)
    for layer in (dictionary, lookup):
        _fill(layer, weight)
    if bias:
        lookup.bias = module.bias
    return made


def _fill(layer: Any, like: nn.Parameter) -> None:
    """Give a layer on the meta device a weight of zeros where another one is, unless that has no values either."""
    zeros = torch.zeros(layer.weight.shape, dtype=like.dtype, device=like.device)
    layer.weight = nn.Parameter(zeros, requires_grad=like.requires_grad)
