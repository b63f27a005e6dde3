"""Groups of channels, and what changes in a model where some of them are removed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from deepcompression.errors import StructureError
from deepcompression.network.names import is_conv1d
from deepcompression.network.parametrized import join

Role = Literal["out", "in", "depthwise", "along"]

_SIZED = (_NormBase, _ConvNd, nn.Linear, nn.PReLU, nn.Embedding, nn.ParameterList, nn.ParameterDict)


@dataclass(frozen=True)
class Member:
    """One axis of one tensor that a group's channels lie on.

    ``role``: ``out`` for a weight that makes the channels, ``in`` for one that takes them in, ``depthwise`` for one
    that does both a channel at a time, ``along`` for a value a channel (bias, BatchNorm, scale); ``index``: of each
    place on the axis its channel in the group, -1 where it has none. Behind a flattening a channel has many places.
    """

    tensor: str
    axis: int
    role: Role
    index: tuple[int, ...]

    @property
    def module(self) -> str:
        """The module that the tensor is in."""
        return self.tensor.rpartition(".")[0]


@dataclass(frozen=True)
class Group:
    """Channels, numbered from 0, and the axes that they lie on: one is removed from all of them or from none."""

    channels: int
    members: tuple[Member, ...]

    @property
    def makers(self) -> tuple[Member, ...]:
        """The weights that make the channels: what a criterion scores."""
        return tuple(one for one in self.members if one.role in ("out", "depthwise"))


def resize(model: nn.Module, kept: Sequence[tuple[Group, Sequence[int]]]) -> dict[str, Any]:
    """The record of channels removed: plain values, from which the same is done to another model of the same kind.

    Args:
        model: that the groups are of; not changed.
        kept: groups and the channels of each that stay; groups that are not in it stay whole.

    Returns:
        ``kind``: "resize"; ``tensors``: tensor name -> list of [axis, places that stay, ascending], under every name
        that a tensor has; ``modules``: module name -> attribute -> its new value.

    Raises:
        StructureError: no channel of a group would stay, or one is named twice or does not exist.
    """
    alive: dict[str, dict[int, Any]] = {}
    for group, channels in kept:
        _check(group, channels)
        for member in group.members:
            index = np.array(member.index)
            stays = np.isin(index, [-1, *channels])
            axes = alive.setdefault(member.tensor, {})
            axes[member.axis] = axes.get(member.axis, True) & stays
    tensors = {
        name: [[axis, np.flatnonzero(stays).tolist()] for axis, stays in sorted(alive[own[0]].items())]
        for own in names(model)
        if own[0] in alive
        for name in own
    }
    return {"kind": "resize", "tensors": tensors, "modules": dict(_attributes(model, tensors))}


def _check(group: Group, channels: Sequence[int]) -> None:
    where = group.makers[0].module if group.makers else "a group"
    if not channels:
        raise StructureError(f"{where}: none of its {group.channels} channels would stay; keep one at least")
    if len(set(channels)) < len(channels) or not set(channels) <= set(range(group.channels)):
        raise StructureError(
            f"{where}: channels that stay must be different numbers from 0 to {group.channels - 1}, not {channels}"
        )


def names(model: nn.Module) -> list[list[str]]:
    """The names of every parameter and buffer, in the model's order; of a tied one all."""
    named: dict[int, list[str]] = {}
    for name, tensor in tensors_of(model):
        named.setdefault(id(tensor), []).append(name)
    return list(named.values())


def tensors_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer under each of its names."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _attributes(model: nn.Module, tensors: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, int]]]:
    """The whole numbers that change with a module's tensors, by the module's name."""
    for prefix in dict.fromkeys(name.rpartition(".")[0] for name in tensors):
        module = model.get_submodule(prefix)
        own = {**module._parameters, **module._buffers}
        shapes = {name: list(tensor.shape) for name, tensor in own.items() if tensor is not None}
        for name, shape in shapes.items():
            for axis, places in tensors.get(join(prefix, name), ()):
                shape[axis] = len(places)
        changed = {key: value for key, value in _sizes(module, shapes).items() if getattr(module, key) != value}
        if changed:
            yield prefix, changed


def _sizes(module: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The sizes that a module holds as attributes, as the shapes of its tensors make them."""
    if isinstance(module, _NormBase):
        return {"num_features": next(iter(shape[0] for shape in shapes.values() if shape))}
    shape = shapes.get("weight", ())
    if isinstance(module, _ConvNd):
        first, second = (shape[1], shape[0]) if module.transposed else (shape[0], shape[1])
        alone = module.groups > 1 and module.in_channels == module.groups
        groups = shape[0] * module.groups // module.weight.shape[0] if alone else module.groups
        made, taken = (first * groups, second) if module.transposed else (first, second * groups)
        return {"out_channels": made, "in_channels": taken, "groups": groups}
    if isinstance(module, nn.Linear):
        return {"out_features": shape[0], "in_features": shape[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape[0]}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": shape[1]}
    return {"nx": shape[0], "nf": shape[1]} if is_conv1d(module) else {}


def fixed(model: nn.Module, name: str) -> str | None:
    """Why a tensor cannot get another shape, by the kind of its module; None: it can."""
    module = model.get_submodule(name.rpartition(".")[0])
    if "parametrizations." in name:
        return f"{name} is what a weight is computed from"
    if isinstance(module, _SIZED):
        return None
    kinds = [kind for kind in type(module).__mro__ if kind not in (nn.Module, object)]
    if any(kind.__module__.startswith("torch.") for kind in kinds):
        return f"the sizes of {type(module).__name__} ({name}) are not changed"
    return None
