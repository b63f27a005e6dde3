"""``{"kind": "resize", "tensors": {name: shape}, "modules": {name: {attribute: size}}}``: tensors of fewer elements.

What stays of each axis is no matter of the record: the state_dict has the tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from deepcompression.network.edits.record import Record, check_keys, mapping, misfit, module_of, own_tensors, whole
from deepcompression.network.names import is_conv1d, join

Sizes = Mapping[str, Any]
# The attributes that may change, by the module's class; all are whole numbers, normalized_shape several.
ATTRIBUTES: tuple[tuple[tuple[type[nn.Module], ...], tuple[str, ...]], ...] = (
    ((_ConvNd,), ("in_channels", "out_channels", "groups")),
    ((nn.Linear,), ("in_features", "out_features")),
    ((_NormBase,), ("num_features",)),
    ((nn.LayerNorm, nn.RMSNorm), ("normalized_shape",)),
    ((nn.GroupNorm,), ("num_channels", "num_groups")),
    ((nn.PReLU,), ("num_parameters",)),
    ((nn.Embedding, nn.EmbeddingBag), ("num_embeddings", "embedding_dim")),
)


def record_of(model: nn.Module, cut: Record) -> dict[str, Any]:
    """The record for a file, of one that says which places stay of each axis (``network.resizing.resize``).

    Args:
        model: as it is before.
        cut: ``tensors``: name -> list of [axis, places that stay]; ``modules``.
    """
    known = dict(_tensors(model))
    shapes = {}
    for name, axes in cut["tensors"].items():
        kept = {axis: len(places) for axis, places in axes}
        shapes[name] = [kept.get(axis, size) for axis, size in enumerate(known[name].shape)]
    return {"kind": "resize", "tensors": shapes, "modules": {name: dict(own) for name, own in cut["modules"].items()}}


def cut_state(state: Mapping[str, Tensor], cut: Record) -> dict[str, Tensor]:
    """``state`` with the places that stay of each axis, by the same record; tied tensors stay one."""
    made: dict[int, Tensor] = {}
    for name, axes in cut["tensors"].items():
        if name in state and id(state[name]) not in made:
            part = state[name]
            for axis, places in axes:
                part = part.index_select(axis, torch.tensor(places, device=part.device))
            made[id(state[name])] = part
    return {name: made.get(id(tensor), tensor) for name, tensor in state.items()}


def apply(model: nn.Module, record: Record) -> None:
    """Give tensors and attributes their new sizes; of each axis the first places stay, until a state_dict is loaded.

    Tied parameters stay tied. Nothing is larger than before, and one tensor at least is smaller.

    Raises:
        EditError: no such tensor, module or attribute, an impossible size, or sizes that do not fit each other.
    """
    check_keys(record, "tensors", "modules")
    shapes = _shapes(model, record)
    attributes = _attributes(model, record)
    if all(shapes.get(id(tensor), tensor.shape) == tensor.shape for _, tensor in _tensors(model)):
        raise misfit(record, "no tensor gets another shape: edits are made once, to a new model")
    for prefix, module in model.named_modules():
        own = {name: shapes.get(id(tensor), tuple(tensor.shape)) for name, tensor in own_tensors(module).items()}
        changed = any(id(tensor) in shapes for tensor in own_tensors(module).values())
        if changed or id(module) in attributes:
            _check_fit(record, prefix, module, own, attributes.get(id(module), {}))
    _cut(model, shapes)
    for module in model.modules():
        for attribute, size in attributes.get(id(module), {}).items():
            setattr(module, attribute, size)


def _shapes(model: nn.Module, record: Record) -> dict[int, tuple[int, ...]]:
    """New shapes by the tensor's id."""
    known, found = dict(_tensors(model)), dict[int, tuple[int, ...]]()
    for name, given in mapping(record, "tensors").items():
        tensor = known.get(name)
        if tensor is None:
            raise misfit(record, f"the model has no tensor {name!r}")
        if "parametrizations" in name.split("."):
            raise misfit(record, f"{name} is what a tensor is computed from; fold that first")
        sizes = given if isinstance(given, list | tuple) else [given]
        shape, before = tuple(whole(record, f"a size of {name}", size) for size in sizes), tuple(tensor.shape)
        if len(shape) != len(before) or any(new > old for new, old in zip(shape, before, strict=True)):
            raise misfit(record, f"{name} has the shape {before}, of which {given!r} is no part"[:300])
        if found.setdefault(id(tensor), shape) != shape:
            raise misfit(record, f"{name} is tied to a tensor that gets another shape")
    return found


def _attributes(model: nn.Module, record: Record) -> dict[int, dict[str, Any]]:
    """New attributes by the module's id."""
    found: dict[int, dict[str, Any]] = {}
    for name, given in mapping(record, "modules").items():
        module = module_of(model, record, name)
        if not isinstance(given, Mapping):
            raise misfit(record, f"modules: {name} has attributes by name, not {given!r}"[:200])
        known = _may_change(module)
        for attribute, value in given.items():
            if attribute not in known:
                words = f"of a {type(module).__name__} {', '.join(known) or 'no attribute'} may"
                raise misfit(record, f"{name}: {attribute!r} may not be changed; {words}"[:300])
            several = isinstance(value, list) and attribute == "normalized_shape"
            sizes = [whole(record, f"{name}: {attribute}", one) for one in (value if several else [value])]
            size: Any = tuple(sizes) if attribute == "normalized_shape" else sizes[0]
            if found.setdefault(id(module), {}).setdefault(attribute, size) != size:
                raise misfit(record, f"{name}: {attribute} gets two values, under two names of the module")
    return found


def _may_change(module: nn.Module) -> tuple[str, ...]:
    if is_conv1d(module):
        return ("nx", "nf")
    return next((names for kinds, names in ATTRIBUTES if isinstance(module, kinds)), ())


def _check_fit(record: Record, prefix: str, module: nn.Module, shapes: Sizes, attributes: Sizes) -> None:
    """Raise EditError where a module's tensors would not have the shapes that its attributes make."""
    known = _may_change(module)
    if not known:
        kinds = [kind for kind in type(module).__mro__ if kind not in (nn.Module, object)]
        containers = (nn.ParameterList, nn.ParameterDict)
        if any(kind.__module__.startswith("torch.") for kind in kinds) and not isinstance(module, containers):
            raise misfit(record, f"the sizes of {type(module).__name__} ({prefix}) are not changed")
        return
    sizes = {name: attributes.get(name, getattr(module, name)) for name in known}
    expected = _expected(module, sizes)
    for name, shape in shapes.items():
        if name in expected and tuple(shape) != expected[name]:
            told = ", ".join(f"{key} = {value}" for key, value in sizes.items())
            raise misfit(record, f"{join(prefix, name)} would have the shape {tuple(shape)}, which does not fit {told}")


def _expected(module: Any, sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """The shapes of a module's tensors for these attributes; an impossible one where they do not divide each other."""
    if isinstance(module, _ConvNd):
        first, second = sizes["out_channels"], sizes["in_channels"]
        groups, made = sizes["groups"], first
        if module.transposed:
            first, second = second, first
        second = second // groups if second % groups == first % groups == 0 else -1
        return {"weight": (first, second, *module.kernel_size), "bias": (made,)}
    if isinstance(module, nn.Linear):
        return {"weight": (sizes["out_features"], sizes["in_features"]), "bias": (sizes["out_features"],)}
    if is_conv1d(module):
        return {"weight": (sizes["nx"], sizes["nf"]), "bias": (sizes["nf"],)}
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return {"weight": (sizes["num_embeddings"], sizes["embedding_dim"])}
    if isinstance(module, nn.GroupNorm) and sizes["num_channels"] % sizes["num_groups"]:
        return dict.fromkeys(("weight", "bias"), (-1,))
    size = next(iter(sizes.values()))
    shape = size if isinstance(size, tuple) else (size,)
    return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), shape)


def _cut(model: nn.Module, shapes: Mapping[int, Sequence[int]]) -> None:
    """Put the smaller tensors in the places of the larger ones, one under all of its names."""
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) in shapes:
                    if id(tensor) not in made:
                        made[id(tensor)] = _part(tensor, shapes[id(tensor)])
                    tensors[name] = made[id(tensor)]  # type: ignore[assignment]


def _part(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    part = tensor.detach()[tuple(slice(size) for size in shape)].clone()
    return nn.Parameter(part, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)
