"""Attributes that are computed from parameters: by what training holds, or by the user's own parametrizations."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

SOURCES = ("_orig", "_g", "_v")  # what torch's hooks call the parameters that they compute an attribute from
UNDO = {
    "torch.nn.utils.weight_norm": "torch.nn.utils.remove_weight_norm",
    "torch.nn.utils.spectral_norm": "torch.nn.utils.remove_spectral_norm",
    "torch.nn.utils.prune": "torch.nn.utils.prune.remove",
}


SOURCE, MASK, VALUES = range(3)  # the order of what is held in one tensor: what is trained, its zeros, its values


class Holder(nn.Module):
    """Base of the parametrizations with which training holds structure."""

    order = SOURCE
    layout: Tensor

    def __init__(self) -> None:
        super().__init__()
        # What is trained may be flat, and tells nothing of the memory format that the model is moved to: this does.
        self.register_buffer("layout", torch.zeros(2, 2, 2, 2), persistent=False)

    def laid_out(self, weight: Tensor) -> Tensor:
        """``weight`` in the model's memory format: convolutions take twice as long with one that is in another."""
        last = weight.ndim == 4 and self.layout.is_contiguous(memory_format=torch.channels_last)
        # Not contiguous(), which leaves strides as they are where there is one channel, and convolutions go by strides.
        return weight.to(memory_format=torch.channels_last) if last else weight


def is_held(module: nn.Module, attribute: str) -> bool:
    """Whether structure is held in this parameter (a parametrization of the user's own is another matter)."""
    if not parametrize.is_parametrized(module, attribute):
        return False
    return isinstance(module.parametrizations[attribute][0], Holder)  # type: ignore[index]


@dataclass(frozen=True)
class Computed:
    """A tensor that is no parameter: ``by`` what it is computed, from which ``sources``; ``undo`` makes it one."""

    name: str
    by: str
    sources: tuple[str, ...]
    undo: str

    def __str__(self) -> str:
        return f"{self.name} is computed by {self.by} from {' and '.join(self.sources)}"


def computed(model: nn.Module) -> dict[str, Computed]:
    """Every tensor that the user's parametrizations, or torch's older hooks (weight_norm, ...), compute; by its name.

    What training holds is not among them.
    """
    found = [one for prefix, module in model.named_modules() for one in (*_new(prefix, module), *_old(prefix, module))]
    return {one.name: one for one in found}


def join(prefix: str, name: str) -> str:
    """A tensor's full name."""
    return f"{prefix}.{name}" if prefix else name


def _new(prefix: str, module: nn.Module) -> Iterator[Computed]:
    """By ``torch.nn.utils.parametrize``."""
    if not parametrize.is_parametrized(module):
        return
    lists: Any = module.parametrizations
    for attribute, parts in lists.items():
        if not is_held(module, attribute):
            names = [join(prefix, f"parametrizations.{attribute}.{name}") for name, _ in parts.named_parameters()]
            by = " and ".join(_kind(part) for part in parts)
            undo = "torch.nn.utils.parametrize.remove_parametrizations"
            yield Computed(join(prefix, attribute), by, tuple(names), undo)


def _old(prefix: str, module: nn.Module) -> Iterator[Computed]:
    """By a hook that sets a plain attribute before each forward."""
    for attribute, value in vars(module).items():
        sources = [attribute + end for end in SOURCES if attribute + end in module._parameters]
        if isinstance(value, Tensor) and sources:
            hook = next((one for one in module._forward_pre_hooks.values() if _sets(one) == attribute), None)
            undo = UNDO.get(type(hook).__module__, "remove the hook")
            yield Computed(join(prefix, attribute), _kind(hook), tuple(join(prefix, one) for one in sources), undo)


def _sets(hook: object) -> object:
    return getattr(hook, "name", getattr(hook, "_tensor_name", None))


def _kind(part: object) -> str:
    """``_WeightNorm`` of torch -> weight_norm; a class of the user's as it is called."""
    if part is None:
        return "a hook"
    kind = type(part)
    if not kind.__module__.startswith("torch."):
        return kind.__name__
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind.__name__.lstrip("_")).lower()
