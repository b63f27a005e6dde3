"""Groups of channels that belong together throughout a model, and what changes where some of them are removed."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from deepcompression.errors import told
from deepcompression.network.chains import WHOLE
from deepcompression.network.channel_flow import Axes, Flow, Found, Ids
from deepcompression.network.channel_proof import Run, proved, undrawn
from deepcompression.network.channel_rules import rule
from deepcompression.network.names import is_layer
from deepcompression.network.parametrized import join
from deepcompression.network.resizing import Group, Member, Role, fixed, names, tensors_of
from deepcompression.network.trace import resting

_UNREAD = "no layer takes its channels in"
_OUTPUT = "it makes the model's output"


def channel_groups(model: nn.Module, run: Run, *, heads: bool = False) -> tuple[list[Group], dict[str, str]]:
    """The channels of ``model`` that can be removed, by groups, and of each other layer why its channels cannot.

    Without a channel, outputs are those that the model gives while all weights that take this channel in are zero
    there: groups never lead through what mixes channels (LayerNorm, softmax over them, a sum over them). Layers used
    several times, tied weights, additions, concatenations, groups and flattening are followed place by place. What no
    rule is known for is left alone. All is tried in the end: copies without a channel run, and outputs are compared.

    Args:
        model: not changed: a copy of it runs, in eval mode, without gradients.
        run: calls its argument, the copy, on a few samples as the model is called later. Only what this run comes by
            is seen: a branch not taken is not known of. Where it leaves layers out, it is tried in training mode too.
        heads: groups of attention heads instead, each a channel: all that makes one, and what takes it in.

    Returns:
        Groups in the order of the model's tensors; reasons by the name of a layer that is pruned by default, or of
        another tensor that was seen to make channels (``WHOLE`` where the model cannot be followed, or is the layer).
    """
    followed = _followed(model, run, heads)
    if isinstance(followed, str):
        return [], {WHOLE: followed}
    groups, left = _Reading(model, *followed).result(heads)
    with _as_later(model):
        good, failed = proved(model, run, groups)
    sound = {_place(model, one) for group in good for one in group.makers}
    reasons = {_place(model, one): why for group, why in failed for one in group.makers}
    return good, left | {place: why for place, why in reasons.items() if place not in sound}


def _place(model: nn.Module, member: Member) -> str:
    """What a maker of channels is called: its layer, or the tensor where it is in none."""
    module = model.get_submodule(member.module)
    return (member.module or WHOLE) if is_layer(module) else member.tensor


def _followed(model: nn.Module, run: Run, heads: bool) -> tuple[list[tuple[str, Axes]], Found] | str:
    """The numbers of all tensors' axes, by first names, and what a run of a copy told of them; or why there is none."""
    why = _unfit(model)
    if why is not None:
        return why
    with undrawn():
        try:
            double = copy.deepcopy(model)
        except Exception as error:  # a model's classes are anybody's code
            return f"it cannot be copied: {told(error)}"
        numbers, flow = _begun(double, heads)
        why = _ran(double, run, flow)
    _keep_fixed(model, numbers, flow.found)
    return why or (numbers, flow.found)


def _begun(double: nn.Module, heads: bool) -> tuple[list[tuple[str, Axes]], Flow]:
    """The numbers of a copy's tensors, and what follows them."""
    tensors = dict(tensors_of(double))
    numbers = list(_numbered({own[0]: tensors[own[0]] for own in names(double)}))
    return numbers, Flow([(tensors[name], axes) for name, axes in numbers], _regroupable(double), rule, heads)


def _ran(double: nn.Module, run: Run, flow: Flow) -> str | None:
    """Follows a copy as it is called later, and in training where layers were left out; why it failed."""
    with _as_later(double):
        why = _run(double, run, flow)
        if why is None and _unused(double, flow):  # heads that are there in training only
            double.train()
            _run(double, run, flow)
    return why


def _keep_fixed(model: nn.Module, numbers: Sequence[tuple[str, Axes]], found: Found) -> None:
    """Says of tensors that cannot have another shape that they must stay."""
    overlapping = _overlapping(model)
    for name, axes in numbers:
        why = fixed(model, name) or overlapping.get(name)
        for axis in axes if why else ():
            found.stop(axis, why or "")


def _unfit(model: nn.Module) -> str | None:
    """Why a model is not even tried."""
    tensors = [tensor for _, tensor in tensors_of(model)]
    if any(is_lazy(tensor) for tensor in tensors):
        return "it has parameters without a size yet: run it once before"
    if any(tensor.is_meta for tensor in tensors):
        return "it has tensors without values: they are on the meta device"
    scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
    return "it has TorchScript modules" if scripted else None


def _run(double: nn.Module, run: Run, flow: Flow) -> str | None:
    """Follows one run of a copy; why it failed."""
    hook = double.register_forward_hook(lambda model, given, result: flow.returned(result))
    with flow:
        try:
            result = run(double)
        except Exception as error:  # a model's forward is anybody's code
            return f"a copy of it does not run: {told(error)}"
        finally:
            hook.remove()
        flow.kept_alive()
    del result
    return None


def _unused(double: nn.Module, flow: Flow) -> bool:
    """Whether there is a layer's weight that took part in nothing."""
    found = flow.found
    part = {int(one) for axis in (*found.makes, *found.reads, *found.depthwise) for one in axis[:1]}
    weights: list[Any] = [module.weight for module in double.modules() if is_layer(module)]
    starts = [{int(axis[0]) for axis in flow.axes(weight) if axis is not None} for weight in weights]
    return any(own and part.isdisjoint(own) for own in starts)


@contextlib.contextmanager
def _as_later(model: nn.Module) -> Iterator[None]:
    """In eval mode, without gradients, and without the one operation for a whole attention layer, which hides all."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with resting(model), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _numbered(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Axes]]:
    start = 0
    for name, tensor in tensors.items():
        axes: list[Ids | None] = []
        for size in tensor.shape:
            axes.append(np.arange(start, start + size) if size > 1 else None)
            start += size
        yield name, tuple(axes)


def _regroupable(model: nn.Module) -> Callable[[Tensor, int], bool]:
    """Whether all modules that hold a weight are convolutions with this number of groups."""
    owners: dict[int, list[nn.Module]] = {}
    for name, tensor in tensors_of(model):
        owners.setdefault(id(tensor), []).append(model.get_submodule(name.rpartition(".")[0]))

    def tell(weight: Tensor, groups: int) -> bool:
        own = owners.get(id(weight), [])
        return bool(own) and all(isinstance(one, _ConvNd) and one.groups == groups for one in own)

    return tell


def _overlapping(model: nn.Module) -> dict[str, str]:
    """Of tensors that cannot be changed alone the reason: another object lies on their memory."""
    tensors, first, found = dict(tensors_of(model)), dict[int, str](), {}
    for name in (own[0] for own in names(model)):
        tensor = tensors[name]
        if tensor.layout == torch.strided and tensor.numel() and not tensor.is_meta:
            other = first.setdefault(tensor.untyped_storage().data_ptr(), name)
            if other != name:
                found[name] = found[other] = f"{name} and {other} are two tensors on one memory"
    return found


class _Reading:
    """From numbers and ties to groups and reasons."""

    def __init__(self, model: nn.Module, numbers: Sequence[tuple[str, Axes]], found: Found) -> None:
        self.model, self.numbers, self.found = model, numbers, found
        ids = [axis for _, axes in numbers for axis in axes if axis is not None]
        self.size = max((int(axis[-1]) + 1 for axis in ids), default=0)
        self.classes = _components(self.size, found.ties)  # of each number, its channel
        self.roles: dict[Role, Any] = {
            "out": self._marked(found.makes),
            "in": self._marked(found.reads),
            "depthwise": self._marked(found.depthwise),
        }
        self.why: dict[int, str] = {}
        for axis, reason in found.stops:
            for channel in np.unique(self.classes[axis]).tolist():
                self.why.setdefault(channel, reason)
        returned = self.classes[np.concatenate([np.zeros(0, np.int64), *found.outputs])].tolist()
        self.why |= dict.fromkeys(self.why.keys() & set(returned), _OUTPUT)
        read = np.unique(self.classes[self.roles["in"]])
        self.free = np.isin(self.classes, read) & ~np.isin(self.classes, list(self.why))

    def _marked(self, axes: Sequence[Ids]) -> Any:
        marks = np.zeros(self.size, dtype=bool)
        for axis in axes:
            marks[axis] = True
        return marks

    def _axes(self) -> Iterator[tuple[str, int, Ids]]:
        for name, axes in self.numbers:
            for place, axis in enumerate(axes):
                if axis is not None:
                    yield name, place, axis

    def result(self, heads: bool) -> tuple[list[Group], dict[str, str]]:
        """Groups in order, of heads alone or of all channels, and reasons by module."""
        makers = [axis for _, _, axis in self._axes() if self._role(axis, "out")]
        ties = [(np.full(int(self.free[axis].sum()), axis[0]), axis[self.free[axis]]) for axis in makers]
        together = _components(self.size, [*self.found.ties, *ties])
        members: dict[int, list[tuple[str, int, Ids]]] = {}
        for name, place, axis in self._axes():
            for one in dict.fromkeys(together[axis[self.free[axis]]].tolist()):
                members.setdefault(one, []).append((name, place, axis))
        if heads:
            meant = set(together[np.concatenate([np.zeros(0, np.int64), *self.found.heads])].tolist())
            members = {one: own for one, own in members.items() if one in meant}
        groups = [self._group(one, together, own) for one, own in members.items()]
        groups = [group for group in groups if group.channels > 1 and group.makers]
        return groups, self._left(groups, heads)

    def _role(self, axis: Ids, role: Role) -> bool:
        return bool(self.roles[role][axis].any())

    def _group(self, one: int, together: Ids, own: Sequence[tuple[str, int, Ids]]) -> Group:
        order: dict[int, int] = {}
        members = []
        for name, place, axis in own:
            mine = self.free[axis] & (together[axis] == one)
            channels = np.where(mine, self.classes[axis], -1).tolist()
            index = tuple(-1 if channel < 0 else order.setdefault(channel, len(order)) for channel in channels)
            given: list[Role] = ["out", "in", "depthwise"]
            roles: list[Role] = [role for role in given if self._role(axis, role)] or ["along"]
            members += [Member(name, place, role, index) for role in roles]
        return Group(len(order), tuple(members))

    def _left(self, groups: Sequence[Group], heads: bool) -> dict[str, str]:
        """Of each layer whose channels are in no group, the reason."""
        grouped = {member.tensor for group in groups for member in group.makers}
        made: dict[str, list[Ids]] = {}
        for name, _, axis in self._axes():
            if self._role(axis, "out") or self._role(axis, "depthwise"):
                made.setdefault(name, []).append(axis)
        modules = dict(self.model.named_modules(remove_duplicate=False))
        layers = {join(name, "weight"): name for name, one in modules.items() if is_layer(one)}
        left = {}
        for own in names(self.model):
            for name in own:
                layer = layers.pop(name, None) if own[0] in made else None
                if own[0] in made and own[0] not in grouped:
                    left[name if layer is None else layer or WHOLE] = self._reason(made[own[0]], heads)
        return left | {layer or WHOLE: self._unmade(layer) for layer in layers.values()}

    def _unmade(self, layer: str) -> str:
        """Why a layer was not seen to make channels."""
        weight = join(layer, "weight")
        shape = next((tensor.shape for name, tensor in tensors_of(self.model) if name == weight), None)
        if shape is None:
            return "its weight is computed from other tensors"
        return "it has one channel only" if 1 in shape[:1] else "the run did not use it as a layer"

    def _reason(self, made: Sequence[Ids], heads: bool) -> str:
        channels = [channel for axis in made for channel in self.classes[axis].tolist()]
        if any(self.free[axis].any() for axis in made):
            return "it makes no heads" if heads else "its channels can only be removed all together"
        return next((self.why[channel] for channel in channels if channel in self.why), _UNREAD)


def _components(size: int, ties: Sequence[tuple[Ids, Ids]]) -> Ids:
    """Of each number the connected component that ties put it in."""
    rows = np.concatenate([np.zeros(0, np.int64), *(one for one, _ in ties)])
    columns = np.concatenate([np.zeros(0, np.int64), *(other for _, other in ties)])
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(size, size))
    labels: Ids = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels
