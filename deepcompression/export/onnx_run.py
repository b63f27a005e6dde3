"""A graph in onnxruntime: what it gives, what range its values have, and which layers it multiplies as floats."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepcompression.export import onnx_ends
from deepcompression.export.exported import Array, Session

FLOATS = (
    *("Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"),
    *("MatMulNBits", "LSTM", "GRU", "RNN"),
)


@dataclass(frozen=True)
class Runtime:
    """What opens a ``.onnx``.

    Args:
        target: the export's word, for errors.
        name: for people.
        open: a session of a file's content.
        floats: the names of the layers that it multiplies as floats, on this machine.
        batch: how many samples files have; None: any number.
        ends: whether files take and give integers.
    """

    target: str
    name: str
    open: Callable[[bytes], Session]
    floats: Callable[[bytes], Collection[str]]
    batch: int | None = None
    ends: bool = False


def onnxruntime(threads: int) -> Runtime:
    """As the target ``onnx`` has it.

    Args:
        threads: of an op.
    """
    return Runtime(
        target="onnx",
        name="onnxruntime",
        open=lambda content: OnnxSession(content, threads),
        floats=lambda content: multiplied_as_floats(content, threads),
    )


class OnnxSession:
    """A file in onnxruntime, on the CPU. One that takes and gives integers takes and gives floats here.

    Args:
        content: the file, or its path.
        threads: of an op.
        options: further attributes of onnxruntime's ``SessionOptions``.
    """

    fixed_batch: int | None = None

    def __init__(self, content: bytes | str, threads: int, **options: Any) -> None:
        import onnxruntime

        given = onnxruntime.SessionOptions()
        for name, value in {"log_severity_level": 3, "intra_op_num_threads": threads, **options}.items():
            setattr(given, name, value)
        self.session = onnxruntime.InferenceSession(content, given, providers=["CPUExecutionProvider"])
        self.names = [one.name for one in self.session.get_inputs()]
        self.outputs = [one.name for one in self.session.get_outputs()]
        ends = (*self.session.get_inputs(), *self.session.get_outputs())
        rounded = [one.name for one in ends if one.type == "tensor(uint8)"]
        self.ends = onnx_ends.told(self.session.get_modelmeta().custom_metadata_map, rounded)

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """See ``Session``."""
        given = onnx_ends.integers(self.ends, self.names, inputs)
        found = self.session.run(None, dict(zip(self.names, given, strict=True)))
        return onnx_ends.floats(self.ends, self.outputs, found)


def values(
    model: Any, names: Sequence[str], opened: Callable[[bytes], Session]
) -> Callable[[Sequence[Array]], list[Array]]:
    """What gives values from within a model.

    Args:
        model: a ``ModelProto``, not changed.
        names: of the values, in the order of the answers.
        opened: a session of a file's content.
    """
    import onnx

    different = list(dict.fromkeys(names))
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in different)
    session = opened(watched.SerializeToString())

    def found(inputs: Sequence[Array]) -> list[Array]:
        given = dict(zip(different, session(inputs), strict=True))
        return [given[name] for name in names]

    return found


def ranges(
    model: Any, names: Sequence[str], sample: Sequence[Array], threads: int
) -> Mapping[str, tuple[float, float]]:
    """The least and the greatest of values on a sample, one element at a time, so that memory is that of one.

    Args:
        model: a ``ModelProto``, not changed.
        names: of the values.
        sample: the model's inputs, each (batch, ...).
        threads: of an op.
    """
    session = values(model, names, onnxruntime(threads).open)
    found = dict.fromkeys(names, (np.inf, -np.inf))
    for at in range(max((len(one) for one in sample if one.ndim), default=1)):
        for name, value in zip(names, session([one[at : at + 1] if one.ndim else one for one in sample]), strict=True):
            least, most = found[name]
            found[name] = min(least, float(value.min())), max(most, float(value.max()))
    return found


def multiplied_as_floats(content: bytes, threads: int) -> list[str]:
    """The names of the layers for which onnxruntime, on this machine, takes a kernel of floats."""
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "loaded.onnx"
        OnnxSession(content, threads, optimized_model_filepath=str(path))
        graph = onnx.load(path, load_external_data=False).graph
    return [node.name for node in graph.node if node.op_type in FLOATS]
