"""Pruned weights in a ``.tflite`` as sparse tensors: values that are not zero, and their places.

DENSIFY before a layer makes them dense once, when the file is loaded; XNNPACK, LiteRT's kernels for CPUs, takes what
comes out as it takes a constant. It does so for float layers alone: not for those that multiply integers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from deepcompression.export.exported import Array

LEAST = 0.8  # of the dense bytes: what saves less is not worth an operator
SMALL = 256  # places that one byte tells apart
KINDS: dict[int, np.dtype[Any]] = {
    0: np.dtype(np.float32),
    9: np.dtype(np.int8),
}  # of tensors, as the schema numbers them
CSR = 1  # of a dimension; 0 is dense
LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


class Sparse(NamedTuple):
    """A weight's name in the file, the form that it has now, and its bytes."""

    name: str
    form: str
    bytes: int


class _Rows(NamedTuple):
    """Rows of equal length: the values that are not zero, their places, and where each row begins among them."""

    values: Array
    places: Array
    starts: Array

    @property
    def bytes(self) -> int:
        return sum(one.nbytes for one in self)


def sparse(content: bytes) -> tuple[bytes, list[Sparse]]:
    """The file with weights of float layers as sparse tensors where that is smaller, and which these are.

    Args:
        content: of a ``.tflite``.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    _inline(model, content)
    made = [_replaced(schema, model, place) for place in dict.fromkeys(_weights(schema, model))]
    changed = [one for one in made if one is not None]
    if not changed:
        return content, []
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output()), changed


def _inline(model: Any, content: bytes) -> None:
    """Buffers that lie behind the tree, in it."""
    for one in model.buffers:
        if one.offset > 1:
            one.data = np.frombuffer(content[one.offset : one.offset + one.size], np.uint8)
            one.offset = one.size = 0


def _weights(schema: Any, model: Any) -> Iterator[int]:
    """The constants that layers take as weights, as floats or by DEQUANTIZE."""
    (graph,) = model.subgraphs
    kinds = [model.operatorCodes[one.opcodeIndex].builtinCode for one in graph.operators]
    layers = {getattr(schema.BuiltinOperator, name) for name in LAYERS}
    dequantized = {
        int(one.outputs[0]): int(one.inputs[0])
        for one, kind in zip(graph.operators, kinds, strict=True)
        if kind == schema.BuiltinOperator.DEQUANTIZE
    }
    for one, kind in zip(graph.operators, kinds, strict=True):
        if kind in layers:
            place = int(one.inputs[1])
            tensor = graph.tensors[dequantized.get(place, place)]
            is_float = place in dequantized or tensor.type == schema.TensorType.FLOAT32
            if is_float and tensor.type in KINDS and model.buffers[tensor.buffer].data is not None:
                yield dequantized.get(place, place)


def _replaced(schema: Any, model: Any, place: int) -> Sparse | None:
    """Puts a sparse tensor and DENSIFY before a constant; None where it stays as it is."""
    (graph,) = model.subgraphs
    tensor = graph.tensors[place]
    if sum(one.buffer == tensor.buffer for one in graph.tensors) > 1:
        return None
    flat: Array = np.frombuffer(bytes(model.buffers[tensor.buffer].data), KINDS[tensor.type])
    values = flat.reshape(tensor.shape)
    rows = _rows(values)
    if rows.bytes > LEAST * values.nbytes:
        return None
    held = copy.copy(tensor)
    held.name, held.sparsity = tensor.name + b":sparse", _sparsity(schema, values.shape, rows)
    model.buffers[tensor.buffer].data = np.frombuffer(rows.values.tobytes(), np.uint8)
    tensor.buffer = 0  # the empty one
    graph.tensors.append(held)
    operator = schema.OperatorT()
    operator.opcodeIndex = _operator(schema, model, schema.BuiltinOperator.DENSIFY)
    operator.inputs, operator.outputs = (np.array([one], np.int32) for one in (len(graph.tensors) - 1, place))
    operator.builtinOptionsType = schema.BuiltinOptions.DensifyOptions
    operator.builtinOptions = schema.DensifyOptionsT()
    graph.operators = [operator, *graph.operators]
    return Sparse(tensor.name.decode(), f"sparse {values.dtype}", rows.bytes)


def _rows(values: Array) -> _Rows:
    flat = values.reshape(-1, values.shape[-1])
    there = flat.view(f"u{flat.itemsize}") != 0  # -0.0 is no zero: its bits are not
    starts = np.concatenate([[0], np.cumsum(there.sum(1))])
    return _Rows(flat[there], _narrow(np.nonzero(there)[1]), _narrow(starts))


def _narrow(integers: Array) -> Array:
    """In the narrowest type that the format has for places."""
    most = int(integers.max(initial=0))
    return integers.astype(np.uint8 if most < SMALL else np.uint16 if most < 1 << 16 else np.int32)


def _sparsity(schema: Any, shape: tuple[int, ...], rows: _Rows) -> Any:
    """All dimensions dense but the last one. With blocks, which would let a byte do for a place, LiteRT 2.3 crashes."""
    found = schema.SparsityParametersT()
    found.traversalOrder = np.arange(len(shape), dtype=np.int32)
    found.dimMetadata = [schema.DimensionMetadataT() for _ in shape]
    for one, size in zip(found.dimMetadata, shape, strict=True):
        one.format, one.denseSize = 0, size
    last = found.dimMetadata[-1]
    last.format = CSR
    last.arraySegmentsType, last.arraySegments = _vector(schema, rows.starts)
    last.arrayIndicesType, last.arrayIndices = _vector(schema, rows.places)
    return found


def _vector(schema: Any, integers: Array) -> tuple[int, Any]:
    name = {1: "Uint8Vector", 2: "Uint16Vector", 4: "Int32Vector"}[integers.itemsize]
    vector = getattr(schema, f"{name}T")()
    vector.values = integers
    return getattr(schema.SparseIndexVector, name), vector


def _operator(schema: Any, model: Any, code: int) -> int:
    """The place of a kind of operator in the model's list of these."""
    for place, one in enumerate(model.operatorCodes):
        if one.builtinCode == code:
            return place
    made = schema.OperatorCodeT()
    made.builtinCode, made.deprecatedBuiltinCode, made.version = code, min(code, 127), 1
    model.operatorCodes.append(made)
    return len(model.operatorCodes) - 1
