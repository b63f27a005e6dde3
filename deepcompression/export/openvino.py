"""The ``.onnx`` of the target ``onnx`` for a batch of one, which OpenVINO opens with all shapes known.

Every smaller form was measured larger: ``.xml`` and ``.bin`` of the same graph by what the ``.xml`` says of each node,
and by more than ten times where OpenVINO folds tables and gaps before it writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression.errors import ExportError, in_one_line
from deepcompression.export import onnx, onnx_ends
from deepcompression.export.exported import Array, Exported
from deepcompression.export.onnx_run import FLOATS, Runtime

FILE = "model.openvino.onnx"
CARRIES = onnx.CARRIES
OPTIONS = onnx.OPTIONS
NOT_WITHIN = onnx.NOT_WITHIN
PACKAGES = (*onnx.PACKAGES, "openvino")
INSTALL = "pip install 'deep-compression[openvino]'"
BATCH = 1
# By default OpenVINO rounds floats to bfloat16, and what goes into integer weights to integers, on processors that
# multiply these faster: then outputs are not the model's.
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
INTEGERS = ("i4", "u4", "i8", "u8")
PRODUCT = "MatMulInteger"  # of ONNX, for ranges of each call
SCALED = "/DequantizationMultiply"
LAYERS = ("FullyConnected", "MatMul", "Convolution")


def check(model: nn.Module, sample: Sequence[Tensor], io: str = "float") -> None:
    """Raise ExportError where ``export`` could not write this model: a package is missing, its forward cannot be
    followed with a batch of any size, or OpenVINO does not take what it does.
    """
    onnx.check_packages("openvino", PACKAGES, INSTALL)
    onnx.check_taken(model, sample, _runtime())


def export(model: nn.Module, sample: Sequence[Tensor], path: Path, io: str = "float") -> Exported:
    """Writes ``model`` in eval mode to ``path``: opset 21, a batch of one, one file.

    Args:
        model: on the CPU.
        sample: what its forward takes by position, each (batch, ...); its outputs are compared one by one.
        path: what is there stays where something goes wrong.
        io: of inputs and outputs: ``float``, or ``integer``: uint8, of a model that rounds what it takes.

    Raises:
        ExportError: a package is missing, or the model cannot be written, or not with integers in and out.
        InvariantError: the file gives another tensor, or outputs beyond rounding.
        StorageError: ``path`` cannot be written.
    """
    onnx.check_packages("openvino", PACKAGES, INSTALL)
    made = onnx.write(model, sample, path, _runtime(io == "integer"))
    return replace(made, notes=(*made.notes, *_notes(_opened(path.read_bytes()))))


class OpenVinoSession:
    """A file in OpenVINO, on the CPU, with one stream.

    Args:
        content: the file.
        threads: of a call.
    """

    fixed_batch: int | None = BATCH

    def __init__(self, content: bytes, threads: int) -> None:
        import openvino

        core = openvino.Core()
        hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, **EXACT}
        model = core.read_model(content, b"")
        self.ends = _ends(model)
        self.compiled = core.compile_model(model, "CPU", hints)
        self.request = self.compiled.create_infer_request()
        self.names, self.outputs = (
            [one.any_name for one in side] for side in (self.compiled.inputs, self.compiled.outputs)
        )

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """See ``Session``."""
        arrays = onnx_ends.integers(self.ends, self.names, inputs)
        given = {place: np.ascontiguousarray(one) for place, one in enumerate(arrays)}
        found = self.request.infer(given, share_inputs=True)
        return onnx_ends.floats(self.ends, self.outputs, [found[output] for output in self.compiled.outputs])

    def kernels(self) -> list[dict[str, str]]:
        """What runs, as OpenVINO says it: ``layerType``, ``primitiveType``, ``runtimePrecision``,
        ``originalLayersNames``.
        """
        nodes: list[Any] = [node.get_rt_info() for node in self.compiled.get_runtime_model().get_ops()]
        words = ("layerType", "primitiveType", "runtimePrecision", "originalLayersNames")
        return [{word: node[word].astype(str) for word in words} for node in nodes if "primitiveType" in node]


def _ends(model: Any) -> dict[str, onnx_ends.End]:
    """The grids of inputs and outputs that are integers; OpenVINO keeps an ONNX file's metadata under this word."""
    if not model.has_rt_info("framework"):
        return {}
    metadata = {name: str(value) for name, value in model.get_rt_info("framework").value.items()}
    rounded = [one.any_name for one in (*model.inputs, *model.outputs) if one.element_type.get_type_name() == "u8"]
    return onnx_ends.told(metadata, rounded)


def load(path: Path, threads: int) -> OpenVinoSession:
    """Opens a file.

    Args:
        path: what ``export`` wrote.
        threads: of a call.

    Raises:
        ExportError: OpenVINO is missing, or does not open the file.
    """
    onnx.check_packages("openvino", ["openvino"], INSTALL)
    with in_one_line(f"export openvino: OpenVINO does not open {path}", ExportError):
        return OpenVinoSession(path.read_bytes(), threads)


def _runtime(ends: bool = False) -> Runtime:
    return Runtime("openvino", "OpenVINO", _opened, multiplied_as_floats, BATCH, ends)


def _opened(content: bytes) -> OpenVinoSession:
    with in_one_line("export openvino: OpenVINO does not take the model", ExportError):
        return OpenVinoSession(content, torch.get_num_threads())


def multiplied_as_floats(content: bytes) -> list[str]:
    """The names of the layers for which OpenVINO, on this machine, takes no kernel of integers.

    Args:
        content: a file.
    """
    from onnx import load_model_from_string

    nodes = [node for node in load_model_from_string(content).graph.node if node.op_type in (*FLOATS, PRODUCT)]
    integers = {name for one in _opened(content).kernels() for name in _multiplying_integers(one)}
    return [
        node.output[0].rpartition(":product")[0] if node.op_type == PRODUCT else node.name
        for node in nodes
        if node.name not in integers
    ]


def _multiplying_integers(kernel: Mapping[str, str]) -> set[str]:
    """The layers in a kernel that multiply integers; of several in one, those whose products are dequantized in it."""
    names = kernel["originalLayersNames"].split(",")
    if kernel["layerType"] == "Subgraph":
        names = [one for one in names if one.endswith(SCALED)]
    elif not _on_integers(kernel):
        return set()
    return {name.removesuffix(SCALED).removesuffix("/WithoutBiases") for name in names}


def _on_integers(kernel: Mapping[str, str]) -> bool:
    return kernel["primitiveType"].endswith("I8")


def _notes(session: OpenVinoSession) -> list[str]:
    layers = [one for one in session.kernels() if one["layerType"] in LAYERS and not _on_integers(one)]
    held = [one for one in layers if one["runtimePrecision"] in INTEGERS]
    return [
        *([f"{len(held)} layers multiply floats by weights that stay integers in memory"] if held else []),
        "a batch of one; reshape the model that OpenVINO has read to have another one",
        "compared with INFERENCE_PRECISION_HINT f32 and DYNAMIC_QUANTIZATION_GROUP_SIZE 0: without them OpenVINO "
        "may round floats to bfloat16, and what goes into integer weights to 8 bits",
    ]
