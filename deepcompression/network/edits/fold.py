"""``{"kind": "fold", "tensor": name}``: a tensor that is computed from others becomes an ordinary parameter.

Weight norm, spectral norm, orthogonality and the user's own parametrizations, and torch's older hooks of weight_norm,
spectral_norm and prune: afterwards the tensor is pruned, shared and quantized like any other.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from deepcompression.errors import EditError, in_one_line
from deepcompression.network.edits.record import Record, check_keys, misfit, text
from deepcompression.network.parametrized import SOURCES, UNDO, Computed, computed
from deepcompression.network.trace import resting

HELPERS = ("_u", "_v", "_mask")  # buffers from which torch's older hooks compute, beside parameters


def foldable(model: nn.Module) -> list[dict[str, str]]:
    """A record for each computed tensor of ``model`` that can become a parameter, in the model's order."""
    return [{"kind": "fold", "tensor": name} for name, one in computed(model).items() if _unfit(model, one) is None]


def fold_all(model: nn.Module) -> list[dict[str, str]]:
    """Make every computed tensor of ``model`` that can become a parameter one; the records of what was done."""
    records = foldable(model)
    for record in records:
        apply(model, record)
    return records


def apply(model: nn.Module, record: Record) -> None:
    """Make the tensor a parameter with the value that the forward uses in eval mode.

    Raises:
        EditError: no such tensor, it is a parameter already, or is computed by code that nobody can take out.
    """
    check_keys(record, "tensor")
    name = text(record, "tensor")
    one = computed(model).get(name)
    why = f"the model computes no tensor {name!r}" if one is None else _unfit(model, one)
    if why or one is None:
        raise misfit(record, why or "")
    prefix, _, attribute = name.rpartition(".")
    module = model.get_submodule(prefix)
    with in_one_line(f"edit fold: {name} cannot be computed", EditError):
        value = _value(module, attribute)
    needs = any(parameter.requires_grad for parameter in map(model.get_parameter, one.sources))
    (_take_out if parametrize.is_parametrized(module, attribute) else _unhook)(module, attribute)
    setattr(module, attribute, nn.Parameter(value, requires_grad=needs))


def _unfit(model: nn.Module, one: Computed) -> str | None:
    """Why a computed tensor cannot become a parameter; None: it can."""
    prefix, _, attribute = one.name.rpartition(".")
    module = model.get_submodule(prefix)
    if isinstance(module, torch.jit.ScriptModule):
        return f"{one.name} is in a TorchScript module"
    if not one.sources:
        return f"{one}: from no parameter"
    if parametrize.is_parametrized(module, attribute) or type(_hook(module, attribute)).__module__ in UNDO:
        return None
    return f"{one}: this hook is not known, and cannot be taken out; do so in the model's factory"


def _value(module: nn.Module, attribute: str) -> Tensor:
    """The tensor that a forward in eval mode uses: spectral norms do not go on estimating."""
    with resting(module), torch.no_grad():
        hook = _hook(module, attribute)
        if hook is not None:
            hook(module, ())
        value: Tensor = getattr(module, attribute)
        return value.detach().clone(memory_format=torch.contiguous_format)


def _hook(module: nn.Module, attribute: str) -> Any:
    """The older hook that sets an attribute before each forward, if any."""
    if parametrize.is_parametrized(module, attribute):
        return None
    return next((one for one in module._forward_pre_hooks.values() if _name(one) == attribute), None)


def _name(hook: object) -> object:
    return getattr(hook, "name", getattr(hook, "_tensor_name", None))


def _take_out(module: nn.Module, attribute: str) -> None:
    """Take a parametrization out of one module: its class, which copies of it share, stays as it is."""
    kind, lists = type(module), cast(nn.ModuleDict, module.parametrizations)
    del lists[attribute]
    if len(lists):
        left = {name: one for name, one in vars(kind).items() if name not in (attribute, "__dict__", "__weakref__")}
        module.__class__ = type(kind.__name__, kind.__bases__, left)
    else:
        del module.parametrizations
        module.__class__ = kind.__bases__[0]


def _unhook(module: nn.Module, attribute: str) -> None:
    """Take out an older hook with all that it computes from, and what it does to state_dicts."""
    vars(module).pop(attribute)
    for end in SOURCES:
        module._parameters.pop(attribute + end, None)
    for end in HELPERS:
        module._buffers.pop(attribute + end, None)
    for hooks in (module._forward_pre_hooks, module._state_dict_hooks, module._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            owner = getattr(hook, "hook", hook)  # torch wraps those that take the module
            if _name(getattr(owner, "fn", owner)) == attribute:
                del hooks[key]
