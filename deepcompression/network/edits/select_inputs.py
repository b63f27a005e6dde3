"""``{"kind": "select_inputs", "module": name, "count": n}``: a layer takes n of its inputs, as the tensor
``name.selected`` numbers them.

For inputs that are removed one by one, where what makes them stays whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from deepcompression.network.edits.record import (
    Record,
    add_tensor,
    check_keys,
    misfit,
    module_of,
    own_tensors,
    text,
    whole,
)
from deepcompression.network.names import is_conv1d, join, parameters

SELECTED = "selected"


@dataclass(frozen=True)
class Select:
    """Before a forward: of ``inputs`` on the axis of the first argument, those that the module has ``selected``."""

    axis: int  # from the last one on, below 0
    inputs: int

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, the first one with fewer inputs."""
        value: Tensor = arguments[0]
        if value.shape[self.axis] != self.inputs:
            raise ValueError(f"expected {self.inputs} inputs on axis {self.axis}, got the shape {tuple(value.shape)}")
        selected: Any = getattr(module, SELECTED)
        return value.index_select(value.ndim + self.axis, selected), *arguments[1:]


def apply(model: nn.Module, record: Record) -> None:
    """Shorten the weight to ``count`` inputs, which are taken from the first argument before each forward.

    Raises:
        EditError: no such module, no Linear, Conv (of one group) or Conv1D, or it has no more than so many inputs.
    """
    check_keys(record, "module", "count")
    name, count = text(record, "module"), whole(record, "count", record["count"])
    module: Any = module_of(model, record, name)
    weight = own_tensors(module).get("weight")
    axis, attribute, place = _layout(module)
    why = _unfit(model, module, weight, axis, attribute)
    if why or weight is None:
        raise misfit(record, f"{name} {why}")
    inputs = weight.shape[axis]
    if count >= inputs:
        raise misfit(record, f"{name} takes {inputs} inputs, of which {count} are no selection")
    module.weight = nn.Parameter(weight.detach().narrow(axis, 0, count).clone(), requires_grad=weight.requires_grad)
    setattr(module, attribute, count)
    add_tensor(module, record, name, SELECTED, torch.arange(count))
    module.register_forward_pre_hook(Select(place, inputs))


def check_values(model: nn.Module, record: Record, state: Mapping[str, Tensor]) -> None:
    """Raise EditError where numbers of inputs in ``state`` do not ascend, or are not of an input.

    Args:
        model: with the edit applied.
        record: of the edit.
        state: tensors that are to be loaded.

    Raises:
        EditError: they are no such numbers.
    """
    name = join(record["module"], SELECTED)
    numbers = state.get(name)
    module = model.get_submodule(record["module"])
    inputs = next(hook.inputs for hook in module._forward_pre_hooks.values() if isinstance(hook, Select))
    if numbers is None or not numbers.numel():
        return
    if numbers.ndim != 1 or numbers.is_floating_point() or not _ascend(numbers.long(), inputs):
        raise misfit(record, f"{name} must hold ascending numbers from 0 to {inputs - 1}")


def _ascend(numbers: Tensor, inputs: int) -> bool:
    return bool((numbers.diff() > 0).all()) and int(numbers[0]) >= 0 and int(numbers[-1]) < inputs


def _layout(module: Any) -> tuple[int, str, int]:
    """The weight's axis of inputs, the attribute that counts them, the axis of the argument that they lie on."""
    if isinstance(module, nn.Linear):
        return 1, "in_features", -1
    if isinstance(module, _ConvNd):
        return 0 if module.transposed else 1, "in_channels", 1 - module.weight.ndim
    return (0, "nx", -1) if is_conv1d(module) else (0, "", 0)


def _unfit(model: nn.Module, module: Any, weight: Tensor | None, axis: int, attribute: str) -> str:
    """Why inputs of a module cannot be selected; empty: they can."""
    if not attribute:
        return f"is a {type(module).__name__}; inputs are selected of Linear, Conv and Conv1D layers"
    if weight is None:
        return "has no weight of its own; fold it first"
    if getattr(module, "groups", 1) != 1:
        return f"has {module.groups} groups; inputs are selected where there is one"
    uses = sum(one is weight for one in parameters(model).values())
    return f"has a weight that is used {uses} times" if uses > 1 else ""
