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

from deepcompression.export.onnx_layers import integers_of

LEAST_BYTES = 256  # the nodes of any form but the dense one take more
MOST_VALUES = 1 << 16  # of a table
MOST_PAIRED = 64  # of a table whose values are in one byte with a distance
SKIPS = 5  # symbols of such a byte, at least, that are the first value and long distances
FEW, SLOW = 10, 1.15  # a form of more nodes takes longer to load: it must be smaller by so much
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
    """The form of a tensor that measures smallest, or is hardly larger and quicker to load; each gives back every value
    bit for bit.
    """
    return min(_forms(tensor), key=lambda form: form.bytes * (SLOW if len(form.nodes) > FEW else 1))


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
    table = _table(values, bits)
    if table:
        yield _codes(tensor, *table)
    if tensor.data_type == TensorProto.FLOAT and values.ndim > 1 and (table is None or len(table[0]) > 16):
        yield from _scaled(tensor, values)
    flat, where = values.reshape(-1), np.flatnonzero(bits)  # -0.0 is no zero: its bits are not
    if len(where) < values.size and values.size < 1 << 31:
        held = [None, _table(flat[where], bits.reshape(-1)[where])]
        for table in held if held[1] else held[:1]:
            yield from (_gaps(tensor, values.shape, where, flat[where], table, width) for width in (4, 8))
        if held[1] and len(held[1][0]) <= MOST_PAIRED:
            yield _pairs(tensor, values.shape, where, *held[1])


def _constant(tensor: TensorProto, values: Array) -> Form:
    form = Form(tensor.name, "constant")
    shape = form.store("shape", np.array(values.shape, np.int64))
    form.compute("ConstantOfShape", shape, last=True, value=numpy_helper.from_array(values.reshape(-1)[:1]))
    return form


def _codes(tensor: TensorProto, table: Array, codes: Array) -> Form:
    form = Form(tensor.name, f"codes of {_width(table)} bits")
    _gather(form, table, codes, last=True)
    return form


def _scaled(tensor: TensorProto, values: Array) -> Iterator[Form]:
    """Integers of 8 bits, in their own smallest form, times the scale of the tensor or of each first or last place."""
    for axis in (0, values.ndim - 1):
        if (found := integers_of(values, axis)) is not None:
            kind = np.uint8 if found.zero else np.int8
            codes = numpy_helper.from_array((found.codes + found.zero).astype(kind), f"{tensor.name}/integers")
            inner = smallest(codes)
            form = Form(tensor.name, f"integers, {inner.name}", [*inner.initializers], [*inner.nodes])
            value = form.compute("Cast", codes.name, to=TensorProto.FLOAT)
            if found.zero:
                value = form.compute("Sub", value, form.store("zero", np.array(found.zero, np.float32)))
            scales = found.along(found.scales.astype(np.float32))
            form.compute("Mul", value, form.store("scales", scales), last=True)
            yield form
            return


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
    step = form.compute("Cast", form.store_small("gaps", steps, width), to=TensorProto.INT32)
    axis, one = form.store("axis", np.array(0, np.int64)), form.store("one", np.array(1, np.int32))
    found = _gather(form, *table) if table else form.store("values", values)
    if skips.any():
        there = form.compute("Cast", step, to=TensorProto.BOOL)
        step = form.compute("Where", there, step, form.store("longest", np.array(longest, np.int32)))
        place = form.compute("Sub", form.compute("CumSum", step, axis), one)
        # No Compress here: onnxruntime would run it, and all behind it, at every call instead of once.
        number = form.compute("CumSum", form.compute("Cast", there, to=TensorProto.INT32), axis)
        # A step without a value writes the first one again, in its place: a place beyond the tensor's end, to be cut
        # off afterwards, would cost a copy of the tensor.
        none = form.store("none", np.array(0, np.int32))
        number = form.compute("Where", there, form.compute("Sub", number, one), none)
        found = form.compute("Gather", found, number)
        place = form.compute("Where", there, place, form.store("first", where[:1].astype(np.int32)))
    else:
        place = form.compute("Sub", form.compute("CumSum", step, axis), one)
    _scatter(form, shape, place, found, values.dtype)
    return form


def _pairs(tensor: TensorProto, shape: tuple[int, ...], where: Array, table: Array, codes: Array) -> Form:
    """A byte for each value that is not zero: the distance to the one before it and which value it is. Symbols that
    are left: the first value, and long distances to a zero between two.
    """
    form = Form(tensor.name, "distances and codes, a byte each")
    longest = (256 - SKIPS) // len(table)
    pairs = longest * len(table)
    lengths = longest << np.arange(min(255 - pairs, 16))
    steps = np.concatenate([np.repeat(np.arange(1, longest + 1), len(table)), lengths, where[:1]]).astype(np.int32)
    values = np.concatenate([np.tile(table, longest), np.zeros(len(lengths), table.dtype), table[codes[:1]]])
    symbols = np.append(
        np.uint8(len(steps) - 1), _symbols(np.diff(where), codes[1:], longest, len(table), len(lengths))
    )
    symbol = form.compute("Cast", form.store("pairs", symbols), to=TensorProto.INT32)
    step = form.compute("Gather", form.store("steps", steps), symbol)
    place = form.compute("CumSum", step, form.store("axis", np.array(0, np.int64)))
    found = form.compute("Gather", form.store("table", values), symbol)
    _scatter(form, shape, place, found, values.dtype)
    return form


def _symbols(gaps: Array, codes: Array, longest: int, values: int, lengths: int) -> Array:
    """The bytes of ``_pairs``: of a distance beyond the longest, its multiples of that first, as powers of two."""
    skipped = (gaps - 1) // longest
    bits = [(skipped >> bit) & 1 for bit in range(lengths - 1)] + [skipped >> (lengths - 1)]
    many = np.sum(bits, axis=0, dtype=np.int64) + 1
    symbols = np.zeros(int(many.sum()), np.uint8)
    at = np.cumsum(many) - many
    for bit, times in enumerate(bits):
        rows = np.flatnonzero(times)
        beyond = np.repeat(at[rows], times[rows]) + _counting(times[rows])
        symbols[beyond] = longest * values + bit
        at[rows] += times[rows]
    symbols[at] = (gaps - skipped * longest - 1) * values + codes
    return symbols


def _counting(times: Array) -> Array:
    """0, 1, ... as many as it says, one after the other."""
    ends = np.cumsum(times)
    counting: Array = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - times, times)
    return counting


def _scatter(form: Form, shape: tuple[int, ...], place: str, found: str, kind: Any) -> None:
    """Values at their places among zeros are the tensor."""
    size = form.store("size", np.array([int(np.prod(shape))], np.int64))
    zeros = form.compute("ConstantOfShape", size, value=numpy_helper.from_array(np.zeros(1, kind)))
    flat = form.compute("ScatterElements", zeros, place, found, axis=0)
    form.compute("Reshape", flat, form.store("shape", np.array(shape, np.int64)), last=True)


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
