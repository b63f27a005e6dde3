"""What a stage did to each tensor of a model: done, or left alone and why. Nothing is left out without a word."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network import names as selection
from deepcompression.network.names import EMBEDDINGS, is_layer, memory
from deepcompression.network.parametrized import computed
from deepcompression.network.state import stored_bytes

T = TypeVar("T")
Use = tuple[nn.Module, str]  # a module and its own name of a tensor
NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
NAMED = "only when named"
MOST = 0.5  # of the bytes: who leaves more of them alone is warned
TOLD = 3  # tensors that a sentence names, the largest first


@dataclass(frozen=True)
class Covered:
    """A tensor (tied ones once), or all vectors that were left alone for one reason.

    ``tensor``: its name, or such as ``12 vectors``; ``shape``: empty for several; ``bytes``: dense, as
    ``structure.dense_bytes`` counts; ``matrix``: it has two axes or more; ``reason``: why it was left alone, empty
    where it was not.
    """

    tensor: str
    shape: tuple[int, ...]
    elements: int
    bytes: int
    matrix: bool
    done: bool
    reason: str


def coverage(model: nn.Module, done: Collection[str], reasons: Mapping[str, str] | None = None) -> list[Covered]:
    """Every parameter of ``model`` and every matrix among its buffers, done or left alone, in the model's order.

    Args:
        model: with ordinary parameters.
        done: names of the tensors that a stage worked on, each under any of its names.
        reasons: name -> why the stage left a tensor alone; default: why it is not selected unless it is named.

    Returns:
        The tensors; vectors that were left alone are summed up, a row for each reason, behind them.
    """
    tensors = {name: one for name, one in _tensors(model).items() if isinstance(one, nn.Parameter) or _matrix(one)}
    worked = {memory(tensors[name]) for name in done if name in tensors}
    own = {memory(tensors[name]): reason for name, reason in (reasons or {}).items() if name in tensors}
    general = unselected(model)
    once = {memory(tensor): name for name, tensor in reversed(tensors.items())}  # the first of its names
    rows = []
    for name, tensor in tensors.items():
        place = memory(tensor)
        if once[place] == name:
            reason = "" if place in worked else own.get(place) or general.get(name) or "named by no pattern"
            rows.append(_row(name, tensor, reason))
    vectors = [row for row in rows if not row.matrix and not row.done]
    return [row for row in rows if row not in vectors] + _summed(vectors)


def unselected(model: nn.Module) -> dict[str, str]:
    """Why each tensor that is not pruned and shared by default is not, in a few words, by the first of its names."""
    uses, prunable = _uses(model), set(selection.prunable(model))
    sources = {source: one for one in computed(model).values() for source in one.sources}
    found: dict[object, tuple[str, str]] = {}
    for name, tensor in _tensors(model).items():
        place = memory(tensor)
        if name not in prunable and place not in found:
            made = f"{sources[name].by} computes a weight from it" if name in sources else ""
            found[place] = (name, _reason(tensor, uses.get(place, []), made))
    return dict(found.values())


def selected(model: nn.Module, table: Mapping[str, T]) -> dict[str, T]:
    """As ``selection.resolve``, of at least one tensor. A default of None is of a caller who takes no names.

    Raises:
        StructureError: as ``resolve``; or the table means no tensor of the model, whose largest are told.
    """
    found = selection.resolve(model, table)
    if not found:
        raise StructureError(_nothing(coverage(model, []), table["default"]))
    return found


def sentence(rows: Sequence[Covered]) -> str:
    """Which matrices were left alone, how much of all weights they are, and why; empty where there is none."""
    left = [row for row in rows if row.matrix and not row.done and row.elements]
    return _sentence(left, rows, "1 matrix" if len(left) == 1 else f"{len(left)} matrices") if left else ""


def warning(rows: Sequence[Covered]) -> str:
    """What to warn of where more than half of the bytes were left alone; else empty."""
    left = [row for row in rows if not row.done]
    if sum(row.bytes for row in left) <= MOST * sum(row.bytes for row in rows):
        return ""
    return f"most bytes of the model stay as they were: {sentence(rows) or _sentence(left, rows, 'vectors')}"


def _sentence(left: Sequence[Covered], rows: Sequence[Covered], many: str) -> str:
    count, total = (sum(row.elements for row in of) for of in (left, rows))
    return f"left alone {many}, {count:,} of {total:,} weights ({count / max(total, 1):.0%}): {told(left)}"


def told(rows: Sequence[Covered]) -> str:
    """The largest tensors with their elements, those of one reason together, and the number of the others."""
    groups: dict[str, list[str]] = defaultdict(list)
    largest = sorted(rows, key=lambda row: -row.bytes)[:TOLD]
    for row in largest:
        groups[row.reason].append(f"{row.tensor} {row.elements:,}")
    named = [f"{', '.join(names)} ({reason})" for reason, names in groups.items()]
    more = len(rows) - len(largest)
    return "; ".join([*named, *([f"and {more} more"] if more else [])])


def _nothing(rows: Sequence[Covered], value: object) -> str:
    why = "default selects nothing: no Linear or Conv layer of the model has a floating-point weight of its own"
    left = sorted((row for row in rows if row.matrix), key=lambda row: -row.bytes)
    if not left:
        return f"{why}, nor is there any other matrix"
    named = [row.tensor for row in left if row.reason.endswith(NAMED)]
    hint = f"; name what is meant, such as {{{named[0]}: {value}}}" if named and value is not None else ""
    return f"{why}{hint}. There are {told(left)}"


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: one for name, one in model.state_dict(keep_vars=True).items() if isinstance(one, Tensor)}


def _uses(model: nn.Module) -> dict[object, list[Use]]:
    """Every (module, attribute) that is a tensor, by the tensor's id."""
    found: dict[object, list[Use]] = defaultdict(list)
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            found[memory(parameter)].append((module, attribute))
    return found


def _matrix(tensor: Tensor) -> bool:
    """Whether a buffer may be a weight: running statistics are vectors, masks are bool."""
    return tensor.ndim >= 2 and tensor.dtype != torch.bool


def _row(name: str, tensor: Tensor, reason: str) -> Covered:
    return Covered(
        name, tuple(tensor.shape), tensor.numel(), stored_bytes(tensor), tensor.ndim >= 2, not reason, reason
    )


def _summed(rows: Sequence[Covered]) -> list[Covered]:
    """Vectors that were left alone, one row for each reason."""
    groups: dict[str, list[Covered]] = defaultdict(list)
    for row in rows:
        groups[row.reason].append(row)
    return [
        group[0]
        if len(group) == 1
        else Covered(
            f"{len(group)} vectors",
            (),
            sum(row.elements for row in group),
            sum(row.bytes for row in group),
            False,
            False,
            reason,
        )
        for reason, group in groups.items()
    ]


def _reason(tensor: Tensor, uses: Sequence[Use], made: str) -> str:
    kind = str(tensor.dtype).removeprefix("torch.")
    if not isinstance(tensor, nn.Parameter):
        return f"{kind} buffer, no parameter"
    if not tensor.is_floating_point():
        return f"{kind}: only floating-point weights are selected"
    if any(isinstance(module, torch.jit.ScriptModule) for module, _ in uses):
        return "in a TorchScript module, which takes no masks or codebooks"
    if made:
        return f"{made}: {NAMED}"
    if tensor.ndim < 2:
        return f"bias, normalisation or other vector: {NAMED}"
    return f"{_what(uses)}: {NAMED}"


def _what(uses: Sequence[Use]) -> str:
    """What a matrix is that belongs to no Linear or Conv layer as its weight."""
    modules = [module for module, _ in uses]
    if any(isinstance(module, EMBEDDINGS) for module in modules):
        return "embedding" if len(uses) == 1 else "embedding, tied"
    for kinds, words in ((RECURRENT, "recurrent weight"), (nn.MultiheadAttention, "attention pack")):
        if any(isinstance(module, kinds) for module in modules):
            return words
    if any(isinstance(module, NORMS) for module in modules):
        return "normalisation"
    if not modules or is_layer(modules[0]):
        return "no weight of a Linear or Conv"
    return f"{type(modules[0]).__name__} is no Linear or Conv"
