"""A graph that is being rewritten: values by what makes and what takes them, and new nodes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from deepcompression.export.exported import Array
from deepcompression.export.onnx_sites import DOMAIN, MARK, Grid, grid_of


class Graph:
    """Of a model of ``onnx_ir``, changed in place."""

    def __init__(self, model: Any) -> None:
        self.model, self.graph = model, model.graph
        self._stored: dict[tuple[str, tuple[int, ...], bytes], Any] = {}
        self._number = 0

    def nodes(self, *operators: str) -> list[Any]:
        """Those of ONNX's own operators, in order."""
        return [node for node in self.graph if node.domain == "" and node.op_type in operators]

    def marks(self) -> list[Any]:
        """The nodes that mark rounded values."""
        return [node for node in self.graph if is_mark(node)]

    def constant(self, value: Any) -> Array | None:
        """The array that a value always is."""
        tensor = None if value is None else ir.convenience.get_const_tensor(value)
        return None if tensor is None else np.asarray(tensor.numpy())

    def store(self, array: Any, name: str) -> Any:
        """An array as a value; equal ones are stored once."""
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._stored:
            name = self._free(name)
            value = ir.Value(name=name, const_value=ir.tensor(array, name=name))
            value.shape, value.type = ir.Shape(array.shape), ir.TensorType(ir.DataType.from_numpy(array.dtype))
            self.graph.register_initializer(value)
            self._stored[key] = value
        return self._stored[key]

    def add(
        self,
        operator: str,
        inputs: Sequence[Any],
        name: str,
        outputs: int = 1,
        attributes: dict[str, Any] | None = None,
        domain: str = "",
    ) -> Any:
        """A node at the end (``finish`` sorts); its outputs, or the one that it has.

        Args:
            operator: ONNX's word for it.
            inputs: values, in its order.
            name: that its outputs' names begin with.
            outputs: how many it has.
            attributes: by name.
            domain: empty: ONNX's own.
        """
        node = ir.node(operator, list(inputs), attributes or {}, domain=domain, num_outputs=outputs)
        for output in node.outputs:
            output.name = self._free(name)
        self.graph.append(node)
        return node.outputs[0] if outputs == 1 else node.outputs

    def mark(self, value: Any, grid: Grid, name: str) -> Any:
        """The value on a grid.

        Args:
            value: to be rounded.
            grid: on which.
            name: of the site.
        """
        marked = self.add(MARK, [value], name, attributes={"site": name, **vars(grid)}, domain=DOMAIN)
        marked.shape, marked.type = value.shape, value.type
        return marked

    def users(self, value: Any) -> list[Any]:
        """The nodes that take a value."""
        return [use.node for use in value.uses()]

    def only_user(self, value: Any) -> Any:
        """The one node that takes a value, which nobody else sees; None where there is no such."""
        uses = value.uses()
        return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None

    def replace(self, old: Any, new: Any, users: Iterable[Any] | None = None) -> None:
        """Those nodes, or all and the graph's outputs too, take another value.

        Args:
            old: the value.
            new: what is taken in its place.
            users: the nodes; None: all.
        """
        some = None if users is None else {id(one) for one in users}
        for user, index in tuple(old.uses()):
            if some is None or id(user) in some:
                user.replace_input_with(index, new)
        if some is None and old.is_graph_output():
            place = [one is old for one in self.graph.outputs].index(True)
            self.graph.outputs[place] = self.renamed(new, old)

    def renamed(self, new: Any, old: Any) -> Any:
        """The new value under an output's name, with its type."""
        if new.is_graph_output() or new.is_graph_input() or new.is_initializer():
            new = self.add("Identity", [new], f"{old.name}:same")
        old.name, new.name = self._free(old.name), old.name
        new.shape, new.type = old.shape, old.type
        return new

    def drop(self, node: Any) -> None:
        """A node whose outputs nobody takes any more."""
        self.graph.remove(node, safe=True)

    def finish(self) -> Any:
        """The model, in order and without what nothing uses."""
        from onnxscript import optimizer

        self.graph.sort()
        optimizer.remove_unused_nodes(self.model)
        self.model.opset_imports.pop(DOMAIN, None)
        return self.model

    def _free(self, name: str) -> str:
        """A name that no value has yet."""
        self._number += 1
        return f"{name}.{self._number}"


def plain_shapes(model: Any) -> None:
    """What is reshaped to the batch's size and known sizes is reshaped to -1 and these: nothing is computed for it."""
    graph = Graph(model)
    for node in graph.nodes("Reshape"):
        parts = node.inputs[1].producer()
        if parts is None or parts.op_type != "Concat" or parts.domain:
            continue
        known = [graph.constant(one) for one in parts.inputs]
        open_ = [one for one, array in zip(parts.inputs, known, strict=True) if array is None]
        sizes = [size for array in known if array is not None for size in array]
        if len(open_) == 1 and _single(open_[0]) and all(size > 0 for size in sizes):
            shape = np.concatenate([np.array([-1]) if array is None else array for array in known])
            node.replace_input_with(1, graph.store(shape.astype(np.int64), "shape"))


def _single(value: Any) -> bool:
    """Whether a value has one element."""
    return value.shape is not None and list(value.shape) == [1]


def is_mark(node: Any) -> bool:
    """Whether a node marks a rounded value."""
    return node is not None and node.domain == DOMAIN and node.op_type == MARK


def static_mark(node: Any, bits: int = 8) -> bool:
    """Whether a node rounds to a known grid of at most so many bits."""
    return is_mark(node) and grid_of(node).static and grid_of(node).bits <= bits


def without_marks(model: Any) -> Any:
    """The float model, in place."""
    graph = Graph(model)
    for node in graph.marks():
        graph.replace(node.outputs[0], node.inputs[0])
        graph.drop(node)
    return graph.finish()
