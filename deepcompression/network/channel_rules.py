"""What each operation does to channels: arithmetic and layers, and the table of all."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from deepcompression.network import channel_shapes as shapes
from deepcompression.network.channel_flow import Axes, Call, Flow, Ids, unknown

Rule = Callable[[Flow, Call], None]


def _pointwise(flow: Flow, call: Call) -> None:
    """An element of the result is made of the elements at its place."""
    shape = np.broadcast_shapes(*(tensor.shape for tensor in call.inputs))
    if any(tuple(output.shape) != shape for output in call.outputs):
        return unknown(flow, call)
    axes = [_met(flow, call.inputs, place, call.name) for place in range(-len(shape), 0)]
    for output in call.outputs:
        flow.put(output, axes)
    return None


def _met(flow: Flow, tensors: Sequence[Tensor], place: int, why: str) -> Ids | None:
    """What the axis at a place from the end becomes where tensors are broadcast."""
    there = [tensor for tensor in tensors if tensor.ndim >= -place]
    return flow.join([flow.axes(one)[place] for one in there], [one.shape[place] for one in there], why)


def _alike(flow: Flow, call: Call) -> None:
    """The result has the first tensor's axes."""
    [given, *_] = call.inputs
    for output in call.outputs:
        flow.put(output, flow.axes(given), call.name in COPIES and flow.is_parameter(given))


def _dims(call: Call, rank: int) -> set[int]:
    """The axes that a call names; all where it names none."""
    given = next((call.arguments[name] for name in ("dim", "dims") if name in call.arguments), None)
    given = [given] if isinstance(given, int) else given
    return {dim % rank for dim in given} if given else set(range(rank))


def _reduced(flow: Flow, call: Call) -> None:
    """Some axes become one value, as in a sum."""
    axes = flow.axes(call["self"])
    dims = _dims(call, len(axes)) if axes else set()
    for dim in dims:
        flow.found.stop(axes[dim], f"{call.told} mixes its channels")
    kept = [None if dim in dims else axis for dim, axis in enumerate(axes)]
    left = [axis for dim, axis in enumerate(axes) if dim not in dims]
    for output in call.outputs:
        flow.put(output, kept if output.ndim == len(axes) else left)


def _along(flow: Flow, call: Call) -> None:
    """The places of some axes are mixed or change their order, as in a softmax."""
    axes = flow.axes(call["self"])
    dims = _dims(call, len(axes)) if axes else set()
    for dim in dims:
        flow.found.stop(axes[dim], f"{call.told} mixes its channels")
    for output in call.outputs:
        flow.put(output, [None if dim in dims else axis for dim, axis in enumerate(axes)])
        flow.mixed[output] = axes


def _spatial(flow: Flow, call: Call) -> None:
    """The last axes are pooled, padded or resampled, each channel by itself."""
    places = int(re.findall(r"(\d)d", call.name)[0])
    axes = flow.axes(call.inputs[0])
    for axis in axes[-places:]:
        flow.found.stop(axis, f"{call.told} mixes its channels")
    for output in call.outputs:
        flow.put(output, [*axes[:-places], *[None] * places])


def _batch_norm(flow: Flow, call: Call) -> None:
    """Each place of the second axis has its own statistics and factors; where these are fixed, others stay apart."""
    given, *vectors = call.inputs
    axes = flow.axes(given)
    fixed = call.name in ("_native_batch_norm_legit_no_training", "_batch_norm_no_update")
    if not fixed and call.arguments.get("training", True):
        for dim, axis in enumerate(axes):
            if dim != 1:
                flow.found.stop(axis, "a BatchNorm takes its statistics over it")
        axes = tuple(axis if dim == 1 else None for dim, axis in enumerate(axes))
    found = flow.join(
        [axes[1], *(flow.axes(one)[0] for one in vectors)], [given.shape[1]] * (len(vectors) + 1), "BatchNorm"
    )
    flow.put(call.outputs[0], [axes[0], found, *axes[2:]])


def _product(flow: Flow, call: Call) -> None:
    """A matrix product: the weight's one axis takes channels in, its other makes the next."""
    added, one, other = _factors(call)
    first, second = flow.axes(one), flow.axes(other)
    within = -1 if other.ndim == 1 else -2
    weight = flow.is_parameter(one), flow.is_parameter(other)
    if weight[0] == weight[1]:
        for axis in (first[-1], second[within]):
            flow.found.stop(axis, f"{call.name} of two tensors, neither or both of which are parameters")
    else:
        flow.join([first[-1], second[within]], [one.shape[-1]] * 2, "a layer's input")
        (read, made) = (first[-1], first[-2]) if weight[0] else (second[within], second[-1])
        _note(flow.found.reads, read)
        _note(flow.found.makes, made if other.ndim > 1 or weight[0] else None)
    batch = [flow.join(pair, [1, 1], call.name) for pair in zip(first[:-2], second[:-2], strict=False)]
    axes = [*batch, first[-2], *([second[-1]] if other.ndim > 1 else [])]
    _biased(flow, call, axes, added)


def _factors(call: Call) -> tuple[Tensor | None, Tensor, Tensor]:
    """What is added to a matrix product, and its two factors."""
    one, other = call.inputs[-2:]
    return (call.inputs[0] if len(call.inputs) == 3 else None), one, other


def _biased(flow: Flow, call: Call, axes: list[Ids | None], added: Tensor | None) -> None:
    """Puts a product's result, once what is added to it has met it."""
    shape = call.outputs[0].shape
    for place in range(-len(axes), 0) if added is not None else ():
        if added is not None and added.ndim >= -place:
            sides = [axes[place], flow.axes(added)[place]]
            axes[place] = flow.join(sides, [shape[place], added.shape[place]], "a layer's bias")
    flow.put(call.outputs[0], axes)


def _note(where: list[Ids], axis: Ids | None) -> None:
    if axis is not None:
        where.append(axis[axis >= 0])


def _convolution(flow: Flow, call: Call) -> None:
    """The weight takes the second axis in and makes the next one, by groups; or a channel at a time."""
    given, weight, bias = call["input"], call["weight"], call["bias"]
    if not flow.is_parameter(weight):
        return unknown(flow, call)
    axes, own = flow.axes(given), flow.axes(weight)
    for dim, axis in enumerate(axes):
        if dim != 1:
            flow.found.stop(axis, "a convolution takes it for samples or places")
    groups, size = call["groups"], (given.shape[1], call.outputs[0].shape[1])
    spread = _depthwise if groups > 1 and size[0] == groups else _grouped
    made = spread(flow, weight, own, axes[1], call)
    if bias is not None:
        made = flow.join([made, flow.axes(bias)[0]], [size[1]] * 2, "a layer's bias")
    flow.put(call.outputs[0], [None, made, *[None] * (given.ndim - 2)])
    return None


def _grouped(flow: Flow, weight: Tensor, own: Axes, given: Ids | None, call: Call) -> Ids | None:
    """Channels at the same place of every group are one: as many must stay in each."""
    groups, why = call["groups"], "a layer's input"
    made, read = (own[1], own[0]) if call["transposed"] else (own[0], own[1])
    _note(flow.found.reads, read)
    _note(flow.found.makes, made)
    if call["transposed"]:
        made = _tiled(made, groups, call.outputs[0].shape[1])
    else:
        read = _tiled(read, groups, call["input"].shape[1])
    flow.join([given, read], [call["input"].shape[1]] * 2, why)
    for axis in (made, read) if groups > 1 else ():
        if axis is not None:
            shapes.alike(flow, axis, groups)
    return made


def _tiled(axis: Ids | None, groups: int, size: int) -> Ids | None:
    """An axis that stands for every group; -1 where each has one place only, which nothing can be taken from."""
    if axis is None:
        return None if groups == 1 else np.full(size, -1)
    return np.tile(axis, groups)


def _depthwise(flow: Flow, weight: Tensor, own: Axes, given: Ids | None, call: Call) -> Ids | None:
    """Every channel is a group by itself, and goes with all that is made of it."""
    groups, made = call["groups"], own[0]
    times = call.outputs[0].shape[1] // groups
    if not flow.resizable(weight, groups) or (call["transposed"] and times > 1):
        for axis in (given, made):
            flow.found.stop(axis, f"the number of groups, {groups}, cannot be changed")
    _note(flow.found.depthwise, made)
    if made is not None and not (call["transposed"] and times > 1):
        across = None if given is None else np.repeat(given, times)
        flow.join([across, made], [len(made)] * 2, "a layer's input")
    return np.tile(made, times) if call["transposed"] and made is not None else made


def _embedding(flow: Flow, call: Call) -> None:
    rows, columns = flow.axes(call["weight"])
    flow.found.stop(rows, "its rows are looked up by number")
    flow.put(call.outputs[0], [*[None] * call["indices"].ndim, columns])


def _attention(flow: Flow, call: Call) -> None:
    """Heads stay apart, as all that comes before the last two axes; of these only what the values are is followed."""
    three = [call["query"], call["key"], call["value"]]
    axes = [flow.axes(one) for one in three]
    for axis in (axes[0][-1], axes[1][-1], *(one[-2] for one in axes)):
        flow.found.stop(axis, f"{call.told} mixes its channels")
    for added in call.inputs[3:]:
        for axis in flow.axes(added):
            flow.found.stop(axis, f"{call.told} adds it")
    before = [
        flow.join([one[place] for one in axes], [one.shape[place] for one in three], "attention")
        for place in range(three[0].ndim - 2)
    ]
    flow.put(call.outputs[0], [*before, None, axes[2][-1]])


COPIES = ("clone", "detach", "alias", "_to_copy", "lift_fresh")


def _gated(flow: Flow, call: Call) -> None:
    """One half of an axis scales the other."""
    axes = list(flow.axes(call["self"]))
    dim = call["dim"] % len(axes)
    cut = axes[dim]
    axes[dim] = None if cut is None else shapes.alike(flow, cut, 2)[0]
    flow.put(call.outputs[0], axes)


_RULES: dict[Rule, tuple[str, ...]] = {
    _alike: (*COPIES, "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "bernoulli_"),
    _pointwise: (
        *("hardswish", "hardswish_", "_prelu_kernel", "log_sigmoid_forward", "floor_divide", "copy_", "fill_", "zero_"),
    ),
    _reduced: (
        *("sum", "mean", "amax", "amin", "max", "min", "prod", "any", "all", "var", "std", "var_mean", "argmax"),
        *("argmin", "norm", "linalg_vector_norm", "logsumexp", "count_nonzero"),
    ),
    _along: ("_softmax", "_log_softmax", "_safe_softmax", "softmax", "cumsum", "cumprod", "flip", "roll", "sort"),
    _batch_norm: (
        *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
        *("cudnn_batch_norm", "miopen_batch_norm", "_batch_norm_no_update", "_batch_norm_with_update"),
    ),
    _product: ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv"),
    _convolution: ("convolution", "_convolution"),
    _embedding: ("embedding",),
    _gated: ("glu",),
    _attention: tuple(
        f"_scaled_dot_product_{how}attention{where}"
        for how, where in (("flash_", "_for_cpu"), ("flash_", ""), ("efficient_", ""), ("cudnn_", ""))
    ),
    shapes.permuted: ("permute", "transpose", "t"),
    shapes.reshaped: ("view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze"),
    shapes.expanded: ("expand",),
    shapes.repeated: ("repeat",),
    shapes.sliced: ("slice",),
    shapes.selected: ("select", "unbind"),
    shapes.split: ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"),
    shapes.concatenated: ("cat",),
    shapes.stacked: ("stack",),
    shapes.padded: ("constant_pad_nd",),
}
RULES: dict[str, Rule] = {name: rule for rule, names in _RULES.items() for name in names}
_PLACES = re.compile(
    r"(_?adaptive_(avg|max)_pool|(avg|max)_pool|_?upsample_\w+?|(reflection|replication)_pad)\dd(_with_indices|_aa)?"
)


def rule(name: str, pointwise: bool) -> Rule:
    """What an operation does to channels; ``pointwise``: whether torch says that it goes element by element."""
    if pointwise and name not in COPIES:
        return _pointwise
    return RULES.get(name) or (_spatial if _PLACES.fullmatch(name) else unknown)
