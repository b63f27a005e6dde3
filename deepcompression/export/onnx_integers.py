"""Where a graph is on integers, so that runtimes multiply integers: QuantizeLinear and DequantizeLinear.

Runtimes put an integer kernel in the place of a convolution whose input and weight are dequantized, whose bias is
int32, and whose output is quantized at once, ReLU aside. A model knows the grids of its layers' inputs. What lies
between (a sum and both its inputs, what is averaged) needs grids too: of 8 bits, by the ranges that samples have there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from deepcompression.export import onnx_rounded as rounded
from deepcompression.export.onnx_ends import End
from deepcompression.export.onnx_graph import Graph, is_mark, static_mark
from deepcompression.export.onnx_kernels import put_dynamic, put_static
from deepcompression.export.onnx_layers import Layer, after, layers_of, normed, scope
from deepcompression.export.onnx_sites import Grid, grid_of

PASSING = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity")  # keep what is on a grid
CUT = 0.25  # of a grid's range
Ranges = Mapping[str, tuple[float, float]]
Observe = Callable[[Sequence[str]], Ranges]


class Stands(NamedTuple):
    """A rounded value's name in the new graph, and the value's as the model has it."""

    rounded: str
    value: str


@dataclass
class Placed:
    """What was done: layers on integers, why others are not, those behind which a range was looked up; and what stands
    for the value that a layer gives; grids of inputs and outputs that are integers, by name."""

    integers: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    observed: list[str] = field(default_factory=list)
    stands: dict[str, Stands] = field(default_factory=dict)
    ends: dict[str, End] = field(default_factory=dict)


def marks_as_they_are(model: Any) -> Any:
    """The model with each mark rounding where it is, and all else float: what PyTorch computes."""
    graph = Graph(model.clone())
    rounded.expand(graph)
    return graph.finish()


def place(model: Any, observe: Observe, *, ends: bool = False) -> tuple[Any, Placed]:
    """The model on integers, in place.

    Args:
        model: of ``onnx_ir``, with marks.
        observe: gives the least and the greatest of values, by name.
        ends: whether it takes and gives integers too.

    Raises:
        ExportError: an input is not rounded, of a model that is to take integers.
    """
    graph, placed = Graph(model), Placed()
    if ends:
        _round_outputs(graph, observe)
    _merge(graph)
    _fold_pads(graph)
    _mark_inputs(graph)
    layers, placed.left = layers_of(graph)
    placed.observed = _share_sums(graph, layers, observe)
    _hoist(graph)
    static = [one for one in layers if one.grid.static]
    _mark_outputs(graph, static, observe, placed)
    for layer in static:
        _put(graph, layer, placed)
    for layer in layers:
        if not layer.grid.static:
            put_dynamic(graph, layer)
            placed.integers.append(layer.name)
    _keep_float(graph, placed)
    rounded.absorb(graph)
    rounded.expand(graph)
    made = graph.finish()
    if ends:
        placed.ends = rounded.on_integers(graph)
        made = graph.finish()
    return made, placed


def _round_outputs(graph: Graph, observe: Observe) -> None:
    """Outputs that are floats are on grids of the ranges that they have on samples."""
    waiting = [one for one in graph.graph.outputs if one.dtype == ir.DataType.FLOAT and not _rounded(one)]
    ranges = observe([str(one.name) for one in waiting]) if waiting else {}
    for value in waiting:
        name = str(value.name)
        marked = graph.mark(value, _grid(*ranges[name]), name)
        place = [one is value for one in graph.graph.outputs].index(True)
        graph.graph.outputs[place] = graph.renamed(marked, value)


def _rounded(value: Any) -> bool:
    return static_mark(value.producer())


def _keep_float(graph: Graph, placed: Placed) -> None:
    """Where onnxruntime sees DequantizeLinear before a layer it takes a float weight for one to be rounded to int8."""
    for node in graph.nodes("Conv", "Gemm", "MatMul"):
        mark = node.inputs[0].producer()
        if node.name in placed.left and is_mark(mark) and grid_of(mark).static:
            plain = graph.mark(mark.inputs[0], grid_of(mark), str(node.name))
            plain.producer().meta[rounded.PLAIN] = True
            node.replace_input_with(0, plain)
            if not mark.outputs[0].uses() and not mark.outputs[0].is_graph_output():
                graph.drop(mark)


def _merge(graph: Graph) -> None:
    """One mark where a value has several that say the same."""
    first: dict[Any, Any] = {}
    for node in graph.marks():
        key = id(node.inputs[0]), grid_of(node)
        if key in first:
            graph.replace(node.outputs[0], first[key])
            graph.drop(node)
        else:
            first[key] = node.outputs[0]


def _fold_pads(graph: Graph) -> None:
    """Zeros around what a convolution alone takes are its own: beside a Pad runtimes convert to floats and back."""
    for node in graph.nodes("Pad"):
        taker = graph.only_user(node.outputs[0])
        mark = taker if static_mark(taker, 16) else None
        if mark is not None:
            taker = graph.only_user(mark.outputs[0])
        sizes = graph.constant(node.inputs[1])
        if taker is None or taker.op_type != "Conv" or taker.domain or not _pads(graph, node) or len(node.inputs) > 3:
            continue
        if sizes is None or sizes.min() < 0 or _own_padding(taker):
            continue
        begin, end = np.split(sizes, 2)
        own = list(taker.attributes["pads"].value) if "pads" in taker.attributes else [0] * 2 * (len(begin) - 2)
        if not (begin[:2].any() or end[:2].any()):
            found = [int(one) for one in np.add(own, [*begin[2:], *end[2:]])]
            taker.attributes["pads"] = ir.AttrInt64s("pads", found)
            graph.replace(node.outputs[0], node.inputs[0])
            graph.drop(node)
            if mark is not None:  # its value is another one now
                mark.outputs[0].name += ":inside"


def _own_padding(node: Any) -> bool:
    """Whether a convolution computes its padding itself."""
    return "auto_pad" in node.attributes and node.attributes["auto_pad"].value not in ("NOTSET", b"NOTSET")


def _share_sums(graph: Graph, layers: Sequence[Layer], observe: Observe) -> list[str]:
    """A sum takes what layers on integers beside it take: the value on their grid, or on one that holds more of it, of
    which this is the list.
    """
    wider = []
    sums: dict[Any, tuple[str, list[Any]]] = {}
    for layer in layers:
        mark = layer.node.inputs[0].producer()
        if static_mark(mark) and grid_of(mark).bits == 8 and not mark.inputs[0].is_graph_input():
            takers = [one for one in graph.users(mark.inputs[0]) if _is_sum(graph, one)]
            if takers:
                sums[mark] = layer.name, takers
    ranges = observe([mark.inputs[0].name for mark in sums]) if sums else {}
    for mark, (name, takers) in sums.items():
        value = mark.inputs[0]
        if _fits(grid_of(mark), *ranges[value.name]):
            graph.replace(value, mark.outputs[0], takers)
        else:
            graph.replace(value, graph.mark(value, _grid(*ranges[value.name]), value.name), [mark, *takers])
            wider.append(f"before {name}")
    return wider


def _fits(grid: Grid, least: float, most: float) -> bool:
    """Whether what a grid cuts off of a range is little: calibration cuts for the layer behind, not for a sum."""
    low, high = ((end - grid.zero) * grid.scale for end in (grid.low, grid.high))
    return max(most - high, low - least) <= CUT * (high - low)


def _hoist(graph: Graph) -> None:
    """A mark behind a pool or a reshape is before it too."""
    for node in graph.marks():
        before, top = node.inputs[0].producer(), None
        while _passes(before) and all(_same(user, node) for user in graph.users(before.outputs[0])):
            if before.outputs[0].is_graph_output():
                break
            top, node, before = before, before, before.inputs[0].producer()
        if top is not None and before is not None:
            grid = grid_of(_first_mark(graph, top))
            if grid.static:
                top.replace_input_with(0, graph.mark(top.inputs[0], grid, top.inputs[0].name))
    _merge(graph)


def _is_sum(graph: Graph, node: Any) -> bool:
    return node.domain == "" and node.op_type == "Add" and all(graph.constant(one) is None for one in node.inputs)


def _passes(node: Any) -> bool:
    return node is not None and node.domain == "" and node.op_type in PASSING


def _pads(graph: Graph, node: Any) -> bool:
    """Whether a node puts zeros around a value, which are on every grid."""
    if node is None or node.domain or node.op_type != "Pad":
        return False
    mode = node.attributes["mode"].value if "mode" in node.attributes else "constant"
    given = node.inputs[2] if len(node.inputs) > 2 else None
    value = graph.constant(given)
    return mode == "constant" and (given is None or (value is not None and not np.any(value)))


def _same(user: Any, node: Any) -> bool:
    return user is node or (is_mark(user) and is_mark(node) and grid_of(user) == grid_of(node))


def _first_mark(graph: Graph, node: Any) -> Any:
    """The mark behind nodes that pass a value on."""
    while not is_mark(node):
        node = graph.users(node.outputs[0])[0]
    return node


def _mark_inputs(graph: Graph) -> None:
    """A layer behind a reshape of a rounded value, or zeros around it, has the mark at once before it."""
    for node in graph.nodes("Conv", "Gemm", "MatMul"):
        before = node.inputs[0].producer()
        while _passes(before) or _pads(graph, before):
            before = before.inputs[0].producer()
        if is_mark(before) and before.outputs[0] is not node.inputs[0] and grid_of(before).static:
            site = str(before.attributes["site"].value)
            node.replace_input_with(0, graph.mark(node.inputs[0], grid_of(before), site))


def _mark_outputs(graph: Graph, layers: Sequence[Layer], observe: Observe, placed: Placed) -> None:
    """What a convolution gives is on a grid at once behind ReLU: the model's own, or one that is looked up."""
    waiting = []
    for layer in list(layers):
        value = layer.end
        marks = [user for user in graph.users(value) if static_mark(user)]
        others = [user for user in graph.users(value) if not static_mark(user)]
        wide = [one for one in marks if grid_of(one).bits == 8]
        if any(is_mark(user) and grid_of(user).bits > 8 for user in others):
            placed.left[layer.name] = "what it gives is rounded to more than 8 bits"
        elif layer.node.op_type != "Conv":
            continue
        elif value.is_graph_output():
            placed.left[layer.name] = "what it gives is an output of the model, which stays float"
        elif len(marks) != 1 or others:
            if wide:
                _take(graph, value, max(wide, key=lambda one: grid_of(one).scale))
            else:
                waiting.append(layer)
    sums = _sums(graph) if layers else {}
    ranges = observe([*(layer.end.name for layer in waiting), *(end.name for end in sums)]) if waiting or sums else {}
    for layer in waiting:
        _round(graph, layer.end, ranges)
    placed.observed += [f"behind {layer.name}" for layer in waiting]
    for end, node in sums.items():
        if all(static_mark(one.producer()) and grid_of(one.producer()).bits == 8 for one in node.inputs):
            _round(graph, end, ranges)
            placed.observed.append(f"behind the sum in {scope(node) or 'the model'}")
    for layer in layers:
        for user in graph.users(layer.end):
            if static_mark(user):
                placed.stands[layer.name] = Stands(user.outputs[0].name, layer.end.name)


def _sums(graph: Graph) -> dict[Any, Any]:
    """The sums behind which, ReLU aside, nothing is rounded, by the value that is there."""
    found = {}
    for node in graph.nodes("Add"):
        end = [node, *after(graph, node)][-1].outputs[0]
        if _is_sum(graph, node) and not end.is_graph_output() and not any(map(is_mark, graph.users(end))):
            found[end] = node
    return found


def _round(graph: Graph, value: Any, ranges: Ranges) -> None:
    """A value on the grid of its range, for all that take it."""
    users = graph.users(value)
    graph.replace(value, graph.mark(value, _grid(*ranges[value.name]), value.name), users)


def _take(graph: Graph, value: Any, mark: Any) -> None:
    """All that take a value take it rounded."""
    graph.replace(value, mark.outputs[0], [user for user in graph.users(value) if user is not mark])


def _grid(least: float, most: float) -> Grid:
    """The smallest grid of 8 bits that holds a range, and 0."""
    least, most = min(least, 0.0), max(most, 0.0)
    scale = float(np.float32((most - least) / 255)) or 1.0
    return Grid("static", 0, 255, scale, int(np.clip(np.rint(-least / scale), 0, 255)))


def _put(graph: Graph, layer: Layer, placed: Placed) -> None:
    """Weights and bias as integers that are dequantized; the layer stays as it is where that cannot be."""
    if layer.name in placed.left:
        return
    made = normed(graph, layer)
    if isinstance(made, str):
        placed.left[layer.name] = made
    else:
        put_static(graph, made)
        placed.integers.append(layer.name)
