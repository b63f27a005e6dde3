"""Layer by layer, from inputs that are compressed already: weights pruned and rounded, and made up for."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression import _numba
from deepcompression.allocation.bit_costs import coded_bytes
from deepcompression.errors import StructureError
from deepcompression.network import names as selection
from deepcompression.network.biases import Followers, followed, place_of
from deepcompression.network.trace import resting
from deepcompression.reconstruction.budget import Budget
from deepcompression.reconstruction.calls import Call, Calls
from deepcompression.reconstruction.importance import Importance
from deepcompression.reconstruction.layer import Wanted, reconstructed
from deepcompression.reconstruction.moments import Moments, add, blocks_of, of_table
from deepcompression.reconstruction.written import Written, as_fine, matrix_of, read, written
from deepcompression.structure.constraints import Structure

TRIES = 5  # prices of the last layer of a budget
FULL = 0.99  # of the bytes that are left for it
PER_LOG = 0.075  # bytes of a weight, of so many times dearer bits, by the logarithm: 1 / 16 ln 2 at fine steps

Forward = Callable[[nn.Module, Any], object]
Feed = Callable[[], Iterable[Any]]


@dataclass(frozen=True)
class Layer:
    """What was done to a layer.

    ``how``: kmeans, linear, or free values; ``values``: how many there are. ``error`` of the outputs on the samples, as
    a part of their energy; ``price`` of a coded bit, 0 where none was set. ``constant``: the tensor that took up what
    outputs were off on average, or "", and ``fixed``, why none did; ``note``: what else is to be known.
    """

    name: str
    how: str
    weights: int
    nonzero: int
    values: int
    error: float
    price: float
    constant: str
    fixed: str = ""
    note: str = ""


@dataclass(frozen=True)
class Done:
    """A layer's account and the tensors that changed, by name."""

    layer: Layer
    state: dict[str, Tensor]


@dataclass(frozen=True)
class Reconstruction:
    """Accounts of layers in the order of the forward, and why others were left alone, by tensor name."""

    layers: list[Layer]
    left: dict[str, str]


@dataclass
class Order:
    """In which order a forward calls weights: groups with one input; how often each; what takes their outputs."""

    groups: list[list[str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, Call] = field(default_factory=dict)
    followers: Followers = field(default_factory=Followers)


class _Enough(BaseException):  # which no step takes for an error of its own
    """All calls of interest have been seen."""


@dataclass(frozen=True)
class Task:
    """What is reconstructed, and on what: ``wanted`` of tensors, ``feed`` gives the batches, ``forward`` runs a model;
    ``structure``, what is true of tensors by now; ``importance`` of outputs, by tensor;
    ``targets``, the model whose layers' outputs are aimed at, None: the one that is reconstructed, as it was.
    ``budget``: the bytes of all, for which the price of a bit is found; ``together``: groups of layers with one input
    whose inputs are looked at in one pass; ``independent``: what goes into layers is what did before any changed.
    """

    wanted: Mapping[str, Wanted]
    feed: Feed
    forward: Forward
    structure: Structure = field(default_factory=dict)
    importance: Mapping[str, Importance] = field(default_factory=dict)
    targets: nn.Module | None = None
    budget: Budget | None = None
    together: int = 1
    independent: bool = False


def reconstruct(
    model: nn.Module,
    task: Task,
    *,
    earlier: Callable[[str], Done | None] = lambda name: None,
    done: Callable[[Done], object] = lambda one: None,
) -> Reconstruction:
    """Changes the weights that are wanted, and the constants of their outputs, in place.

    Layers come in the order in which a forward calls them. What goes into each of them comes from the layers before it
    as they are by then; what should come out is what comes out in the model as it was (Frantar et al. 2023). One
    layer's moments are in memory at a time, or those of several with one input.

    Args:
        model: with ordinary parameters, on its device; afterwards in its own modes.
        task: what becomes of which weights, and the samples.
        earlier: what was done to a layer before this was interrupted.
        done: is told of each layer.

    Raises:
        StructureError: there are no samples, or a value that goes into a layer is not finite.
    """
    dense = copy.deepcopy(task.targets or model)
    if task.budget is not None:
        _numba.wanted(1, 1, 1)  # each tensor is coded to be measured: too small to import it for, but they are many
    with resting(model), resting(dense), torch.no_grad():
        order = called(dense, list(task.wanted), task)
        layers, spent = [], dict[str, tuple[float, float]]()
        for group in _together(order.groups, task.together):
            known = {name: one for name in group if (one := earlier(name)) is not None}
            moments = {} if len(known) == len(group) else _moments(model, dense, group, order, task)
            for name in group:
                one = known.get(name) or _within(model, dense, name, moments[name], order, task, spent)
                _put(model, one.state)
                spent[name] = one.layer.price, _bytes(one.state[name], task)
                if name not in known:
                    done(one)
                layers.append(one.layer)
    left = {
        name: "the forward multiplies nothing by it as a linear map or convolution, and looks nothing up in it"
        for name in task.wanted
        if name not in order.counts
    }
    return Reconstruction(layers, left)


def _together(groups: Sequence[list[str]], count: int) -> list[list[str]]:
    parts = [groups[start : start + count] for start in range(0, len(groups), count)]
    return [[name for group in part for name in group] for part in parts]


def _priced(task: Task, name: str, spent: Mapping[str, tuple[float, float]]) -> Task:
    """With the price of a bit at which what is still to come keeps to the budget."""
    if task.budget is None or name not in task.budget.curves:
        return task
    known = {one: pair for one, pair in spent.items() if one in task.budget.curves}
    wanted = replace(task.wanted[name], price=task.budget.price(known))
    return replace(task, wanted={**task.wanted, name: wanted})


def _bytes(weight: Tensor, task: Task) -> float:
    return float(coded_bytes(weight, "adaptive", whole=True)) if task.budget else 0.0


def called(model: nn.Module, wanted: Sequence[str], task: Task) -> Order:
    """In which order the forward of the first batch calls weights.

    Args:
        model: that runs.
        wanted: names of weights.
        task: whose samples and forward it is.

    Raises:
        StructureError: there are no samples.
    """
    order, seen, alive = Order(), [], []
    parameters = selection.parameters(model)

    def see(call: Call) -> None:
        if call.name not in order.counts:
            seen.append((call.name, (id(call.value), call.value._version)))
            order.shapes[call.name] = call
        alive.append(call.value)  # else another tensor might get the same id
        order.counts[call.name] = order.counts.get(call.name, 0) + 1

    layers = [name.rpartition(".")[0] for name in wanted if _is_layer(model, name)]
    batch = next(iter(task.feed()), None)
    if batch is None:
        raise StructureError("reconstruct: there are no samples of the training split")
    with followed(model, layers, order.followers), Calls({name: parameters[name] for name in wanted}, see):
        task.forward(model, batch)
    order.groups = [[name for name, _ in some] for _, some in groupby(seen, key=lambda one: one[1])]
    return order


def _is_layer(model: nn.Module, name: str) -> bool:
    prefix, _, own = name.rpartition(".")
    return own == "weight" and selection.is_layer(model.get_submodule(prefix))


def _moments(model: nn.Module, dense: nn.Module, group: Sequence[str], order: Order, task: Task) -> dict[str, Moments]:
    """Of what goes into layers with one input; those of unlike geometry have each their own."""
    found: dict[str, Moments] = {}
    for batch in task.feed():
        if task.independent:
            for call in _inputs(dense, group, order, task, batch):
                found[call.name] = add(found.get(call.name), call)
            continue
        before = list(_inputs(dense, group, order, task, batch))
        for call, other in zip(_inputs(model, group, order, task, batch), before, strict=True):
            found[call.name] = add(found.get(call.name), call, other.value)
    return found


def _inputs(model: nn.Module, group: Sequence[str], order: Order, task: Task, batch: Any) -> list[Call]:
    """The calls of a group's weights in the forward of a batch, which goes no further."""
    parameters, calls = selection.parameters(model), []
    total = sum(order.counts[name] for name in group)

    def see(call: Call) -> None:
        calls.append(call)
        if len(calls) == total:
            raise _Enough

    try:
        with Calls({name: parameters[name] for name in group}, see):
            task.forward(model, batch)
    except _Enough:
        pass
    return calls


def _within(
    model: nn.Module,
    dense: nn.Module,
    name: str,
    moments: Moments,
    order: Order,
    task: Task,
    spent: Mapping[str, tuple[float, float]],
) -> Done:
    """One layer; the last one of a budget again, at other prices, until all together keep to it, and nearly fill it."""
    own = _priced(task, name, spent)
    found = _done(model, dense, name, moments, order, own)
    room = task.budget.room(name, spent) if task.budget else None
    if room is None or room <= 0:
        return found
    best, size = found, _bytes(found.state[name], task)
    for _ in range(TRIES):
        if FULL * room <= size <= room:
            return found
        price = found.layer.price * math.exp((size - (1 + FULL) / 2 * room) / (PER_LOG * found.layer.weights))
        if task.budget and task.budget.bounded(price, spent) != price:
            return best
        own = replace(own, wanted={**own.wanted, name: replace(own.wanted[name], price=price)})
        found = _done(model, dense, name, moments, order, own)
        size = _bytes(found.state[name], task)
        if size <= room or _bytes(best.state[name], task) > room:
            best = found
    return best


def _done(model: nn.Module, dense: nn.Module, name: str, moments: Moments, order: Order, task: Task) -> Done:
    """One layer's new tensors."""
    weight = selection.parameters(model)[name].detach()
    wanted, words = task.wanted[name], task.structure.get(name, ())
    if not bool(torch.isfinite(moments.second).all()):
        raise StructureError(f"reconstruct: what goes into {name} is not finite (NaN, or infinite)")
    constant, why = _constant(model, name, order, task)
    form = read(weight, wanted, words, order.shapes[name].axis)
    aim, worth = matrix_of(selection.parameters(dense)[name], form), task.importance.get(name)
    if order.shapes[name].table and worth:
        moments = of_table(worth.inputs[0])
    made = reconstructed(
        aim,
        moments,
        wanted,
        worth.outputs if worth else None,
        coded=form.coded,
        alive=matrix_of(weight, form) != 0,
        centred=not why,
    )
    new = written(weight, made, form, wanted)
    state = {name: new.weight}
    if not why:
        tensor = {**dict(model.named_parameters()), **dict(model.named_buffers())}[constant]
        sign = -1 if constant.endswith("running_mean") else 1
        state[constant] = as_fine(tensor.double() + sign * made.shift.to(tensor.device), tensor)
    return Done(
        _account(name, new, made.error, wanted.price or 0.0, "" if why else constant, why, _note(moments)), state
    )


def _constant(model: nn.Module, name: str, order: Order, task: Task) -> tuple[str, str]:
    """What takes up what a layer's outputs are off on average; or why nothing does."""
    if not _is_layer(model, name):
        return "", "it is no weight of a layer of its own"
    prefix = name.rpartition(".")[0]
    outputs = order.shapes[name].shape[0]
    constant, why = place_of(model, prefix, order.followers.norm_of(prefix), outputs)
    kept = task.structure.get(constant)
    return constant, why or (f"{constant} must stay {kept[0]}" if kept else "")


def _account(name: str, new: Written, error: float, price: float, constant: str, fixed: str, note: str) -> Layer:
    weight = new.weight
    counts = weight.numel(), int((weight != 0).sum()), len(torch.unique(weight))
    return Layer(name, new.how, *counts, error, price, constant, fixed, note)


def _note(moments: Moments) -> str:
    if moments.blocks == 1:
        return ""
    width = blocks_of(moments.inputs, 1)[1]
    return f"{moments.inputs:,} inputs: moments within {moments.blocks} blocks of {width:,}"


def _put(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    own = {**selection.parameters(model), **dict(model.named_buffers())}
    for name, tensor in state.items():
        own[name].copy_(tensor)
