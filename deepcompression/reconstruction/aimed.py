"""A task whose layers share out the bytes of a file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from deepcompression._atomic import written
from deepcompression.allocation.bit_costs import coded_bytes
from deepcompression.errors import StructureError
from deepcompression.reconstruction.budget import budget_of
from deepcompression.reconstruction.importance import Importance
from deepcompression.reconstruction.reconstruct import Task

HEAD = 24  # bytes of a tensor in the file beside its name and its values


def aimed(task: Task, state: Mapping[str, Tensor], found: Mapping[str, Importance], limit: float) -> Task:
    """The task with a price of a coded bit at which the file takes so many bytes.

    Args:
        task: what becomes of tensors.
        state: of all tensors as they will lie in the file, but for those that are reconstructed.
        found: what changes of these cost, by name.
        limit: bytes of the file at most.

    Raises:
        StructureError: all others take more alone.
    """
    room = left_for(state, found, limit)
    wanted = {name: task.wanted[name] for name in found}
    budget = budget_of({name: state[name].float() for name in wanted}, wanted, found, room)
    return replace(task, importance=found, budget=budget)


def left_for(state: Mapping[str, Tensor], names: Collection[str], limit: float) -> float:
    """Bytes that a file of so many has for some tensors.

    Args:
        state: of all tensors as they will lie in the file, but for those.
        names: of those.
        limit: bytes of the file at most.

    Raises:
        StructureError: all others take more alone.
    """
    others = {id(one): one for name, one in state.items() if name not in names}
    beside = sum(coded_bytes(one, "adaptive", whole=True) for one in others.values() if one.is_floating_point())
    beside += sum(one.numel() * one.element_size() for one in others.values() if not one.is_floating_point())
    beside += sum(len(name.encode()) + HEAD for name in state)
    if limit <= beside:
        raise StructureError(f"{limit:,.0f} bytes are out of reach: what is not reconstructed takes {beside:,} alone")
    return limit - beside


def remembered(path: Path) -> dict[str, Importance] | None:
    """What changes cost, as ``remember`` left it in a file; None where there is none.

    Args:
        path: of the file.
    """
    if not path.exists():
        return None
    return {name: Importance(*pair) for name, pair in torch.load(path, weights_only=True).items()}


def remember(path: Path, found: Mapping[str, Importance]) -> None:
    """Leaves what changes cost in a file.

    Args:
        path: of the file.
        found: by tensor.
    """
    with written(path) as file:
        torch.save({name: (one.outputs, one.inputs) for name, one in found.items()}, file)
