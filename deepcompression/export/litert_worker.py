"""What runs in LiteRT's own environment: ``python -P litert_worker.py FOLDER`` makes ``model.tflite`` of ``model.pt2``.

It knows nothing of this library, whose packages are not there. In the folder are the program, with a batch of one, and
``task.npz``: samples, integers of weights, and what the program gives before each of its grids on the samples. Behind
it are there the file and ``done.json``, which is written last.

A tensor of LiteRT's graph is found by its values: names and layouts are the converter's own.

One file: it is run by itself, where there is no other part of this library.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import sys
import threading
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
CLOSE = 1e-4  # of the largest magnitude: values in another order of summation
ON_GRID = 2e-6  # of a channel's largest weight: the converter multiplies BatchNorm into it, in float32
CUT = 0.25  # of a grid's range: what more is cut off of a value that others take too
CHANNELS = {"CONV_2D": 0, "FULLY_CONNECTED": 0, "DEPTHWISE_CONV_2D": 3}  # where a weight's output channels are
PASSING = ("MAX_POOL_2D", "RESHAPE", "TRANSPOSE", "PAD", "SQUEEZE", "EXPAND_DIMS", "SLICE")  # keep what is on a grid
NO_GRID = "its weights are on no grid of at most 8 bits for the tensor or its output channels"
NO_INPUT = "its input is not rounded"


def main(folder: Path) -> None:
    """Converts, and says in ``done.json`` what became of which layer."""
    task = dict(np.load(folder / "task.npz", allow_pickle=False))
    content = _converted(folder / "model.pt2")
    told: dict[str, Any] = {"float_bytes": len(content), "integers": [], "left": {}, "observed": [], "held": []}
    graph = Graph(content)
    layers = _layers(graph, task)
    if layers and "grid_0" in task:
        content = _on_integers(graph, layers, task, told)
    elif any(one.codes is not None for one in layers):
        content = _weights_alone(graph, layers, told)
    told["held"] = [_held(graph, one) for one in layers]
    (folder / "model.tflite").write_bytes(content)
    told["versions"] = {name: version(name) for name in ("litert-torch", "ai-edge-quantizer", "torch")}
    (folder / "done.json").write_text(json.dumps(told), encoding="utf-8")


def _converted(path: Path) -> bytes:
    import litert_torch
    import torch

    program = torch.export.load(str(path))
    taken = set(program.graph_signature.user_inputs)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder" and node.name in taken]
    sample = tuple(torch.zeros(one.shape, dtype=one.dtype) for one in values)
    made = path.with_name("float.tflite")
    litert_torch.convert(_without_unused(program.module()), sample).export(str(made))
    return made.read_bytes()


def _without_unused(module: Any) -> Any:
    """The program without buffers that it does not read: the converter has no constants of their kinds."""
    module.graph.eliminate_dead_code()
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in list(module.named_buffers()):
        if name not in used:
            parent, _, own = name.rpartition(".")
            delattr(module.get_submodule(parent), own)
    module.recompile()
    return module


class Graph:
    """A float file: its operators, and the values of all its tensors on a sample."""

    def __init__(self, content: bytes) -> None:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
        from ai_edge_quantizer.utils import tfl_flatbuffer_utils as buffers

        self.content = content
        model = buffers.read_model(content)
        (subgraph,) = model.subgraphs
        kinds = [buffers.TFL_OP_CODE_TO_NAME.get(one.builtinCode) for one in model.operatorCodes]
        self.operators = list(subgraph.operators)
        self.kinds = [getattr(kinds[one.opcodeIndex], "value", "") for one in self.operators]
        self.scopes = [buffers.get_op_scope(one, subgraph.tensors) for one in self.operators]
        self.names = [buffers.get_tensor_name(one) for one in subgraph.tensors]
        self.constants = {
            place: array
            for place, one in enumerate(subgraph.tensors)
            if (array := buffers.get_tensor_data(one, model.buffers)) is not None
        }
        self.made = [*subgraph.inputs, *(int(out) for one in self.operators for out in one.outputs)]
        self.interpreter = Interpreter(
            model_content=content,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        self.interpreter.allocate_tensors()
        self.inputs = inputs_of(self.interpreter)

    def values(self, sample: list[Array]) -> dict[int, Array]:
        """What each float tensor that is computed is, for one sample."""
        for place, array in zip(self.inputs, sample, strict=True):
            kind = self.interpreter._get_tensor_details(place, 0)["dtype"]
            self.interpreter.set_tensor(place, array.astype(kind))
        self.interpreter.invoke()
        found = {place: self.interpreter.get_tensor(place) for place in dict.fromkeys(self.made)}
        return {place: array for place, array in found.items() if array.dtype == np.float32}


def inputs_of(interpreter: Any) -> list[int]:
    """The places of the inputs, in the order of the program's arguments."""
    ((_, signature),) = interpreter._get_full_signature_list().items()
    names = sorted(signature["inputs"], key=lambda name: int(name.rpartition("_")[2]))
    return [int(signature["inputs"][name]) for name in names]


@dataclasses.dataclass
class Layer:
    """An operator with a constant weight: its integers and scales, where it lies on such."""

    number: int
    name: str
    weight: int
    codes: Array | None
    scales: Array | None


def _layers(graph: Graph, task: dict[str, Array]) -> list[Layer]:
    named = [str(name) for name in task.get("names", np.array([], str))]
    known = [(name, task[f"codes_{place}"]) for place, name in enumerate(named)]
    found = []
    for number, kind in enumerate(graph.kinds):
        weight = int(graph.operators[number].inputs[1]) if kind in CHANNELS else -1
        if weight in graph.constants:
            matched = _matched(graph.constants[weight], CHANNELS[kind], known)
            name, codes, scales = matched or (_module(graph.names[weight]), None, None)
            found.append(Layer(number, name, weight, codes, scales))
    return found


def _module(name: str) -> str:
    """The module of which a tensor's name tells: package.Net/package.Block_layer1/torch.nn.Conv2d_conv1;2."""
    parts = [one.partition("_")[2] for one in name.partition(";")[0].split("/")[1:]]
    return ".".join(one for one in parts if one) or name


def _matched(weight: Array, axis: int, known: list[tuple[str, Array]]) -> tuple[str, Array, Array] | None:
    """Which of the model's weights this is, times a factor for each channel: integers in this layout, and scales."""
    rows = np.moveaxis(weight, axis, 0)
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    for name, codes in known:
        if codes.size == weight.size and len(codes) == len(rows):
            ours = np.moveaxis(codes, 1, -1).reshape(len(codes), -1).astype(np.float64)  # channels last
            if (scales := _scales(flat, ours)) is not None:
                signed = (ours * np.sign(scales)[:, None]).astype(np.int8).reshape(rows.shape)
                return name, np.moveaxis(signed, 0, axis), np.abs(scales)
    return None


def _scales(rows: Array, codes: Array) -> Array | None:
    """The factor of each row that makes it of these integers; None where one has none."""
    size = np.square(codes).sum(1)
    scales = np.divide((rows * codes).sum(1), size, where=size > 0, out=np.zeros(len(rows)))
    apart = np.abs(rows - codes * scales[:, None]).max(1)
    if (apart > ON_GRID * np.abs(rows).max(1)).any():
        return None
    used = np.abs(scales[scales != 0])
    return np.where(scales == 0, np.median(used) if len(used) else 1.0, scales)  # a channel that is 0 keeps its bias


@dataclasses.dataclass(frozen=True)
class Grid:
    """Signed integers of 8 bits."""

    scale: float
    zero: int

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest value."""
        return (-128 - self.zero) * self.scale, (127 - self.zero) * self.scale


def _on_integers(graph: Graph, layers: list[Layer], task: dict[str, Array], told: dict[str, Any]) -> bytes:
    count = len(task["input_0"])
    inputs = [task[f"input_{place}"] for place in range(len(graph.inputs))]
    seen = [graph.values([one[at : at + 1] if one.ndim else one for one in inputs]) for at in range(count)]
    ranges = {
        place: (
            min(0.0, *(float(one[place].min()) for one in seen)),
            max(0.0, *(float(one[place].max()) for one in seen)),
        )
        for place in seen[0]
        if seen[0][place].size
    }
    grids = _sites(seen, task)
    _pass_on(graph, grids)
    _drop_narrow(graph, grids, ranges, told)
    integers = [one for one in layers if one.codes is not None and int(graph.operators[one.number].inputs[0]) in grids]
    for one in layers:
        if one not in integers:
            told["left"][one.name] = NO_GRID if one.codes is None else NO_INPUT
    if not integers:
        return _weights_alone(graph, layers, told)
    told["integers"] = [one.name for one in integers]
    told["observed"] = [graph.names[place] for place in ranges if place not in grids]
    statistics = {graph.names[place]: _statistic(ends, grids.get(place)) for place, ends in ranges.items()}
    return _quantized(graph, layers, integers, statistics, told)


def _sites(seen: list[dict[int, Array]], task: dict[str, Array]) -> dict[int, Grid]:
    """The grid of each tensor that has the values of a site, on every sample."""
    ordered = [{place: np.sort(array.ravel()) for place, array in one.items()} for one in seen]
    found: dict[int, Grid] = {}
    for number in range(sum(name.startswith("grid_") for name in task)):
        wanted = np.sort(task[f"site_{number}"].reshape(len(seen), -1), axis=1)
        grid = Grid(float(task[f"grid_{number}"][0]), int(task[f"grid_{number}"][1]))
        for place in ordered[0]:
            if all(_close(one[place], row) for one, row in zip(ordered, wanted, strict=True)):
                found[place] = grid
    return found


def _close(found: Array, wanted: Array) -> bool:
    if found.shape != wanted.shape or not found.size:
        return False
    return bool(np.abs(found - wanted).max() <= CLOSE * np.abs(wanted).max())


def _pass_on(graph: Graph, grids: dict[int, Grid]) -> None:
    """What is before and behind a pool or a reshape is on one grid."""
    pairs = [
        (int(one.inputs[0]), int(one.outputs[0]))
        for one, kind in zip(graph.operators, graph.kinds, strict=True)
        if kind in PASSING
    ]
    for before, behind in reversed(pairs):
        if behind in grids:
            grids.setdefault(before, grids[behind])
    for before, behind in pairs:
        if before in grids:
            grids[behind] = grids[before]


def _drop_narrow(
    graph: Graph, grids: dict[int, Grid], ranges: dict[int, tuple[float, float]], told: dict[str, Any]
) -> None:
    """A grid that cuts off much of what others than layers take is not theirs: the value's own range is taken."""
    for number, one in enumerate(graph.operators):
        for place in map(int, one.inputs) if graph.kinds[number] not in (*CHANNELS, *PASSING) else ():
            if place in grids and place in ranges:
                low, high = grids[place].ends
                if max(ranges[place][1] - high, low - ranges[place][0]) > CUT * (high - low):
                    del grids[place]
                    told["wider"] = [*told.get("wider", []), graph.names[place]]


def _statistic(ends: tuple[float, float], grid: Grid | None) -> dict[str, Any]:
    low, high = grid.ends if grid else ends
    given = {"min": np.array([low], np.float32), "max": np.array([high], np.float32)}
    return {**given, "grid": grid} if grid else given


def _weights_alone(graph: Graph, layers: list[Layer], told: dict[str, Any]) -> bytes:
    """Weights on grids as integers, which the runtime makes floats again."""
    for one in layers:
        if one.codes is None:
            told["left"][one.name] = NO_GRID
    return _quantized(graph, layers, [], None, told)


def _quantized(
    graph: Graph,
    layers: list[Layer],
    integers: list[Layer],
    statistics: dict[str, Any] | None,
    told: dict[str, Any],
) -> bytes:
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    _register({_key(graph.constants[one.weight]): one for one in layers if one.codes is not None})
    names = qtyping.TFLOperationName
    made = quantizer.Quantizer(graph.content)
    if statistics is not None:
        made.add_static_config(".*", names.ALL_SUPPORTED, 8, 8)
        for name in (names.INPUT, names.OUTPUT):
            made.update_quantization_recipe(".*", name, algorithm_key=AlgorithmName.NO_QUANTIZE)
    for one in layers:
        kind, where = names(graph.kinds[one.number]), f"^{re.escape(graph.scopes[one.number])}$"
        if one in integers:
            made.add_static_config(where, kind, 8, 8)
        elif one.codes is not None:
            made.add_weight_only_config(where, kind, 8)
        else:
            made.update_quantization_recipe(where, kind, algorithm_key=AlgorithmName.NO_QUANTIZE)
    return bytes(made.quantize(statistics, enable_progress_report=False).quantized_model)


def _held(graph: Graph, layer: Layer) -> dict[str, Any]:
    """How a layer's weight lies in the file, and what it is called there."""
    weight = graph.constants[layer.weight]
    output = graph.names[int(graph.operators[layer.number].outputs[0])]
    told = {"tensor": layer.name, "weight": graph.names[layer.weight], "output": output, "dense_bytes": weight.nbytes}
    if layer.codes is None or layer.scales is None:
        return {**told, "form": str(weight.dtype), "bytes": weight.nbytes}
    return {**told, "form": "int8", "bytes": layer.codes.size + 12 * len(layer.scales)}


def _key(weight: Array) -> bytes:
    return weight.tobytes()


def _register(weights: dict[bytes, Layer]) -> None:
    """The quantizer's own way with all operators, but with the model's numbers in place of its own."""
    from ai_edge_quantizer import algorithm_manager as manager
    from ai_edge_quantizer.algorithms.uniform_quantize import naive_min_max_quantize

    def numbers(op_info: Any, config: Any, content: Any = None, statistic: Any = None) -> Any:
        found = naive_min_max_quantize.get_tensor_quant_params(op_info, config, content, statistic)
        layer = weights.get(_key(content)) if content is not None else None
        if layer is not None and layer.scales is not None:
            scales = layer.scales.astype(np.float32).reshape(found.scale.shape)
            return dataclasses.replace(
                found, scale=scales, zero_point=np.zeros_like(found.zero_point), quantized_data=layer.codes
            )
        grid = (statistic or {}).get("grid") if content is None else None
        if grid is None:
            return found
        scale, zero = np.full_like(found.scale, grid.scale), np.full_like(found.zero_point, grid.zero)
        return dataclasses.replace(found, scale=scale, zero_point=zero)

    for name, put in manager.MIN_MAX_OP_NAME_MATERIALIZE_FUNC_DICT.items():
        manager.register_quantized_op(
            manager.AlgorithmName.MIN_MAX_UNIFORM_QUANT,
            name,
            naive_min_max_quantize.init_qsvs,
            calibration_func=naive_min_max_quantize.min_max_calibrate,
            materialize_func=functools.partial(put, numbers),
        )


def _end_with_parent() -> None:
    """Standard input ends when the process that asked for this does, however it ends."""
    while os.read(0, 1):  # not sys.stdin, whose lock the interpreter wants at its end
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    main(Path(sys.argv[1]))
