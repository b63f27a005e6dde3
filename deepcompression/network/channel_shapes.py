"""What operations do to channels that give elements another shape, order or place, and leave their values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from deepcompression.network.channel_flow import Call, Flow, Ids, unknown

Shape = Sequence[int]


def permuted(flow: Flow, call: Call) -> None:
    """Axes change places."""
    given = call["self"]
    order = list(range(given.ndim))
    if call.name == "permute":
        order = [dim % given.ndim for dim in call["dims"]]
    elif given.ndim > 1:
        one, other = (0, 1) if call.name == "t" else (call["dim0"], call["dim1"])
        order[one], order[other] = order[other], order[one]
    axes = flow.axes(given)
    flow.put(call.outputs[0], [axes[dim] for dim in order], flow.is_parameter(given))


def reshaped(flow: Flow, call: Call) -> None:
    """Elements keep their order, and axes are merged or split."""
    given, output = call["self"], call.outputs[0]
    if "dtype" in call.arguments or not given.numel():
        return unknown(flow, call)
    axes: list[Ids | None] = [None] * output.ndim
    for olds, news in _segments(given.shape, output.shape):
        for new, axis in zip(news, _regrouped(flow, given, olds, [output.shape[one] for one in news]), strict=True):
            axes[new] = axis
    for dim, axis in enumerate(flow.axes(given)):
        if given.shape[dim] == 1:
            flow.found.stop(axis, "a slice of one channel is reshaped")
    flow.put(output, axes, flow.is_parameter(given))
    return None


def _segments(old: Shape, new: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """Runs of axes of two shapes that hold the same elements, as short as can be; axes of one place are left out."""
    olds, news = ([dim for dim, size in enumerate(shape) if size != 1] for shape in (old, new))
    while olds or news:
        left, right = [olds.pop(0)], [news.pop(0)]
        while (gap := math.prod(old[one] for one in left) - math.prod(new[one] for one in right)) != 0:
            (left if gap < 0 else right).append((olds if gap < 0 else news).pop(0))
        yield left, right


def _regrouped(flow: Flow, given: Tensor, olds: Sequence[int], sizes: Shape) -> list[Ids | None]:
    """What one run of axes becomes as axes of other sizes: each place keeps its number, if one axis can say it."""
    axes = flow.axes(given)
    known = [dim for dim in olds if axes[dim] is not None]
    if len(known) != 1:
        for dim in known:
            flow.found.stop(axes[dim], "a reshape merges it with other channels")
        return [None] * len(sizes)
    [dim] = known
    ids: Any = axes[dim]
    wide = ids.reshape([-1 if one == dim else 1 for one in olds])
    grid = np.broadcast_to(wide, [given.shape[one] for one in olds]).reshape(sizes)
    for place in range(len(sizes)):
        line = grid[tuple(slice(None) if one == place else slice(0, 1) for one in range(len(sizes)))]
        if (grid == line).all():
            return [line.reshape(-1) if one == place else None for one in range(len(sizes))]
    if len(olds) == 1 and flow.heads:
        return _parted(flow, ids, sizes)
    if len(olds) == 1:  # as many of each part stay: channels are shuffled, or are heads
        return [*[None] * (len(sizes) - 1), alike(flow, ids, math.prod(sizes[:-1]))[0]]
    flow.found.stop(ids, "a reshape splits its channels")
    return [None] * len(sizes)


def _parted(flow: Flow, ids: Ids, sizes: Shape) -> list[Ids | None]:
    """An axis as heads, of several together where there are more parts than these: each is whole, or gone."""
    grid = ids.reshape(-1, sizes[-2], sizes[-1])  # (parts, heads, places of a head)
    first = grid[:1, :, :1]
    flow.found.tie(np.broadcast_to(first, grid.shape).reshape(-1), ids, "the places of a head belong together")
    flow.found.heads.append(first.reshape(-1))
    return [*[None] * (len(sizes) - 2), first.reshape(-1), None]


def expanded(flow: Flow, call: Call) -> None:
    """An axis of one place becomes wide; the others stay."""
    given, output = call["self"], call.outputs[0]
    axes = list(flow.axes(given))
    for dim in range(-given.ndim, 0):
        if given.shape[dim] != output.shape[dim]:
            flow.found.stop(axes[dim], "expand repeats one channel")
            axes[dim] = None
    flow.put(output, [*[None] * (output.ndim - given.ndim), *axes], flow.is_parameter(given))


def repeated(flow: Flow, call: Call) -> None:
    """Axes come several times, one behind the other."""
    times = call["repeats"]
    axes = [*[None] * (len(times) - call["self"].ndim), *flow.axes(call["self"])]
    flow.put(call.outputs[0], [None if one is None else np.tile(one, n) for one, n in zip(axes, times, strict=True)])


def sliced(flow: Flow, call: Call) -> None:
    """Some places of an axis are taken: by numbers in the code, where they are channels."""
    given, output = call["self"], call.outputs[0]
    axes, dim = list(flow.axes(given)), call["dim"] % given.ndim
    if given.shape[dim] != output.shape[dim]:
        flow.found.stop(axes[dim], "a slice takes some of its channels by number")
        axes[dim] = None
    flow.put(output, axes, flow.is_parameter(given))


def selected(flow: Flow, call: Call) -> None:
    """One place of an axis is taken, or each by itself."""
    axes = flow.axes(call["self"])
    dim = call["dim"] % len(axes)
    flow.found.stop(axes[dim], f"{call.name} takes its channels by number")
    for output in call.outputs:
        flow.put(output, [axis for one, axis in enumerate(axes) if one != dim])


def split(flow: Flow, call: Call) -> None:
    """An axis is cut into parts: where they are equal, as by ``chunk``, of each as much must stay."""
    axes = list(flow.axes(call["self"]))
    dim = call["dim"] % len(axes)
    cut = axes[dim]
    if len({one.shape[dim] for one in call.outputs}) > 1:
        flow.found.stop(cut, "split cuts its channels at fixed places")
        cut = None
    parts = [None] * len(call.outputs) if cut is None else alike(flow, cut, len(call.outputs))
    for output, part in zip(call.outputs, parts, strict=True):
        flow.put(output, [part if one == dim else axis for one, axis in enumerate(axes)])


def alike(flow: Flow, axis: Ids, count: int) -> Ids:
    """An axis in parts, a row each, whose places are the same channels from part to part.

    Args:
        flow: notes what belongs together.
        axis: (k,) places.
        count: parts.
    """
    rows = axis.reshape(count, -1)
    flow.found.tie(np.broadcast_to(rows[:1], rows.shape).reshape(-1), axis, "parts of its channels belong together")
    return rows


def concatenated(flow: Flow, call: Call) -> None:
    """One axis of several tensors in a row; the others meet."""
    parts = [one for one in call["tensors"] if one.shape != (0,)]
    dim = call["dim"] % parts[0].ndim
    axes = [
        flow.join([flow.axes(one)[place] for one in parts], [1] * len(parts), "cat") if place != dim else None
        for place in range(parts[0].ndim)
    ]
    ends = [flow.axes(one)[dim] for one in parts]
    if any(one is not None for one in ends):
        axes[dim] = np.concatenate(
            [np.full(one.shape[dim], -1) if end is None else end for one, end in zip(parts, ends, strict=True)]
        )
    flow.put(call.outputs[0], axes)


def stacked(flow: Flow, call: Call) -> None:
    """Several tensors, that meet, on a new axis."""
    parts, output = call["tensors"], call.outputs[0]
    axes = [
        flow.join([flow.axes(one)[place] for one in parts], [1] * len(parts), "stack") for place in range(parts[0].ndim)
    ]
    axes.insert(call["dim"] % output.ndim, None)
    flow.put(output, axes)


def padded(flow: Flow, call: Call) -> None:
    """Constants around some axes: places that stay."""
    axes, pad = list(flow.axes(call["self"])), call["pad"]
    for back in range(len(pad) // 2):
        axis, before, after = axes[-1 - back], pad[2 * back], pad[2 * back + 1]
        if axis is not None and min(before, after) < 0:
            flow.found.stop(axis, "a negative padding takes some of its channels by number")
            axes[-1 - back] = None
        elif axis is not None:
            axes[-1 - back] = np.pad(axis, (before, after), constant_values=-1)
    flow.put(call.outputs[0], axes)
