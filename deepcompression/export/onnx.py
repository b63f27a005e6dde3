"""A plain ``.onnx`` that stays small: pruned and shared weights lie in it as small integers.

Where the model rounds values to integers the file says so, and runtimes compute with integers (``onnx_integers``). The
exporter's own rewriting is left out: it would multiply a BatchNorm into the convolution before it, after which no two
channels share values. Runtimes do that themselves when they load the file.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deepcompression._atomic import written
from deepcompression.errors import ExportError, InvariantError, in_one_line
from deepcompression.export.exported import Exported, Held
from deepcompression.export.onnx_run import OnnxSession
from deepcompression.export.onnx_sites import marked, rounds
from deepcompression.export.ran import difference
from deepcompression.network.edits.quantize_values import INSIDE, OnGrid, quantizers
from deepcompression.network.trace import resting

if TYPE_CHECKING:
    from deepcompression.export.onnx_agreement import Agreement

FILE = "model.onnx"
CARRIES = frozenset({"resize", "select_inputs", "bypass", "fold", "quantize_values"})
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 21  # the first one with integers of 4 bits
ROUNDING = 1e-4  # of the largest output; sums in another order differ by about a hundredth of it


def check(model: nn.Module, sample: Sequence[Tensor]) -> None:
    """Raise ExportError where ``export`` could not write this model: a package is missing, or its forward cannot be
    followed with a batch of any size.
    """
    _check_packages()
    _traced(model, sample)


def export(model: nn.Module, sample: Sequence[Tensor], path: Path) -> Exported:
    """Writes ``model`` in eval mode to ``path``: opset 21, a batch of any size, float inputs and outputs, one file.

    Args:
        model: on the CPU.
        sample: what its forward takes by position, each (batch, ...); its outputs are compared.
        path: what is there stays where something goes wrong.

    Raises:
        ExportError: a package is missing, or the model cannot be written.
        InvariantError: the file gives another tensor, or outputs beyond rounding.
        StorageError: ``path`` cannot be written.
    """
    _check_packages()
    sample = _several(sample)
    traced = _traced(model, sample)
    with in_one_line("export onnx: PyTorch's exporter does not take the model", ExportError):
        graph, float_bytes = _translated(traced)
    if rounds(model):
        content, tensors, agreement = _on_integers(model, sample, graph)
        apart, notes = agreement.largest, agreement.notes
    else:
        content, tensors = _compressed(_bare(_proto(graph)))
        apart, notes = _difference(model, sample, content), ()
    with written(path, parents=True) as file:
        file.write(content)
    return Exported(len(content), float_bytes, apart, tensors, notes, integers=rounds(model))


def load(path: Path, threads: int) -> OnnxSession:
    """Opens a file.

    Args:
        path: what ``export`` wrote.
        threads: of an op.

    Raises:
        ExportError: onnxruntime is missing, or does not open the file.
    """
    _check_packages()
    with in_one_line(f"export onnx: onnxruntime does not open {path}", ExportError):
        return OnnxSession(str(path), threads)


def _check_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"export onnx: needs {', '.join(missing)}: pip install 'deep-compression[onnx]'")


def _several(sample: Sequence[Tensor]) -> list[Tensor]:
    """PyTorch takes a batch of one for one that always is."""
    return [torch.cat([one, one]) if one.ndim and len(one) == 1 else one for one in sample]


def _traced(model: nn.Module, sample: Sequence[Tensor]) -> torch.export.ExportedProgram:
    for name, module in model.named_modules():
        for one in quantizers(module):
            if not isinstance(one, OnGrid) or one.site.side in INSIDE:
                raise ExportError(
                    f"export onnx: {one.site} has values that this target does not write (module {name}, edit "
                    f"{one.kind}); export the model without that edit"
                )
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if one.ndim else None for one in sample)
    doing = in_one_line("export onnx: torch.export does not take the model", ExportError)
    with resting(model), marked(model), _silent(), doing:
        return torch.export.export(model, tuple(_several(sample)), dynamic_shapes=shapes)


def _translated(traced: torch.export.ExportedProgram) -> tuple[Any, int]:
    """The graph with the model's own tensors and its marks, and the bytes of the file that PyTorch would write of the
    float model.
    """
    from onnxscript import optimizer

    from deepcompression.export.onnx_graph import plain_shapes, without_marks

    with _silent():
        program: Any = torch.onnx.export(
            traced, dynamo=True, opset_version=OPSET, external_data=False, optimize=False, verbose=False
        )
        optimizer.fold_constants(program.model)
        plain_shapes(program.model)
        optimizer.remove_unused_nodes(program.model)
        graph = program.model.clone()
        without_marks(program.model)
        program.optimize()
        return graph, _bare(program.model_proto).ByteSize()


def _proto(graph: Any) -> Any:
    import onnx_ir

    return onnx_ir.to_proto(graph)


def _on_integers(model: nn.Module, sample: Sequence[Tensor], graph: Any) -> tuple[bytes, list[Held], Agreement]:
    """The file, and how it agrees with the model."""
    from deepcompression.export import onnx_agreement, onnx_integers, onnx_run

    threads, arrays = torch.get_num_threads(), [one.numpy() for one in sample]
    reference = _bare(_proto(onnx_integers.marks_as_they_are(graph)))
    placed_graph, placed = onnx_integers.place(graph, lambda names: onnx_run.ranges(reference, names, arrays, threads))
    content, tensors = _compressed(_bare(_proto(placed_graph)))
    parts = _parts(sample)
    wanted = [[one.numpy() for one in _outputs(model, part)] for part in parts]
    inputs = [[one.numpy() for one in part] for part in parts]
    return content, tensors, onnx_agreement.agreement(content, reference, placed, wanted, inputs, threads)


def _parts(sample: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    """The sample, and its first element alone."""
    return [sample, [one[:1] if one.ndim else one for one in sample]]


def _outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    from torch.utils import _pytree

    with resting(model), torch.no_grad():
        return [one for one in _pytree.tree_leaves(model(*inputs)) if isinstance(one, Tensor)]


def _bare(model: Any) -> Any:
    """Without the notes on where in Python each node comes from, which grow with the model."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


def _compressed(model: Any) -> tuple[bytes, list[Held]]:
    """The file, each tensor in its smallest form, which onnxruntime was seen to decode bit for bit."""
    import onnx

    from deepcompression.export import onnx_weights

    tensors = [one for one in model.graph.initializer if onnx_weights.worth_a_look(one)]
    forms = [onnx_weights.smallest(one) for one in tensors]
    held = [Held(one.name, form.name, form.bytes, one.ByteSize()) for one, form in zip(tensors, forms, strict=True)]
    changed = [(one, form) for one, form in zip(tensors, forms, strict=True) if form.nodes]
    if changed:
        _check_bits(onnx_weights.alone(model, [form for _, form in changed], [one for one, _ in changed]), changed)
        onnx_weights.put(model, [form for _, form in changed])
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(), held


def _check_bits(model: Any, changed: Sequence[tuple[Any, Any]]) -> None:
    from onnx import numpy_helper

    decoded = _session(model.SerializeToString())([])
    for (tensor, form), values in zip(changed, decoded, strict=True):
        if values.tobytes() != numpy_helper.to_array(tensor).tobytes():
            raise InvariantError(f"export onnx: {tensor.name} ({form.name}) decodes to other bits than were written")


def _difference(model: nn.Module, sample: Sequence[Tensor], content: bytes) -> float:
    """The largest difference of an output, over the sample and over its first element alone."""
    session, largest = _session(content), 0.0
    for inputs in _parts(sample):
        for output, array in zip(_outputs(model, inputs), session([one.numpy() for one in inputs]), strict=True):
            largest = max(largest, difference("onnx", output, array, ROUNDING))
    return largest


def _session(content: bytes) -> OnnxSession:
    return OnnxSession(content, torch.get_num_threads())


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what PyTorch's exporter says of packages that it could use, and of its own future."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
