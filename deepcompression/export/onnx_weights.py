"""A tensor inside a plain ONNX graph, in the form that takes the fewest bytes.

Any runtime computes such a tensor once, when it loads the file: from a table of values and small integers that say
which (Gather), and, where most are zero, from the distances between those that are not (CumSum, ScatterElements).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

LEAST_BYTES = 256  # the nodes of any form but the dense one take more
MOST_VALUES = 1 << 16  # of a table
HELD = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT8,
    TensorProto.UINT8,
)
Array = NDArray[Any]


@dataclass
class Form:
    """A way to hold a tensor: what the graph stores, and the nodes that compute the tensor, under its own name."""

    tensor: str
    name: str
    initializers: list[TensorProto] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        """In the file."""
        parts: list[Any] = [*self.initializers, *self.nodes]
        return sum(part.ByteSize() for part in parts)

    def store(self, what: str, array: Array) -> str:
        """Stores an array; returns its name in the graph."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{self.tensor}/{what}"))
        return f"{self.tensor}/{what}"

    def store_small(self, what: str, integers: Array, bits: int) -> str:
        """Stores integers, two of 4 bits in a byte; returns a name.

        Args:
            what: the last part of the name.
            integers: below 2^bits, any shape.
            bits: 4, 8 or 16.
        """
        if bits > 4:
            return self.store(what, integers.astype(f"uint{bits}"))
        flat = np.append(integers.ravel(), np.zeros(integers.size % 2, integers.dtype)).astype(np.uint8)
        packed = (flat[::2] | flat[1::2] << 4).tobytes()
        name = f"{self.tensor}/{what}"
        self.initializers.append(helper.make_tensor(name, TensorProto.UINT4, integers.shape, packed, raw=True))
        return name

    def compute(self, operator: str, *inputs: str, last: bool = False, **attributes: int | str | list[int]) -> str:
        """Adds a node; returns the name of its output, that of the tensor itself where it is the ``last``."""
        output = self.tensor if last else f"{self.tensor}/{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output


def smallest(tensor: TensorProto) -> Form:
    """The form of a tensor that measures smallest; each gives back every value bit for bit."""
    return min(_forms(tensor), key=lambda form: form.bytes)


def worth_a_look(tensor: TensorProto) -> bool:
    """Whether a tensor may become smaller at all."""
    return tensor.data_type in HELD and tensor.ByteSize() > LEAST_BYTES


def _forms(tensor: TensorProto) -> Iterator[Form]:
    yield Form(tensor.name, "dense", [tensor])
    values = numpy_helper.to_array(tensor)
    bits = _bits(values)
    if (bits == bits.flat[0]).all():
        yield _constant(tensor, values)
        return
    if table := _table(values, bits):
        yield _codes(tensor, *table)
    flat, where = values.reshape(-1), np.flatnonzero(bits)  # -0.0 is no zero: its bits are not
    if len(where) < values.size and values.size < 1 << 31:
        held = [None, _table(flat[where], bits.reshape(-1)[where])]
        for table in held if held[1] else held[:1]:
            yield from (_gaps(tensor, values.shape, where, flat[where], table, width) for width in (4, 8))


def _constant(tensor: TensorProto, values: Array) -> Form:
    form = Form(tensor.name, "constant")
    shape = form.store("shape", np.array(values.shape, np.int64))
    form.compute("ConstantOfShape", shape, last=True, value=numpy_helper.from_array(values.reshape(-1)[:1]))
    return form


def _codes(tensor: TensorProto, table: Array, codes: Array) -> Form:
    form = Form(tensor.name, f"codes of {_width(table)} bits")
    _gather(form, table, codes, last=True)
    return form


def _gaps(
    tensor: TensorProto,
    shape: tuple[int, ...],
    where: Array,
    values: Array,
    table: tuple[Array, Array] | None,
    width: int,
) -> Form:
    """Distances from each value that is not zero to the one before it. A distance of 0 says: go on by the longest one,
    there is no value yet.
    """
    held = f"codes of {_width(table[0])} bits" if table else "values"
    form = Form(tensor.name, f"gaps of {width} bits, {held}")
    longest = (1 << width) - 1
    gaps = np.diff(where, prepend=-1)
    skips = (gaps - 1) // longest
    steps = np.zeros(len(gaps) + int(skips.sum()), np.uint8)
    steps[np.cumsum(skips + 1) - 1] = gaps - skips * longest
    count = int(np.prod(shape))
    step = form.compute("Cast", form.store_small("gaps", steps, width), to=TensorProto.INT32)
    axis, one = form.store("axis", np.array(0, np.int64)), form.store("one", np.array(1, np.int32))
    found = _gather(form, *table) if table else form.store("values", values)
    if skips.any():
        there = form.compute("Cast", step, to=TensorProto.BOOL)
        step = form.compute("Where", there, step, form.store("longest", np.array(longest, np.int32)))
        place = form.compute("Sub", form.compute("CumSum", step, axis), one)
        # No Compress here: onnxruntime would run it, and all behind it, at every call instead of once.
        place = form.compute("Where", there, place, form.store("beyond", np.array(count, np.int32)))
        number = form.compute("CumSum", form.compute("Cast", there, to=TensorProto.INT32), axis)
        found = form.compute("Gather", found, form.compute("Sub", number, one))
    else:
        place = form.compute("Sub", form.compute("CumSum", step, axis), one)
    size = form.store("size", np.array([count], np.int64))
    room = form.store("room", np.array([count + 1], np.int64)) if skips.any() else size
    zeros = form.compute("ConstantOfShape", room, value=numpy_helper.from_array(np.zeros(1, values.dtype)))
    flat = form.compute("ScatterElements", zeros, place, found, axis=0)
    if skips.any():
        flat = form.compute("Slice", flat, form.store("start", np.array([0], np.int64)), size)
    form.compute("Reshape", flat, form.store("shape", np.array(shape, np.int64)), last=True)
    return form


def _gather(form: Form, table: Array, codes: Array, last: bool = False) -> str:
    code = form.compute("Cast", form.store_small("codes", codes, _width(table)), to=TensorProto.INT32)
    return form.compute("Gather", form.store("table", table), code, last=last)


def _table(values: Array, bits: Array) -> tuple[Array, Array] | None:
    """The different values and for each element which it is; None where there are too many to be worth a table."""
    if len(np.unique(bits.reshape(-1)[: 4 * MOST_VALUES])) > MOST_VALUES:
        return None
    different, first, codes = np.unique(bits, return_index=True, return_inverse=True)
    return (values.reshape(-1)[first], codes.reshape(bits.shape)) if len(different) <= MOST_VALUES else None


def _width(table: Array) -> int:
    return 4 if len(table) <= 16 else 8 if len(table) <= 256 else 16


def _bits(values: Array) -> Array:
    bits: Array = np.ascontiguousarray(values).view(f"u{values.itemsize}")
    return bits


def put(model: onnx.ModelProto, forms: list[Form]) -> None:
    """Replaces initializers of a model's graph by these forms of them."""
    graph = model.graph
    names = {form.tensor for form in forms}
    kept = [one for one in graph.initializer if one.name not in names]
    nodes = [*(node for form in forms for node in form.nodes), *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend([*kept, *(one for form in forms for one in form.initializers)])
    graph.node.extend(nodes)


def alone(model: onnx.ModelProto, forms: list[Form], tensors: list[TensorProto]) -> onnx.ModelProto:
    """A model without inputs that computes these tensors from their forms and does nothing else.

    Args:
        model: whose versions it has.
        forms: how the tensors are kept.
        tensors: what comes out, by name, type and shape.
    """
    outputs = [helper.make_tensor_value_info(one.name, one.data_type, one.dims) for one in tensors]
    nodes = [node for form in forms for node in form.nodes]
    stored = [one for form in forms for one in form.initializers]
    graph = helper.make_graph(nodes, "weights", [], outputs, stored)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
