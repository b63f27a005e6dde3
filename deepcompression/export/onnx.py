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
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression._atomic import written
from deepcompression.errors import ExportError, InvariantError, in_one_line
from deepcompression.export.agreement import together
from deepcompression.export.exported import Array, Exported, Held, Session
from deepcompression.export.onnx_run import OnnxSession, Runtime, onnxruntime
from deepcompression.export.onnx_sites import marked, rounds
from deepcompression.export.ran import difference
from deepcompression.network.edits.quantize_values import INSIDE, OnGrid, quantizers
from deepcompression.network.trace import resting

FILE = "model.onnx"
OPTIONS = {"io": ("float", "integer")}
CARRIES = frozenset({"resize", "select_inputs", "bypass", "fold", "quantize_values", "dictionary", "threshold"})
NOT_WITHIN = INSIDE  # sides of sites: recurrent layers are written whole
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INSTALL = "pip install 'deep-compression[onnx]'"
OPSET = 21  # the first one with integers of 4 bits
ROUNDING = 1e-4  # of the largest output; sums in another order differ by about a hundredth of it


def check(model: nn.Module, sample: Sequence[Tensor], io: str = "float") -> None:
    """Raise ExportError where ``export`` could not write this model: a package is missing, its forward cannot be
    followed with a batch of any size, or onnxruntime does not take what it does.
    """
    check_packages("onnx", PACKAGES, INSTALL)
    check_taken(model, sample, onnxruntime(1))


def export(model: nn.Module, sample: Sequence[Tensor], path: Path, io: str = "float") -> Exported:
    """Writes ``model`` in eval mode to ``path``: opset 21, a batch of any size, one file.

    Args:
        model: on the CPU.
        sample: what its forward takes by position, each (batch, ...); its outputs are compared.
        path: what is there stays where something goes wrong.
        io: of inputs and outputs: ``float``, or ``integer``: uint8, of a model that rounds what it takes.

    Raises:
        ExportError: a package is missing, or the model cannot be written, or not with integers in and out.
        InvariantError: the file gives another tensor, or outputs beyond rounding.
        StorageError: ``path`` cannot be written.
    """
    check_packages("onnx", PACKAGES, INSTALL)
    return write(model, sample, path, replace(onnxruntime(torch.get_num_threads()), ends=io == "integer"))


def check_taken(model: nn.Module, sample: Sequence[Tensor], runtime: Runtime) -> None:
    """Raise ExportError where a model cannot be followed or translated, or a runtime does not open it as it stands.

    Args:
        model: on the CPU.
        sample: what its forward takes by position, each (batch, ...).
        runtime: which opens it.
    """
    program = traced(model, sample, runtime.target)
    with in_one_line(f"export {runtime.target}: PyTorch's exporter does not take the model", ExportError):
        proto = _bare(_proto(_translated(program)[0]))
    if runtime.batch:
        fixed(proto, runtime.batch)
    with in_one_line(f"export {runtime.target}: {runtime.name} does not take the model", ExportError):
        runtime.open(proto.SerializeToString())


def write(model: nn.Module, sample: Sequence[Tensor], path: Path, runtime: Runtime) -> Exported:
    """Writes a file for a runtime, in which its weights and outputs are compared before.

    Args:
        model: on the CPU.
        sample: what its forward takes by position, each (batch, ...).
        path: what is there stays where something goes wrong.
        runtime: in which it is compared.

    Raises:
        ExportError, InvariantError, StorageError: as ``export``.
    """
    if runtime.ends and not rounds(model):
        raise ExportError(
            f"export {runtime.target}: io: integer: the model rounds nothing that it takes, so that there are no "
            "integers to give; quantize its activations, or leave io out"
        )
    sample = _several(sample)
    program = traced(model, sample, runtime.target)
    with in_one_line(f"export {runtime.target}: PyTorch's exporter does not take the model", ExportError):
        graph, float_bytes = _translated(program)
    if rounds(model):
        content, tensors, apart, notes = _on_integers(model, sample, graph, runtime)
    else:
        content, tensors = _compressed(_bare(_proto(graph)), runtime)
        apart, notes = _difference(model, sample, content, runtime), ()
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
    check_packages("onnx", PACKAGES, INSTALL)
    with in_one_line(f"export onnx: onnxruntime does not open {path}", ExportError):
        return OnnxSession(str(path), threads)


def check_packages(target: str, packages: Sequence[str], install: str) -> None:
    """Raise ExportError where a target's packages are missing: which, and what installs them.

    Args:
        target: its word.
        packages: as they are imported.
        install: the command.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"export {target}: needs {', '.join(missing)}: {install}")


def _several(sample: Sequence[Tensor]) -> list[Tensor]:
    """PyTorch takes a batch of one for one that always is."""
    return [torch.cat([one, one]) if one.ndim and len(one) == 1 else one for one in sample]


def traced(model: nn.Module, sample: Sequence[Tensor], target: str) -> torch.export.ExportedProgram:
    """What PyTorch follows of a forward, with a batch of any size and marks where values are rounded.

    Args:
        model: on the CPU.
        sample: what its forward takes by position, each (batch, ...).
        target: its word, for errors.

    Raises:
        ExportError: it cannot be followed, or rounds values in a way that is not written.
    """
    for name, module in model.named_modules():
        for one in quantizers(module):
            if not isinstance(one, OnGrid) or one.site.side in INSIDE:
                raise ExportError(
                    f"export {target}: {one.site} has values that this target does not write (module {name}, edit "
                    f"{one.kind}); export the model without that edit"
                )
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if one.ndim else None for one in sample)
    doing = in_one_line(f"export {target}: torch.export does not take the model", ExportError)
    with resting(model), marked(model, target), _silent(), doing:
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


def _on_integers(
    model: nn.Module, sample: Sequence[Tensor], graph: Any, runtime: Runtime
) -> tuple[bytes, list[Held], float, Sequence[str]]:
    """The file, its tensors, the largest difference of an output, notes."""
    from deepcompression.export import onnx_agreement, onnx_ends, onnx_integers, onnx_run

    threads, arrays = torch.get_num_threads(), [one.numpy() for one in sample]
    reference = _bare(_proto(onnx_integers.marks_as_they_are(graph)))
    observe = lambda names: onnx_run.ranges(reference, names, arrays, threads)  # noqa: E731
    try:
        placed_graph, placed = onnx_integers.place(graph, observe, ends=runtime.ends)
    except ExportError as error:
        raise ExportError(f"export {runtime.target}: io: integer: {error}") from None
    proto = _bare(_proto(placed_graph))
    onnx_ends.tell(proto, placed.ends)
    content, tensors = _compressed(proto, runtime)
    pairs = _pairs(model, sample, runtime.open(content))
    inputs = [one.numpy() for one in _calls(sample, runtime.batch)[0]]
    found = onnx_agreement.agreement(runtime, content, (reference, placed), pairs, inputs)
    return content, tensors, found.largest, found.notes


def _calls(sample: Sequence[Tensor], batch: int | None) -> list[Sequence[Tensor]]:
    """The sample and its first element alone; each element, where a file takes one."""
    count = max((len(one) for one in sample if one.ndim), default=1)
    singles: list[Sequence[Tensor]] = [[one[at : at + 1] if one.ndim else one for one in sample] for at in range(count)]
    return singles if batch else [sample, singles[0]]


def _pairs(model: nn.Module, sample: Sequence[Tensor], session: Session) -> list[tuple[Array, Array]]:
    """Outputs: PyTorch's and the session's; of single elements those of all together."""
    found = []
    for inputs in _calls(sample, session.fixed_batch):
        given = session([one.numpy() for one in inputs])
        found.append(list(zip(_outputs(model, inputs), given, strict=True)))
    if session.fixed_batch is None:
        return [pair for some in found for pair in some]
    return together(found)


def _outputs(model: nn.Module, inputs: Sequence[Tensor]) -> list[Array]:
    from torch.utils import _pytree

    with resting(model), torch.no_grad():
        return [one.numpy() for one in _pytree.tree_leaves(model(*inputs)) if isinstance(one, Tensor)]


def _bare(model: Any) -> Any:
    """Without the notes on where in Python each node comes from, which grow with the model."""
    del model.metadata_props[:], model.graph.metadata_props[:], model.graph.value_info[:]
    for part in (*model.graph.node, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del part.metadata_props[:]
        part.doc_string = ""
    return model


def _compressed(model: Any, runtime: Runtime) -> tuple[bytes, list[Held]]:
    """The file, each tensor in its smallest form, which the runtime was seen to decode bit for bit."""
    import onnx

    from deepcompression.export import onnx_weights

    tensors = [one for one in model.graph.initializer if onnx_weights.worth_a_look(one)]
    forms = [onnx_weights.smallest(one) for one in tensors]
    held = [Held(one.name, form.name, form.bytes, one.ByteSize()) for one, form in zip(tensors, forms, strict=True)]
    changed = [(one, form) for one, form in zip(tensors, forms, strict=True) if form.nodes]
    if changed:
        alone = onnx_weights.alone(model, [form for _, form in changed], [one for one, _ in changed])
        _check_bits(runtime, alone, changed)
        onnx_weights.put(model, [form for _, form in changed])
    if runtime.batch:
        fixed(model, runtime.batch)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(), held


def _check_bits(runtime: Runtime, model: Any, changed: Sequence[tuple[Any, Any]]) -> None:
    from onnx import numpy_helper

    decoded = runtime.open(model.SerializeToString())([])
    for (tensor, form), values in zip(changed, decoded, strict=True):
        if values.tobytes() != numpy_helper.to_array(tensor).tobytes():
            raise InvariantError(
                f"export {runtime.target}: {tensor.name} ({form.name}) decodes to other bits than were written"
            )


def fixed(model: Any, batch: int) -> None:
    """Inputs of a file have this many samples, and outputs as many, in place.

    Args:
        model: a ``ModelProto`` whose batch has any size.
        batch: how many.
    """
    inputs, outputs = (
        [size for value in values for size in value.type.tensor_type.shape.dim if size.dim_param]
        for values in (model.graph.input, model.graph.output)
    )
    names = {size.dim_param for size in inputs}  # of the one size that is open
    for size in (*inputs, *outputs):
        if size.dim_param in names:
            size.dim_value = batch
        else:
            size.Clear()


def _difference(model: nn.Module, sample: Sequence[Tensor], content: bytes, runtime: Runtime) -> float:
    """The largest difference of an output."""
    pairs = _pairs(model, sample, runtime.open(content))
    return max((difference(runtime.target, wanted, got, ROUNDING) for wanted, got in pairs), default=0.0)


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
