"""What becomes of a mark: the nodes that round a value as the model's own hook does.

Integers are unsigned, from 0 on, whatever the grid's are: that is the form in which runtimes multiply fastest, and in
which ReLU before a grid is no work.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from deepcompression.errors import ExportError
from deepcompression.export.onnx_ends import End
from deepcompression.export.onnx_graph import Graph
from deepcompression.export.onnx_sites import Grid, grid_of

CLIP = "clip"  # of a mark: the integers that a ReLU or a Clip before it leaves
PLAIN = "plain"  # of a mark: before a layer that is left float, of which onnxruntime would round the weight itself


class Moving(NamedTuple):
    """A value rounded by its own range: whole numbers as floats, zero point in, their scale, and the zero point."""

    integers: Any
    scale: Any
    zero: Any


def expand(graph: Graph) -> None:
    """Every mark becomes nodes of ONNX."""
    for node in graph.marks():
        grid, value, name = grid_of(node), node.inputs[0], node.outputs[0].name
        how = node.meta.get(CLIP), node.meta.get(PLAIN, False)
        rounded = _static(graph, value, grid, name, *how) if grid.static else _moving(graph, value, grid, name)
        graph.replace(node.outputs[0], rounded)
        graph.drop(node)
        if not rounded.is_graph_output():
            node.outputs[0].name, rounded.name = None, name


def absorb(graph: Graph) -> None:
    """ReLU and Clip before nothing but one mark become limits of its integers, which is exact."""
    for node in graph.marks():
        while grid_of(node).static and _absorbed(graph, node):
            pass


def _absorbed(graph: Graph, node: Any) -> bool:
    before = node.inputs[0].producer()
    limits = _limits(graph, before)
    if limits is None or graph.only_user(before.outputs[0]) is not node:
        return False
    grid = grid_of(node)
    low, high = (int(np.clip(_code(grid, one), 0, grid.high - grid.low)) for one in limits)
    least, most = node.meta.get(CLIP, (0, grid.high - grid.low))
    node.meta[CLIP] = (max(least, low), max(least, min(most, high)))
    node.replace_input_with(0, before.inputs[0])
    graph.drop(before)
    return True


def _limits(graph: Graph, node: Any) -> tuple[float, float] | None:
    if node is None or node.domain:
        return None
    if node.op_type == "Relu":
        return 0.0, np.inf
    if node.op_type != "Clip":
        return None
    ends = [*node.inputs[1:], None, None][:2]
    known = [graph.constant(one) for one in ends]
    if any(one is not None and array is None for one, array in zip(ends, known, strict=True)):
        return None
    low, high = known
    return -np.inf if low is None else float(low), np.inf if high is None else float(high)


def _code(grid: Grid, value: float) -> float:
    return float(np.rint(np.float32(value) / np.float32(grid.scale))) + grid.zero - grid.low


def _static(
    graph: Graph, value: Any, grid: Grid, name: str, clip: tuple[int, int] | None = None, plain: bool = False
) -> Any:
    kind = np.uint8 if grid.bits <= 8 else np.uint16
    least, most = clip or (0, grid.high - grid.low)
    narrow = least > 0 or most < np.iinfo(kind).max
    if narrow and kind is np.uint16:  # of which onnxruntime has no Clip
        ends = [np.float32((one - grid.zero + grid.low) * np.float32(grid.scale)) for one in (least, most)]
        value, narrow = graph.add("Clip", [value, *(graph.store(one, f"{name}:end") for one in ends)], name), False
    scale = graph.store(np.float32(grid.scale), f"{name}:scale")
    zero = graph.store(kind(grid.zero - grid.low), f"{name}:zero")
    codes = graph.add("QuantizeLinear", [value, scale, zero], f"{name}:q")
    if narrow:
        ends = [graph.store(kind(one), f"{name}:end") for one in (least, most)]
        codes = graph.add("Clip", [codes, *ends], f"{name}:clip")
    if plain:
        steps = graph.add("Cast", [codes], name, attributes={"to": 1})
        steps = graph.add("Sub", [steps, graph.store(np.float32(zero.const_value.numpy()), "number")], name)
        return graph.add("Mul", [steps, scale], name)
    return graph.add("DequantizeLinear", [codes, scale, zero], f"{name}:dq")


def _moving(graph: Graph, value: Any, grid: Grid, name: str) -> Any:
    if whole_range(grid):
        return graph.add("DequantizeLinear", by_runtime(graph, value, name), f"{name}:dq")
    moving = by_range(graph, value, grid, name)
    steps = moving.integers if moving.zero is None else graph.add("Sub", [moving.integers, moving.zero], name)
    return graph.add("Mul", [steps, moving.scale], name)


def whole_range(grid: Grid) -> bool:
    """Whether DynamicQuantizeLinear is that range."""
    return (grid.range, grid.low, grid.high) == ("dynamic", 0, 255)


def by_runtime(graph: Graph, value: Any, name: str) -> list[Any]:
    """uint8 integers, scale, zero point, of the whole value's range.

    Args:
        graph: gets the node.
        value: to be rounded.
        name: of the site.
    """
    return list(graph.add("DynamicQuantizeLinear", [value], f"{name}:q", outputs=3))


def by_range(graph: Graph, value: Any, grid: Grid, name: str) -> Moving:
    """The integers of any other range, as ``range_of`` finds it: by reductions.

    Symmetric ones have no zero point. ``integers`` are from ``low`` to ``high``.

    Args:
        graph: gets the nodes.
        value: to be rounded.
        grid: with a range that moves.
        name: of the site.
    """
    zero, one = (graph.store(np.float32(number), "number") for number in (0, 1))
    least, most = (_end(graph, operator, value, grid, name) for operator in ("ReduceMin", "ReduceMax"))
    least, most = graph.add("Min", [least, zero], name), graph.add("Max", [most, zero], name)
    symmetric = grid.low < 0
    count = graph.store(np.float32(grid.high if symmetric else grid.high - grid.low), "number")
    wide = graph.add("Max", [most, graph.add("Neg", [least], name)], name)
    wide = graph.add("Div", [wide if symmetric else graph.add("Sub", [most, least], name), count], name)
    scale = graph.add("Where", [graph.add("Greater", [wide, zero], name), wide, one], f"{name}:scale")
    ends = [graph.store(np.float32(number), "number") for number in (grid.low, grid.high)]
    steps = graph.add("Round", [graph.add("Div", [value, scale], name)], name)
    if symmetric:
        return Moving(graph.add("Clip", [steps, *ends], name), scale, None)
    point = graph.add("Round", [graph.add("Div", [graph.add("Neg", [least], name), scale], name)], name)
    point = graph.add("Clip", [point, *ends], f"{name}:zero")
    return Moving(graph.add("Clip", [graph.add("Add", [steps, point], name), *ends], name), scale, point)


def _end(graph: Graph, operator: str, value: Any, grid: Grid, name: str) -> Any:
    """The least or the greatest, of all, of each sample or of each vector."""
    rank = len(value.shape)
    over = list(range(rank))
    if rank > 1 and grid.range == "dynamic_row":
        over = over[1:]
    if rank > 1 and grid.range == "dynamic_token":
        over = over[-1:]
    axes = graph.store(np.array(over, np.int64), "axes")
    return graph.add(operator, [value, axes], name, attributes={"keepdims": int(grid.range != "dynamic")})


def on_integers(graph: Graph) -> dict[str, End]:
    """Inputs and outputs that are floats become uint8, in place; gives their grids by name.

    Args:
        graph: with QuantizeLinear and DequantizeLinear, each output behind one of these.

    Raises:
        ExportError: an input is taken as float too, or rounded to more than 8 bits, or by the range of each call.
    """
    return {
        **{str(value.name): _input(graph, value) for value in graph.graph.inputs if _float(value)},
        **{str(value.name): _output(graph, place) for place, value in enumerate(graph.graph.outputs) if _float(value)},
    }


def _float(value: Any) -> bool:
    return bool(value.dtype == ir.DataType.FLOAT)


def _input(graph: Graph, value: Any) -> End:
    takers = [node for node in graph.users(value) if node.op_type != "Shape"]
    ends = {_of(graph, node) if node.op_type == "QuantizeLinear" and not node.domain else None for node in takers}
    end = ends.pop() if len(ends) == 1 else None
    if end is None:
        raise ExportError(
            f"input {value.name} is not always rounded to 8 bits by a static range, so that "
            "there are no integers to give; quantize what the first layer takes (activations), or leave io out"
        )
    for node in takers:
        graph.replace(node.outputs[0], value)
        graph.drop(node)
    value.type = ir.TensorType(ir.DataType.UINT8)
    return end


def _output(graph: Graph, place: int) -> End:
    value = graph.graph.outputs[place]
    node = value.producer()
    end = _of(graph, node) if node is not None and node.op_type == "DequantizeLinear" else None
    if end is None:
        raise ExportError(f"output {value.name} is rounded to no 8 bits with one scale; leave io out")
    integers = graph.renamed(node.inputs[0], value)
    integers.type = ir.TensorType(ir.DataType.UINT8)
    graph.graph.outputs[place] = integers
    if not value.uses():
        graph.drop(node)
    return end


def _of(graph: Graph, node: Any) -> End | None:
    """What a node rounds by, or undoes; None of what is no uint8 with one scale."""
    scale, zero = (graph.constant(one) for one in node.inputs[1:3])
    if scale is None or zero is None or scale.size != 1 or zero.dtype != np.uint8:
        return None
    return End(float(scale.reshape(())), int(zero.reshape(())))
