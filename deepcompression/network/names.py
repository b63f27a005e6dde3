"""Names: which tensors a model has, which are pruned and shared by default, which ones a pattern means."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from deepcompression.errors import StructureError
from deepcompression.network import chosen
from deepcompression.network.parametrized import computed, is_held, join

__all__ = [
    "first_names",
    "is_conv1d",
    "is_layer",
    "join",
    "memory",
    "misfit",
    "padding_rows",
    "parameters",
    "prunable",
    "refuse_compiled",
    "refuse_overlaps",
    "resolve",
    "select",
]

T = TypeVar("T")
LAYERS = (nn.Linear, _ConvNd)  # and their subclasses, and Conv1D: what is pruned and shared by default
SHOWN = 4  # names in a message
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the linear layer of GPT-2 in the transformers library, whose weight is (in, out)."""
    named = any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
    return named and hasattr(module, "nf") and hasattr(module, "nx")


def is_layer(module: nn.Module) -> bool:
    """Whether the weight of this module is pruned and shared by default."""
    return isinstance(module, LAYERS) or is_conv1d(module)


def prunable(model: nn.Module) -> list[str]:
    """Names of what is pruned and shared by default: the weights of Linear, ConvNd, ConvTransposeNd, Conv1D.

    Only floating-point parameters; a tied weight appears once, under the first of its names. One that is tied with an
    embedding is an embedding: each of its rows is an input's whole representation, and pruned only when named.
    """
    embeddings = set(_weights(model, lambda module: isinstance(module, EMBEDDINGS)))
    return [name for name in dict.fromkeys(_weights(model, is_layer)) if name not in embeddings]


def select(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Names of the tensors that ``patterns`` mean, in the model's order, tied ones once.

    A pattern (``fnmatch``) that matches a module's name means its ``weight``, where that is a prunable one
    (or where the name is written out, as for an embedding). One that matches a tensor's full name means that
    tensor; biases, recurrent and attention weights are reached this way, by a wildcard only if it ends in the
    parameter's own name (``*.bias``).
    ``type:Conv2d`` means the weights of a class of modules, ``min_size:10000`` prunable tensors of so many elements,
    ``package.module:callable`` the names that a function of the model returns, and `` & `` between several what all
    of them mean.

    Raises:
        StructureError: a pattern matches nothing; the nearest names are told.
    """
    return list(resolve(model, dict.fromkeys(patterns, True)))


def resolve(model: nn.Module, table: Mapping[str, T]) -> dict[str, T]:
    """Per-layer settings by tensor name, in the model's order.

    An exact name beats a pattern, an earlier pattern a later one; ``default`` is for the prunable rest.

    Raises:
        StructureError: a pattern matches nothing; the nearest names are told. Two exact names are of one (tied) tensor,
            and do not say the same.
    """
    found: dict[str, T] = {}
    patterns = [pattern for pattern in table if pattern != "default"]
    exact = {pattern: name for pattern in patterns if (name := _written_out(model, pattern)) is not None}
    _refuse_unlike(exact, table)
    for pattern in sorted(patterns, key=lambda one: one not in exact):
        for name in _matches(model, pattern):
            found.setdefault(name, table[pattern])
    refuse_compiled(model, found)
    if "default" in table:
        for name in prunable(model):
            found.setdefault(name, table["default"])
    return {name: found[name] for name in parameters(model) if name in found}


def _refuse_unlike(exact: Mapping[str, str], table: Mapping[str, T]) -> None:
    """Raises StructureError where two names of one tensor do not say the same."""
    said: dict[str, str] = {}
    for pattern, name in exact.items():
        first = said.setdefault(name, pattern)
        if table[first] != table[pattern]:
            raise StructureError(
                f"{first} and {pattern} are one tensor, {name}, and cannot have {table[first]} and {table[pattern]}; "
                "name it once"
            )


def table_of(value: Mapping[str, T] | T) -> Mapping[str, T]:
    """One value for all tensors as the table of values by name pattern that ``resolve`` takes."""
    return value if isinstance(value, Mapping) else {"default": value}


def padding_rows(model: nn.Module) -> dict[str, int]:
    """Embedding weights' padding rows by tensor name: never pruned, never shared."""
    first = first_names(model)
    return {
        first[join(prefix, "weight")]: module.padding_idx % module.num_embeddings
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, EMBEDDINGS) and module.padding_idx is not None
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
    first: dict[object, str] = {}
    return {name: first.setdefault(memory(parameter), name) for name, parameter in parameters(model).items()}


def memory(tensor: Tensor) -> object:
    """Where a tensor's elements lie: equal for the names of one (tied) tensor, also for two objects on one memory."""
    if tensor.layout != torch.strided or not tensor.numel() or tensor.is_meta:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def refuse_overlaps(named: Mapping[str, Tensor]) -> None:
    """Raises StructureError where two tensors have elements in common, but are not one tensor (a view, a transpose)."""
    storages: dict[object, list[str]] = {}
    for name, tensor in named.items():
        if tensor.layout == torch.strided and tensor.numel() and not tensor.is_meta:
            storages.setdefault((tensor.device, tensor.untyped_storage().data_ptr()), []).append(name)
    for names in storages.values():
        for one, other in itertools.combinations(names, 2):
            if memory(named[one]) != memory(named[other]) and _meet(named[one], named[other]):
                raise StructureError(
                    f"{one} and {other} are unlike views of the same memory: what is done to one would be undone by "
                    "the other; make them one Parameter, or apart, and take the view or the transpose in forward"
                )


def refuse_compiled(model: nn.Module, names: Iterable[str]) -> None:
    """Raises StructureError where one of these parameters is in a TorchScript module."""
    for prefix, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            own = {join(prefix, name) for name, _ in module.named_parameters(recurse=False)}
            for name in own.intersection(names):
                raise StructureError(
                    f"{name} is in a TorchScript module, which takes no masks or codebooks; let the factory build the "
                    "model in Python, and give it the script's weights"
                )


def misfit(model: nn.Module, name: str) -> str | None:
    """Why the tensor of this name (or the weight of this module) cannot be pruned, shared or held; None: it may be."""
    return _computed(model, name) or _of_other_kind(model, name)


def _weights(model: nn.Module, meant: Callable[[nn.Module], bool]) -> list[str]:
    """First names of the weights of all modules that are meant."""
    first = first_names(model)
    modules = model.named_modules(remove_duplicate=False)
    names = [join(prefix, "weight") for prefix, module in modules if meant(module)]
    return [first[name] for name in names if name in first]


def _meet(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one storage have an element in common."""
    if one.element_size() != other.element_size():
        return True  # nobody trains views of another width
    if one.storage_offset() >= _end(other) or other.storage_offset() >= _end(one):
        return False
    marks = torch.zeros(max(_end(one), _end(other)), dtype=torch.bool)
    marks.as_strided(one.shape, one.stride(), one.storage_offset()).fill_(True)
    return bool(marks.as_strided(other.shape, other.stride(), other.storage_offset()).any())


def _end(tensor: Tensor) -> int:
    """The place in the storage behind a tensor's last element."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset() + reach + 1)


def _matches(model: nn.Module, pattern: str) -> list[str]:
    exact = _written_out(model, pattern)
    if exact is not None:
        return [exact]
    parts = chosen.parts_of(pattern)
    return _by_all(model, parts, pattern) if parts else _by_name(model, pattern)


def _by_all(model: nn.Module, parts: Sequence[str], pattern: str) -> list[str]:
    """What all parts of a choice mean; sizes are looked at last, of what the others mean, or of what is prunable."""
    sizes = [part.removeprefix(chosen.LEAST) for part in parts if part.startswith(chosen.LEAST)]
    others = [_by_part(model, part, pattern) for part in parts if not part.startswith(chosen.LEAST)]
    first, *more = others or [prunable(model)]
    found = [name for name in first if all(name in one for one in more)]
    for least in sizes:
        found = chosen.by_size(parameters(model), found, least, pattern)
    if not found:
        raise StructureError(f"pattern {pattern!r}: no tensor of the model is all of this")
    return found


def _by_part(model: nn.Module, part: str, pattern: str) -> list[str]:
    if part.startswith(chosen.TYPE):
        return chosen.by_type(model, first_names(model), part.removeprefix(chosen.TYPE).strip(), pattern)
    if chosen.is_code(part):
        names = chosen.by_callable(model, part, pattern)
        return list(dict.fromkeys(one for name in names for one in _by_plain_name(model, name)))
    return _by_plain_name(model, part)


def _by_plain_name(model: nn.Module, pattern: str) -> list[str]:
    exact = _written_out(model, pattern)
    return [exact] if exact is not None else _by_name(model, pattern)


def _by_name(model: nn.Module, pattern: str) -> list[str]:
    first, default = first_names(model), set(prunable(model))
    found = [one for name, one in first.items() if _means(pattern, name, one in default)]
    if not found:
        why = _computed(model, pattern) or _unspelt(model, pattern) or _of_other_kind(model, pattern)
        raise StructureError(f"pattern {pattern!r}{f': {why}' if why else _nearest(model, pattern)}")
    return found


def _written_out(model: nn.Module, pattern: str) -> str | None:
    """The tensor whose name, or whose module's name, this is, signs of patterns in it or not (``experts.a[0]``)."""
    first = first_names(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    return first.get(pattern) or (first.get(join(pattern, "weight")) if pattern in modules else None)


def _nearest(model: nn.Module, pattern: str) -> str:
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    near = difflib.get_close_matches(pattern, [*names, *first_names(model)], 3) or sorted(prunable(model))[:5]
    return f" matches no tensor of the model; the nearest are {', '.join(near)}"


def _computed(model: nn.Module, pattern: str) -> str | None:
    for name, one in computed(model).items():
        if _spells(pattern, name):
            return (
                f"{one}, so that it has no values of its own to prune or share; make it a parameter in the model's "
                f"factory ({one.undo}), or name what it is computed from"
            )
    return None


def _of_other_kind(model: nn.Module, pattern: str) -> str | None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        parameter = isinstance(tensor, nn.Parameter)
        if _spells(pattern, name) and not (parameter and tensor.is_floating_point()):
            what = f"a {'parameter' if parameter else 'buffer'} of {str(tensor.dtype).removeprefix('torch.')}"
            return f"{name} is {what}; only floating-point parameters can be pruned or shared"
    return None


def _unspelt(model: nn.Module, pattern: str) -> str | None:
    """What to write where a pattern means only tensors that must be spelt out; None where it means none."""
    first = first_names(model)
    meant = [name for name in first if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
    if not meant:
        return None
    more = f" and {len(meant) - SHOWN} more" if len(meant) > SHOWN else ""
    return (
        "no Linear or Conv layer, and other tensors are pruned or shared only when they are named in full: "
        f"{', '.join(meant[:SHOWN])}{more}"
    )


def _spells(pattern: str, name: str) -> bool:
    """Whether a pattern means this tensor, or as a module's name its weight."""
    module, _, own = name.rpartition(".")
    return fnmatchcase(name, pattern) or (own == "weight" and fnmatchcase(module, pattern))


def _means(pattern: str, name: str, default: bool) -> bool:
    """Whether a pattern means this tensor; beyond the prunable, wildcards must spell its end."""
    module, _, own = name.rpartition(".")
    if default and own == "weight" and fnmatchcase(module, pattern):
        return True
    spelt = default or name == pattern or (own != "weight" and pattern.endswith(own))
    return spelt and fnmatchcase(name, pattern)
