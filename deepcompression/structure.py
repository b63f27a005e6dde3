"""Zeros and sharing in a model: which tensors may have them, how training holds them, whether a stage kept them.

Structure lives in the values of an ordinary state_dict: a pruned weight is the bit pattern +0.0, weights that share
are equal. While a model trains, ``torch.nn.utils.parametrize`` modules hold it; ``bake`` writes it back.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from deepcompression.errors import InvariantError, StructureError

T = TypeVar("T")
INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Held:
    """Names of the tensors whose structure training holds."""

    zeros: list[str]
    shared: list[str]


@dataclass(frozen=True)
class Coarsened:
    """How structure grew: weights that became zero, and groups of equal weights that merged into others."""

    new_zeros: int
    merged_groups: int


def prunable(model: nn.Module) -> list[str]:
    """Names of the weights that are pruned and shared unless others are named: those of Linear, ConvNd, ConvTransposeNd.

    Only floating-point ones; a tied weight appears once, under its first name.
    """
    names = []
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear | _ConvNd) and isinstance(weight, Tensor) and weight.is_floating_point():
            names += [] if id(_root(module)) in seen else [_join(prefix, "weight")]
            seen.add(id(_root(module)))
    return names


def select(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Names of the tensors that ``patterns`` mean, in the model's order.

    A pattern (``fnmatch``) that matches a module's name means its ``weight``, where that is a prunable one (or where
    the name is written out, as for an embedding). One that matches a tensor's full name means that tensor; biases,
    recurrent and attention weights are reached this way.

    Raises:
        StructureError: a pattern matches nothing; the nearest names are told.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        chosen |= _matches(model, pattern)
    return [name for name in _floating(model) if name in chosen]


def resolve(model: nn.Module, table: Mapping[str, T]) -> dict[str, T]:
    """Per-layer settings by tensor name.

    An exact name beats a pattern, an earlier pattern a later one; ``default`` is for every prunable weight left.

    Raises:
        StructureError: a pattern matches nothing.
    """
    found: dict[str, T] = {}
    patterns = [pattern for pattern in table if pattern != "default"]
    for pattern in sorted(patterns, key=lambda one: any(sign in one for sign in "*?[")):
        for name in _matches(model, pattern):
            found.setdefault(name, table[pattern])
    if "default" in table:
        for name in prunable(model):
            found.setdefault(name, table["default"])
    return {name: found[name] for name in _floating(model) if name in found}


def hold(model: nn.Module, names: Sequence[str] | None = None, *, shared: Sequence[str] = ()) -> Held:
    """From now on training keeps the zeros of ``names`` and the sharing of ``shared``; changes ``model`` in place.

    Make the optimizer afterwards: a shared weight's parameter is its codebook (k,), whose gradient is the sum of the
    gradients of the weights that share each centroid (paper, section 3.3). Tied weights get one structure at every use.

    Args:
        model: any module.
        names: tensors whose zeros stay; default: the partly zero prunable ones.
        shared: tensors whose equal weights stay equal (their zeros stay too).

    Returns:
        What is held. Undo with ``bake``.

    Raises:
        StructureError: no such parameter, or a value in it is not finite.
    """
    zeros = _partly_zero(model) if names is None else list(names)
    for name in dict.fromkeys([*zeros, *shared]):
        uses = _uses(model, name)
        weight = getattr(*uses[0])
        _require_finite(name, weight)
        part = SharedWeights(weight.detach()) if name in shared else ZeroMask(weight.detach() != 0)
        for module, attribute in uses:
            if not parametrize.is_parametrized(module):
                module._order_before_hold = list(module._parameters)  # type: ignore[assignment]
            parametrize.register_parametrization(module, attribute, part)
        _tie([_parametrization(module, attribute) for module, attribute in uses])
    return Held(list(dict.fromkeys([*zeros, *shared])), list(shared))


def bake(model: nn.Module) -> nn.Module:
    """Writes held structure into ordinary parameters, tied ones tied again; returns ``model``."""
    uses = [
        (module, attribute)
        for module in model.modules()
        if parametrize.is_parametrized(module)
        for attribute in list(module.parametrizations)  # type: ignore[union-attr, arg-type]
        if isinstance(module.parametrizations[attribute][0], ZeroMask | SharedWeights)  # type: ignore[index, union-attr]
    ]
    roots: dict[int, nn.Parameter] = {}
    for module, attribute in uses:
        original = _parametrization(module, attribute).original
        if id(original) not in roots:
            value = getattr(module, attribute).detach().clone(memory_format=torch.contiguous_format)
            roots[id(original)] = nn.Parameter(value, requires_grad=original.requires_grad)
    places = [(module, attribute, roots[id(_parametrization(module, attribute).original)]) for module, attribute in uses]
    for module, attribute, parameter in places:
        parametrize.remove_parametrizations(module, attribute, leave_parametrized=True)
        module._parameters[attribute] = parameter
    for module in {id(module): module for module, _, _ in places}.values():
        # The order of registration is that of the state_dict: weight before bias, as it was.
        order: list[str] = module.__dict__.pop("_order_before_hold")
        module._parameters = {name: module._parameters[name] for name in order}
    return model


class ZeroMask(nn.Module):
    """Weights where ``mask``, +0.0 elsewhere; no gradient reaches what is masked."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (its own shape) with zeros."""
        return torch.where(self.mask, weight, 0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the weight itself."""
        return weight


class SharedWeights(nn.Module):
    """``centroids[codes]``, +0.0 where the code is 0."""

    codes: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        values, codes = torch.unique(weight.reshape(-1), return_inverse=True)
        zero = (values == 0).nonzero()
        # Code 0 is the zero that stays; centroid i has code i + 1.
        after = codes + 1 if len(zero) == 0 else torch.where(codes < zero[0], codes + 1, codes)
        codes = after if len(zero) == 0 else torch.where(codes == zero[0], 0, after)
        narrow = torch.uint8 if len(values) < 256 else torch.int32
        self.register_buffer("codes", codes.reshape(weight.shape).to(narrow))

    def forward(self, centroids: Tensor) -> Tensor:
        """The weight in the shape of the codes, from its centroids (k,)."""
        weight: Tensor = _Gather.apply(centroids, self.codes)
        return weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The centroids (k,) of a weight whose equal values are the groups."""
        values = torch.unique(weight.reshape(-1))
        return values[values != 0]


class _Gather(torch.autograd.Function):
    """Centroids by code; backward sums in float64, in one order, whatever the number of threads."""

    @staticmethod
    def forward(ctx: Any, centroids: Tensor, codes: Tensor) -> Tensor:
        ctx.save_for_backward(codes)
        ctx.count = len(centroids)
        return torch.cat([centroids.new_zeros(1), centroids])[codes.int()]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (codes,) = ctx.saved_tensors
        flat = gradient.reshape(-1)
        exact = flat.float() if flat.device.type == "mps" else flat.double()
        summed = torch.bincount(codes.reshape(-1).int(), weights=exact, minlength=ctx.count + 1)
        return summed[1:].to(gradient.dtype), None


def masks(model: nn.Module) -> dict[str, Tensor]:
    """The live masks of a held model by tensor name; writing into one changes what is held."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        if parametrize.is_parametrized(module):
            for attribute, parts in module.parametrizations.items():  # type: ignore[union-attr, operator]
                if isinstance(parts[0], ZeroMask) and id(parts[0]) not in seen:
                    seen.add(id(parts[0]))
                    found[_join(prefix, attribute)] = parts[0].mask
    return found


def held_state(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Present values of parameters by name, whether structure is held in them or not."""
    return {
        name: getattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]).detach() for name in names
    }


def nonzero_fraction(mask: Tensor) -> float:
    """The fraction of a boolean mask that is set."""
    return float(mask.float().mean())


def check(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, zeros: Sequence[str], shared: Sequence[str]
) -> Coarsened:
    """Makes sure that structure only became coarser, from one state_dict to the next.

    Args:
        before: tensors that had structure.
        after: the same tensors now.
        zeros: names whose zeros must still be zeros (the bit pattern +0.0).
        shared: names whose equal weights must still be equal.

    Raises:
        InvariantError: names the tensor in which a zero came alive, a group split, or everything became zero.
    """
    new_zeros = merged = 0
    for name in zeros:
        was, now = is_zero(before[name]), is_zero(after[name])
        if bool((was & ~now).any()):
            raise InvariantError(f"{name}: {int((was & ~now).sum())} pruned weights are no longer zero")
        if bool(now.all()) and not bool(was.all()):
            raise InvariantError(f"{name}: every weight became zero")
        new_zeros += int(now.sum() - was.sum())
    for name in shared:
        merged += _merged_groups(name, before[name], after[name])
    return Coarsened(new_zeros, merged)


def is_zero(tensor: Tensor) -> Tensor:
    """Where a tensor holds the bit pattern +0.0, as bool of its shape."""
    return bits_of(tensor) == 0


def bits_of(tensor: Tensor) -> Tensor:
    """The tensor's bit patterns as integers of the same width and shape."""
    return tensor.detach().contiguous().view(INTEGER_OF_SIZE[tensor.element_size()])


def normalised(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """A copy of ``state`` in which -0.0 is +0.0 in the tensors ``names``.

    Raises:
        StructureError: one of them is missing, not floating-point, or holds NaN or infinity.
    """
    changed = dict(state)
    for name in names:
        if name not in state or not state[name].is_floating_point():
            raise StructureError(f"{name}: no floating-point tensor of this name to prune or share")
        _require_finite(name, state[name])
        changed[name] = torch.where(state[name] == 0, torch.zeros_like(state[name]), state[name])
    return changed


def padding_rows(model: nn.Module) -> dict[str, int]:
    """Embedding weights' padding rows by tensor name: never pruned, never shared."""
    return {
        _join(prefix, "weight"): module.padding_idx % module.num_embeddings
        for prefix, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None
    }


def density(state: Mapping[str, Tensor], names: Iterable[str]) -> float:
    """The fraction of the weights in the tensors ``names`` that are not +0.0; 1.0 where there are none."""
    names = list(names)
    total = sum(state[name].numel() for name in names)
    return 1 - sum(int(is_zero(state[name]).sum()) for name in names) / total if total else 1.0


def dense_bytes(model: nn.Module) -> int:
    """Bytes of every persistent state_dict tensor, tied ones once, at its own dtype, floats at most 4 bytes each."""
    seen = {}
    for tensor in model.state_dict(keep_vars=True).values():
        if isinstance(tensor, Tensor):
            width = min(tensor.element_size(), 4) if tensor.is_floating_point() else tensor.element_size()
            seen[id(tensor)] = tensor.numel() * width
    return sum(seen.values())


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict as contiguous copies on the CPU."""
    return {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor)
    }


def _matches(model: nn.Module, pattern: str) -> set[str]:
    tensors, default = _floating(model), set(prunable(model))
    modules = dict(model.named_modules())
    if f"{pattern}.weight" in tensors and pattern in modules:
        return {tensors[f"{pattern}.weight"]}
    found = {first for name, first in tensors.items() if fnmatchcase(name, pattern) and _reaches(name, pattern, default)}
    found |= {name for name in default if fnmatchcase(name.rpartition(".")[0], pattern)}
    if not found:
        near = difflib.get_close_matches(pattern, [*modules, *tensors], 3) or sorted(default)[:5]
        raise StructureError(f"pattern {pattern!r} matches no tensor of the model; the nearest are {', '.join(near)}")
    return found


def _reaches(name: str, pattern: str, default: set[str]) -> bool:
    """A wildcard reaches beyond the prunable weights only where it spells out the parameter's own name."""
    own = name.rpartition(".")[2]
    return name == pattern or name in default or (pattern.endswith(own) and own != "weight")


def _floating(model: nn.Module) -> dict[str, str]:
    """Every floating-point parameter's name -> the first name of the same (tied) parameter."""
    first: dict[int, str] = {}
    names = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        plain = name.replace("parametrizations.", "").removesuffix(".original")
        if parameter.is_floating_point():
            names[plain] = first.setdefault(id(parameter), plain)
    return names


def _partly_zero(model: nn.Module) -> list[str]:
    state = model.state_dict()
    zero = {name: is_zero(state[name]) for name in prunable(model)}
    return [name for name, where in zero.items() if bool(where.any()) and not bool(where.all())]


def _uses(model: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """Every (module, attribute) that is the parameter ``name``, this name's first."""
    prefix, _, attribute = name.rpartition(".")
    try:
        module = model.get_submodule(prefix)
        target = module._parameters[attribute]
    except (AttributeError, KeyError):
        raise StructureError(f"{name}: the model has no such parameter (or it is held already; bake first)") from None
    uses = [(module, attribute)]
    for other in model.modules():
        uses += [(other, key) for key, value in other._parameters.items() if value is target and other is not module]
    return uses


def _parametrization(module: nn.Module, attribute: str) -> Any:
    return module.parametrizations[attribute]  # type: ignore[index, union-attr]


def _tie(parts: Sequence[Any]) -> None:
    """One trained tensor behind all uses."""
    for part in parts[1:]:
        part._parameters["original"] = parts[0].original


def _root(module: nn.Module) -> Tensor:
    """The parameter behind a module's weight, whether it is held or not."""
    if parametrize.is_parametrized(module, "weight"):
        original: Tensor = _parametrization(module, "weight").original
        return original
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight


def _require_finite(name: str, tensor: Tensor) -> None:
    if not bool(torch.isfinite(tensor).all()):
        count = int((~torch.isfinite(tensor)).sum())
        raise StructureError(f"{name}: {count} values are NaN or infinite; pruning and sharing need finite weights")


def _merged_groups(name: str, before: Tensor, after: Tensor) -> int:
    """How many groups of equal weights joined others; each group must still be one value."""
    groups, index = torch.unique(bits_of(before).reshape(-1), return_inverse=True)
    now = bits_of(after).reshape(-1)
    leader = now.new_empty(len(groups))
    leader[index] = now
    if not torch.equal(leader[index], now):
        raise InvariantError(f"{name}: weights that shared a value no longer do")
    return len(groups) - len(torch.unique(leader))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
