"""How a layer on integers stands in a graph: what runtimes take integer kernels for, and what multiplies integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from deepcompression.export import onnx_rounded as rounded
from deepcompression.export.onnx_graph import Graph
from deepcompression.export.onnx_layers import Integers, Layer, refined, with_bias


def put_static(graph: Graph, layer: Layer) -> None:
    """A layer whose input is on a known grid: weight and bias as integers that are dequantized."""
    step = layer.grid.scale
    integers, bias = with_bias(refined(layer.integers), layer.bias, step)
    layer.node.replace_input_with(1, _dequantized(graph, integers, layer.name))
    layer.node.resize_inputs(2 if bias is None else 3)
    if bias is not None:
        scales = (np.float32(step) * integers.scales.astype(np.float32)).astype(np.float32)
        inputs = [
            graph.store(bias, f"{layer.name}.bias"),
            graph.store(scales, f"{layer.name}.bias:scale"),
            graph.store(np.zeros(len(bias), np.int32), "zero"),
        ]
        layer.node.replace_input_with(
            2, graph.add("DequantizeLinear", inputs, f"{layer.name}.bias:dq", attributes={"axis": 0})
        )


def _dequantized(graph: Graph, integers: Integers, name: str) -> Any:
    """A zero point is there although it is 0: without one onnxruntime multiplies floats."""
    codes, scales, zeros = _stored(graph, integers, name)
    attributes = {"axis": integers.axis}
    return graph.add("DequantizeLinear", [codes, scales, zeros], f"{name}.weight:dq", attributes=attributes)


def _stored(graph: Graph, integers: Integers, name: str) -> tuple[Any, Any, Any]:
    kind = np.uint8 if integers.zero else np.int8
    codes = graph.store((integers.codes + integers.zero).astype(kind), f"{name}.weight")
    scales = graph.store(integers.scales.astype(np.float32), f"{name}.weight:scale")
    return codes, scales, graph.store(np.full(len(integers.scales), integers.zero, kind), "zero")


def put_dynamic(graph: Graph, layer: Layer) -> None:
    """Input integers by the call's own range times weight integers; scales and the zero point's share come after."""
    node, mark, name = layer.node, layer.node.inputs[0].producer(), layer.name
    integers = layer.integers
    if integers.axis == 0:  # of a Gemm; MatMulInteger takes (inputs, outputs)
        integers = integers._replace(codes=np.ascontiguousarray(integers.codes.T), axis=1)
    weight, scales, _ = _stored(graph, integers, name)
    offset = [graph.store(np.uint8(integers.zero), "zero")] if integers.zero else []
    if rounded.whole_range(layer.grid):
        codes, scale, zero = _once(graph, mark, lambda: rounded.by_runtime(graph, mark.inputs[0], name))
        total = graph.add("Cast", [_product(graph, codes, weight, zero, offset, name)], name, attributes={"to": 1})
    else:
        total, scale = _by_range(graph, layer, integers, mark, (weight, offset))
    if layer.grid.range == "dynamic":
        out = graph.add("Mul", [total, graph.add("Mul", [scale, scales], f"{name}:scale")], name)
    else:  # not that product of scales, in which onnxruntime takes the input's for one number
        out = graph.add("Mul", [graph.add("Mul", [total, scales], name), scale], name)
    if layer.bias is not None and np.any(layer.bias):
        out = graph.add("Add", [out, graph.store(layer.bias, f"{name}.bias")], name)
    graph.replace(node.outputs[0], out)
    graph.drop(node)
    if not mark.outputs[0].uses() and not mark.outputs[0].is_graph_output():
        graph.drop(mark)


def _by_range(graph: Graph, layer: Layer, integers: Integers, mark: Any, held: tuple[Any, list[Any]]) -> Any:
    grid, name = layer.grid, layer.name
    moving = _once(graph, mark, lambda: rounded.by_range(graph, mark.inputs[0], grid, name))
    shift = graph.store(np.float32(-grid.low), "number")
    whole = graph.add("Add", [moving.integers, shift], name) if grid.low else moving.integers
    codes = graph.add("Cast", [whole], f"{name}:codes", attributes={"to": 2})
    zero = graph.store(np.uint8(-grid.low), "zero")
    weight, offset = held
    total = graph.add("Cast", [_product(graph, codes, weight, zero, offset, name)], name, attributes={"to": 1})
    if moving.zero is not None:
        sums = graph.store(integers.codes.sum(0).astype(np.float32), f"{name}:sums")
        total = graph.add("Sub", [total, graph.add("Mul", [moving.zero, sums], name)], name)
    return total, moving.scale


def _once(graph: Graph, mark: Any, make: Callable[[], Any]) -> Any:
    """What several layers take from one mark is computed once."""
    if "moving" not in mark.meta:
        mark.meta["moving"] = make()
    return mark.meta["moving"]


def _product(graph: Graph, codes: Any, weight: Any, zero: Any, offset: list[Any], name: str) -> Any:
    return graph.add("MatMulInteger", [codes, weight, zero, *offset], f"{name}:product")
