"""Names: which tensors a model has, which are pruned and shared by default, which ones a pattern means."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from deepcompression.errors import StructureError

T = TypeVar("T")


def prunable(model: nn.Module) -> list[str]:
    """Names of what is pruned and shared by default: the weights of Linear, ConvNd and ConvTransposeNd.

    Only floating-point parameters; a tied weight appears once, under the first of its names.
    """
    first = first_names(model)
    weights = [
        join(prefix, "weight")
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Linear | _ConvNd)
    ]
    return list(dict.fromkeys(first[name] for name in weights if name in first))


def select(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Names of the tensors that ``patterns`` mean, in the model's order, tied ones once.

    A pattern (``fnmatch``) that matches a module's name means its ``weight``, where that is a prunable one
    (or where the name is written out, as for an embedding). One that matches a tensor's full name means that
    tensor; biases, recurrent and attention weights are reached this way, by a wildcard only if it ends in the
    parameter's own name (``*.bias``).

    Raises:
        StructureError: a pattern matches nothing; the nearest names are told.
    """
    return list(resolve(model, dict.fromkeys(patterns, True)))


def resolve(model: nn.Module, table: Mapping[str, T]) -> dict[str, T]:
    """Per-layer settings by tensor name, in the model's order.

    An exact name beats a pattern, an earlier pattern a later one; ``default`` is for the prunable rest.

    Raises:
        StructureError: a pattern matches nothing; the nearest names are told.
    """
    found: dict[str, T] = {}
    patterns = [pattern for pattern in table if pattern != "default"]
    for pattern in sorted(patterns, key=lambda one: any(sign in one for sign in "*?[")):
        for name in _matches(model, pattern):
            found.setdefault(name, table[pattern])
    if "default" in table:
        for name in prunable(model):
            found.setdefault(name, table["default"])
    return {name: found[name] for name in parameters(model) if name in found}


def padding_rows(model: nn.Module) -> dict[str, int]:
    """Embedding weights' padding rows by tensor name: never pruned, never shared."""
    first = first_names(model)
    return {
        first[join(prefix, "weight")]: module.padding_idx % module.num_embeddings
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None
    }


def parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every floating-point parameter under each of its names; a held one under the name it has when baked."""
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        prefix, held, rest = name.rpartition("parametrizations.")
        if held and is_held(model.get_submodule(prefix.removesuffix(".")), rest.removesuffix(".original")):
            name = prefix + rest.removesuffix(".original")
        if parameter.is_floating_point():
            found[name] = parameter
    return found


def first_names(model: nn.Module) -> dict[str, str]:
    """Every floating-point parameter's name -> the first name of the same (tied) parameter."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(parameter), name) for name, parameter in parameters(model).items()}


class Holder(nn.Module):
    """Base of the parametrizations with which training holds structure."""

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


def join(prefix: str, name: str) -> str:
    """A tensor's full name."""
    return f"{prefix}.{name}" if prefix else name


def _matches(model: nn.Module, pattern: str) -> list[str]:
    first, default = first_names(model), set(prunable(model))
    modules = dict(model.named_modules(remove_duplicate=False))
    if pattern in modules and join(pattern, "weight") in first:
        return [first[join(pattern, "weight")]]
    found = [one for name, one in first.items() if _means(pattern, name, one in default)]
    if not found:
        near = difflib.get_close_matches(pattern, [*modules, *first], 3) or sorted(default)[:5]
        raise StructureError(f"pattern {pattern!r} matches no tensor of the model; the nearest are {', '.join(near)}")
    return found


def _means(pattern: str, name: str, default: bool) -> bool:
    """Whether a pattern means this tensor; beyond the prunable, wildcards must spell its end."""
    module, _, own = name.rpartition(".")
    if default and own == "weight" and fnmatchcase(module, pattern):
        return True
    spelt = default or name == pattern or (own != "weight" and pattern.endswith(own))
    return spelt and fnmatchcase(name, pattern)
