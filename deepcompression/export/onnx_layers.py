"""Layers of a graph that can multiply integers: their weights as integers with scales, or why they stay float."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from deepcompression.codec import grids
from deepcompression.export.exported import Array
from deepcompression.export.onnx_graph import Graph, is_mark
from deepcompression.export.onnx_sites import Grid, grid_of

LAYERS = ("Conv", "Gemm", "MatMul")
OTHERS = ("ConvTranspose", "LSTM", "GRU", "RNN")
AFTER = ("BatchNormalization", "Relu", "Clip")
TINY = float(np.finfo(np.float32).tiny)
SMALL = 16  # values of a table of 4 bits
UNKNOWN = "its weights are on no grid of at most 8 bits for the tensor or its output channels"


class Integers(NamedTuple):
    """Integers of a weight's shape, the float64 scale of each place of ``axis``, and what integer means 0."""

    codes: NDArray[np.int32]
    scales: NDArray[np.float64]
    axis: int
    zero: int = 0

    def along(self, values: Array) -> Array:
        """Values of the axis's places, as they broadcast."""
        return values.reshape([-1 if place == self.axis else 1 for place in range(self.codes.ndim)])


@dataclass
class Layer:
    """A node, what the model calls it, its input's grid, its weights; and the nodes that it alone leads to: a
    BatchNorm, which becomes part of it, ReLU and Clip."""

    node: Any
    name: str
    grid: Grid
    integers: Integers
    bias: Array | None
    after: list[Any] = field(default_factory=list)

    @property
    def end(self) -> Any:
        """The value behind all that."""
        return (self.after[-1] if self.after else self.node).outputs[0]


def layers_of(graph: Graph) -> tuple[list[Layer], dict[str, str]]:
    """The layers of which input and weight are integers; and why the others are not, by name."""
    found, left = [], {}
    named_nodes(graph)
    for node in graph.nodes(*LAYERS, *OTHERS):
        name = str(node.name)
        made = _layer(graph, node, name)
        if isinstance(made, Layer):
            found.append(made)
        else:
            left[name] = made
    return found, left


def named_nodes(graph: Graph) -> None:
    """Each layer's node has the name of the module that it comes from, and its number where that has several."""
    names: dict[str, int] = {}
    for node in graph.nodes(*LAYERS, *OTHERS):
        name = scope(node) or str(node.outputs[0].name)
        names[name] = names.get(name, 0) + 1
        node.name = name if names[name] == 1 else f"{name} ({names[name]})"


def scope(node: Any) -> str:
    """The innermost module in which PyTorch's exporter saw the call."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        return str(scopes[-2])
    except (ValueError, SyntaxError, IndexError):
        return ""


def _layer(graph: Graph, node: Any, name: str) -> Layer | str:
    """The layer, or why it is none."""
    if node.op_type in OTHERS:
        return f"runtimes have no integer {node.op_type}"
    mark, weight = node.inputs[0].producer(), graph.constant(node.inputs[1])
    if weight is None:
        return "it multiplies two values that the model computes" if node.op_type == "MatMul" else "its weight is none"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return "its weight is no matrix"
    if not is_mark(mark):
        return "its input is not rounded"
    grid = grid_of(mark)
    if why := _unfit(node, grid):
        return why
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    array = graph.constant(bias)
    if bias is not None and array is None:
        return "its bias is no constant"
    integers = integers_of(weight, _axis(node, weight))
    if integers is None:
        return UNKNOWN
    return Layer(node, name, grid, integers, array, after(graph, node))


def _unfit(node: Any, grid: Grid) -> str:
    if grid.bits > 8:
        return f"its input is rounded to {grid.bits} bits, and integer kernels take 8"
    if node.op_type == "Conv" and not grid.static:
        return "its input's range is that of each call, for which runtimes have no integer convolution"
    usual = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    given = {name: node.attributes[name].value for name in usual if name in node.attributes}
    return "" if all(given[name] == usual[name] for name in given) else f"its {node.op_type} is scaled or transposed"


def _axis(node: Any, weight: Array) -> int:
    """Where the output channels are."""
    if node.op_type == "Conv":
        return 0
    transposed = node.op_type == "Gemm" and "transB" in node.attributes and node.attributes["transB"].value
    return 0 if transposed else weight.ndim - 1


def integers_of(weight: Array, axis: int) -> Integers | None:
    """Integers of 8 bits and scales that give a float32 tensor bit for bit; None where there are none.

    One scale where that does, else one for each place of the axis; the largest ones that do, as the ``.dcz`` has them.
    """
    if weight.dtype != np.float32 or not weight.size or (axis >= weight.ndim):
        return None
    bits = np.ascontiguousarray(weight).view(np.uint32)
    rows = np.moveaxis(bits, axis, 0).reshape(bits.shape[axis], -1)
    for some in (bits.reshape(1, -1), rows):
        if (found := grids.recognise(np.ascontiguousarray(some), "float32")) is None:
            continue
        scales, codes = found
        whole = codes.reshape(bits.shape) if some is not rows else _back(codes, bits.shape, axis)
        if (zero := _zero(whole, len(scales))) is not None:
            spread = np.broadcast_to(scales.astype(np.float64), (bits.shape[axis],)).copy()
            return Integers(whole, spread, axis, zero)
    return None


def _back(rows: NDArray[np.int32], shape: tuple[int, ...], axis: int) -> NDArray[np.int32]:
    moved = (shape[axis], *(size for place, size in enumerate(shape) if place != axis))
    return np.ascontiguousarray(np.moveaxis(rows.reshape(moved), 0, axis))


def _zero(codes: NDArray[np.int32], scales: int) -> int | None:
    """0 where they are int8; what makes them uint8 where one scale has another range; None where neither will do."""
    low, high = int(codes.min()), int(codes.max())
    if low >= -128 and high <= 127:
        return 0
    return -low if scales == 1 and high - low <= 255 else None


def after(graph: Graph, node: Any) -> list[Any]:
    """BatchNorm, ReLU and Clip that alone take what a node gives; a BatchNorm only at once behind it."""
    found: list[Any] = []
    value = node.outputs[0]
    while (user := graph.only_user(value)) is not None and user.domain == "" and user.op_type in AFTER:
        if user.op_type == "BatchNormalization" and (found or not _constants(graph, user)):
            break
        if user.inputs[0] is not value or (user.op_type == "Clip" and not _constants(graph, user)):
            break
        found.append(user)
        value = user.outputs[0]
    return found


def _constants(graph: Graph, node: Any) -> bool:
    return all(one is None or graph.constant(one) is not None for one in node.inputs[1:])


def normed(graph: Graph, layer: Layer) -> Layer | str:
    """The layer with the BatchNorm behind it as its scales and bias; or why that cannot be."""
    if not layer.after or layer.after[0].op_type != "BatchNormalization":
        return layer
    norm, *after = layer.after
    gamma, beta, mean, variance = (graph.constant(one) for one in norm.inputs[1:5])
    epsilon = norm.attributes["epsilon"].value if "epsilon" in norm.attributes else 1e-5
    factor = np.float64(gamma) / np.sqrt(np.float64(variance) + np.float32(epsilon))
    codes, scales, axis, zero = layer.integers
    if (factor < 0).any() and (zero or int(codes.min()) < -127):
        return "the BatchNorm behind it negates weights whose integers are not around 0"
    bias = (0.0 if layer.bias is None else np.float64(layer.bias)) - np.float64(mean)
    sign = layer.integers.along(np.sign(factor)).astype(np.int32)
    integers = Integers(codes * sign, np.where(factor == 0, 1.0, scales * np.abs(factor)), axis, zero)
    graph.replace(norm.outputs[0], layer.node.outputs[0])
    graph.drop(norm)
    return Layer(layer.node, layer.name, layer.grid, integers, bias * factor + np.float64(beta), after)


def refined(integers: Integers) -> Integers:
    """The same weights by smaller scales, so that a bias, whose step they are, is rounded less: integers times a power
    of two. One for all where few different integers lie in a table, else one a channel.
    """
    if integers.zero:
        return integers
    rows = np.abs(np.moveaxis(integers.codes, integers.axis, 0).reshape(len(integers.scales), -1)).max(1)
    if len(np.unique(integers.codes)) <= SMALL:
        rows = np.full_like(rows, rows.max())
    factor = np.exp2(np.floor(np.log2(127 / np.clip(rows, 1, 127))))
    codes = integers.codes * integers.along(factor).astype(np.int32)
    return integers._replace(codes=codes, scales=integers.scales / factor)


def with_bias(integers: Integers, bias: Array | None, step: float) -> tuple[Integers, NDArray[np.int32] | None]:
    """Scales in float32 and the bias in steps of the input's times the weight's, int32.

    Channels of zeros have the scale that their bias needs. So do those beside whose bias their weights are nothing, as
    of channels that died in training: they are rounded anew, by less than 2^-22 of the bias a weight.

    Args:
        integers: of the weight.
        bias: a number for each place of the axis, or None.
        step: the input's scale.
    """
    if bias is None or not np.any(bias):
        scales = np.maximum(integers.scales, TINY).astype(np.float32)
        return integers._replace(scales=scales.astype(np.float64)), None
    empty = ~np.moveaxis(integers.codes, integers.axis, 0).reshape(len(integers.scales), -1).any(1)
    least = np.abs(np.float64(bias)) / (step * 2.0**30)
    changed = empty | (integers.scales < least)
    scales = np.maximum(np.where(changed, least, integers.scales), TINY).astype(np.float32)
    factor = np.where(changed, integers.scales / scales, 1.0)
    made = integers._replace(
        codes=np.rint(integers.codes * integers.along(factor)).astype(np.int32), scales=scales.astype(np.float64)
    )
    steps = np.rint(np.float64(bias) / (np.float64(np.float32(step)) * scales))
    return made, steps.astype(np.int32)
