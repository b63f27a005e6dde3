"""An ``.mlpackage`` for iOS 18 and macOS 15 whose weights are masks, palettes and integers: those of the model, bit
for bit.

The converter's own folding of BatchNorm is left out: it would give each channel values of its own. Core ML runs on
Apple's systems alone; elsewhere the written package is read back and its weights are decoded and compared.
"""

from __future__ import annotations

import contextlib
import io
import logging
import platform
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression._atomic import folder_written
from deepcompression.errors import ExportError, InvariantError, in_one_line
from deepcompression.export import onnx, pt2
from deepcompression.export.exported import Array, Exported, Held
from deepcompression.network.edits.integers import levels
from deepcompression.network.edits.quantize_values import INSIDE, After, Before, OnGrid, Quantizer, quantizers

FILE = "model.mlpackage"
CARRIES = frozenset({"resize", "select_inputs", "bypass", "fold", "quantize_values", "dictionary", "threshold"})
NOT_WITHIN = INSIDE
RANGES = ("static",)
PACKAGES = ("coremltools",)
INSTALL = "pip install 'deep-compression[coreml]'"
TAKERS = ("conv", "conv_transpose", "linear", "matmul", "gather")  # of a weight that is held in another form
ROUNDING = 1e-3  # of the largest output, on Apple's systems, where floats may be float16 inside
GRID_ROUNDING = 0.1  # the same where values are rounded, between two steps either way
NOT_TAKEN = "executorch*"  # of what coremltools saves: for another tool's debugger
SHOWN = 5


def check(model: nn.Module, sample: Sequence[Tensor]) -> None:
    """Raise ExportError where ``export`` could not write this model: coremltools is missing or does not take it, its
    forward cannot be followed, or is rounded in a way that is not written.
    """
    onnx.check_packages("coreml", PACKAGES, INSTALL)
    _converted(_program(model, sample))


def export(model: nn.Module, sample: Sequence[Tensor], path: Path) -> Exported:
    """Writes ``model`` in eval mode to the folder ``path``: a batch of one, float32 inputs and outputs.

    Args:
        model: on the CPU.
        sample: what its forward takes by position, each (batch, ...).
        path: of the folder; what is there stays where something goes wrong.

    Raises:
        ExportError: coremltools is missing, or does not take the model.
        InvariantError: the package gives other weights, or, on Apple's systems, other outputs.
        StorageError: ``path`` cannot be written.
    """
    onnx.check_packages("coreml", PACKAGES, INSTALL)
    program, rounding = _program(model, sample), GRID_ROUNDING if _rounds(model) else ROUNDING
    found, float_bytes = _converted(program), _saved_bytes(_converted(program))
    with _silent(), in_one_line("export coreml: coremltools does not take the compressed weights", ExportError):
        held, wanted = _shrink(found, program.graph_signature.inputs_to_parameters)
        package = _packed(found)
    with tempfile.TemporaryDirectory(prefix="deepcompression-") as place:
        made = Path(place) / FILE
        with _silent(), in_one_line("export coreml: coremltools does not write the model", ExportError):
            package.save(str(made))
            back = _decoded(made)
        _check_bits(wanted, back)
        session = load(made, torch.get_num_threads())
        apart = float("nan") if session is None else pt2.compared("coreml", model, sample, session, rounding)
        with folder_written(path) as folder:
            shutil.copytree(made, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(NOT_TAKEN))
    notes = _notes(model, back, session is not None)
    return Exported(_bytes(path), float_bytes, apart, held, notes, _rounds(model))


def load(path: Path, threads: int) -> CoreMlSession | None:
    """Opens a package; None off Apple's systems, where Core ML is not.

    Args:
        path: of the folder.
        threads: Core ML's own are taken.

    Raises:
        ExportError: coremltools is missing, or Core ML does not open it.
    """
    if platform.system() != "Darwin":
        return None
    onnx.check_packages("coreml", PACKAGES, INSTALL)
    with _silent(), in_one_line(f"export coreml: Core ML does not open {path}", ExportError):
        return CoreMlSession(path)


class CoreMlSession:
    """A package in Core ML, on the CPU."""

    fixed_batch: int | None = 1

    def __init__(self, path: Path) -> None:
        import coremltools

        self.model = coremltools.models.MLModel(str(path), compute_units=coremltools.ComputeUnit.CPU_ONLY)
        description = self.model.get_spec().description
        self.inputs, self.outputs = ([one.name for one in some] for some in (description.input, description.output))

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """See ``Session``."""
        found = self.model.predict(dict(zip(self.inputs, inputs, strict=True)))
        return [np.asarray(found[name]) for name in self.outputs]


def _converted(program: torch.export.ExportedProgram) -> Any:
    """Core ML's program of a model, weights as floats."""
    with _silent(), in_one_line("export coreml: coremltools does not take the model", ExportError):
        import coremltools

        return coremltools.convert(
            program.run_decompositions({}),
            convert_to="milinternal",
            minimum_deployment_target=coremltools.target.iOS18,
            compute_precision=coremltools.precision.FLOAT32,
            pass_pipeline=_passes(),
        )


def _passes() -> Any:
    import coremltools

    passes = coremltools.PassPipeline.DEFAULT
    passes.remove_passes({"common::fuse_conv_batchnorm"})
    return passes


def _packed(program: Any) -> Any:
    """The package of a program, which is rewritten no more."""
    import coremltools

    return coremltools.convert(
        program,
        source="milinternal",
        convert_to="mlprogram",
        minimum_deployment_target=coremltools.target.iOS18,
        compute_precision=coremltools.precision.FLOAT32,
        pass_pipeline=coremltools.PassPipeline.EMPTY,
        skip_model_load=True,
    )


def _saved_bytes(program: Any) -> int:
    with tempfile.TemporaryDirectory(prefix="deepcompression-") as folder, _silent():
        path = Path(folder) / FILE
        _packed(program).save(str(path))
        return _bytes(path)


def _bytes(path: Path) -> int:
    files = [one for one in path.rglob("*") if one.is_file() and not one.match(NOT_TAKEN)]
    return sum(one.stat().st_size for one in files)


def _constants(program: Any) -> list[Any]:
    """The operations that hold weights of two dimensions or more, which nothing but layers takes."""
    found = []
    for op in program.functions["main"].operations:
        array = op.outputs[0].val if op.op_type == "const" else None
        if isinstance(array, np.ndarray) and array.dtype == np.float32 and array.ndim > 1:
            takers = op.outputs[0].child_ops
            if takers and all(one.op_type in TAKERS for one in takers):
                found.append(op)
    return found


def _shrink(program: Any, named: Mapping[str, str]) -> tuple[list[Held], dict[str, Array]]:
    """Replaces weights by their smallest forms; how each is held, and what it has to decode to, by name.

    Args:
        program: Core ML's, changed in place.
        named: the model's names by the program's.
    """
    from deepcompression.export.coreml_weights import smallest

    block, held, wanted = program.functions["main"], [], {}
    for op in _constants(program):
        values, name = op.outputs[0].val, str(op.outputs[0].name)
        form = smallest(values)
        wanted[name] = values
        how, count = (form.name, form.bytes) if form else ("dense", values.nbytes)
        held.append(Held(named.get(name, name), how, count, values.nbytes))
        if form:
            with block, _scope_of(op):
                made = form.make(before_op=op, name=f"{name}_held")
            block.replace_uses_of_var_after_op(anchor_op=op, old_var=op.outputs[0], new_var=made)
            block.remove_ops([op])
            made.name = made.op.name = name
    return held, wanted


def _scope_of(op: Any) -> Any:
    """Where in the model an operation is from, for others that stand for it."""
    from coremltools.converters.mil.mil import Builder
    from coremltools.converters.mil.mil.scope import ScopeInfo

    return Builder.scope(*(ScopeInfo(source=source, data=data) for source, data in op.scopes.items()))


def _decoded(path: Path) -> dict[str, Array]:
    """The weights of a package, by name, as numpy decodes them."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load as read

    model = coremltools.models.MLModel(str(path), skip_model_load=True)
    spec = model.get_spec()
    program = read(spec, spec.specificationVersion, model.weights_dir)
    found = {}
    for op in program.functions["main"].operations:
        if op.op_type == "const" or op.op_type.startswith("constexpr"):
            array = op.outputs[0].val if op.op_type == "const" else op.materialized_val_inference()
            if isinstance(array, np.ndarray):
                found[str(op.outputs[0].name)] = array
    return found


def _check_bits(wanted: Mapping[str, Array], got: Mapping[str, Array]) -> None:
    for name, values in wanted.items():
        array = got.get(name)
        if array is None or array.shape != values.shape or array.tobytes() != np.ascontiguousarray(values).tobytes():
            raise InvariantError(f"export coreml: {name} decodes to other bits than were written; nothing was kept")


def _program(model: nn.Module, sample: Sequence[Tensor]) -> torch.export.ExportedProgram:
    """What PyTorch follows of a forward; static grids of 8 bits are quantized and dequantized there."""
    for name, module in model.named_modules():
        for one in quantizers(module):
            if not isinstance(one, OnGrid) or one.site.side in INSIDE or one.range not in RANGES:
                raise ExportError(
                    f"export coreml: {one.site} has values that this target does not write (module {name}, edit "
                    f"{one.kind}); export the model without that edit"
                )
    with _quantizing(model), _silent():
        return pt2.program_of("coreml", model, sample)


@dataclass(frozen=True)
class _Quantizing(Quantizer):
    scale: float
    zero: int
    ends: tuple[int, int]

    def changed(self, module: nn.Module, value: Tensor) -> Tensor:
        """The value, quantized and dequantized."""
        from torch.ao.quantization.fx import _decomposed  # noqa: F401  registers the operators

        operators = torch.ops.quantized_decomposed
        grid = (self.scale, self.zero, *self.ends, torch.int8 if self.ends[0] else torch.uint8)
        found: Tensor = operators.dequantize_per_tensor.default(
            operators.quantize_per_tensor.default(value, *grid), *grid
        )
        return found


@dataclass(frozen=True)
class _QuantizingInput(_Quantizing, Before):
    kind = "quantize_values"


@dataclass(frozen=True)
class _QuantizingOutput(_Quantizing, After):
    kind = "quantize_values"


def _in_core_ml(hook: Quantizer) -> bool:
    """Whether Core ML has that grid."""
    return isinstance(hook, OnGrid) and hook.range == "static" and hook.bits == 8


@contextlib.contextmanager
def _quantizing(model: nn.Module) -> Iterator[None]:
    """The model's hooks call operators that Core ML has, while the block runs."""
    held: list[tuple[Any, int, Any]] = []
    for module in model.modules():
        hooks: list[Any] = [module._forward_pre_hooks, module._forward_hooks]
        for some in hooks:
            held.extend((some, key, hook) for key, hook in some.items() if _in_core_ml(hook))
            some.update({key: _by_operators(module, hook) for key, hook in some.items() if _in_core_ml(hook)})
    try:
        yield
    finally:
        for some, key, hook in held:
            some[key] = hook


def _by_operators(module: nn.Module, hook: OnGrid) -> Quantizer:
    scale, zero = (getattr(module, hook.site.tensor(what), 0) for what in ("scale", "zero_point"))
    kind = _QuantizingInput if isinstance(hook, Before) else _QuantizingOutput
    return kind(hook.site, float(scale), int(zero), levels(hook.bits, hook.scheme))


def _rounds(model: nn.Module) -> bool:
    return any(quantizers(module) for module in model.modules())


def _notes(model: nn.Module, back: Mapping[str, Array], run: bool) -> list[str]:
    """What was compared, what is rounded in which way, whether it was run."""
    hooks = [hook for module in model.modules() for hook in quantizers(module)]
    floats = [str(hook.site) for hook in hooks if not _in_core_ml(hook)]
    quantized = len(hooks) - len(floats)
    weights = {name: one.detach().contiguous().numpy() for name, one in model.named_parameters() if one.ndim > 1}
    known = {(one.shape, one.tobytes()) for one in back.values() if one.dtype == np.float32}
    missing = [name for name, one in weights.items() if (one.shape, one.tobytes()) not in known]
    there = len(weights) - len(missing)
    return [
        f"read back and decoded: {there} of {len(weights)} weights are those of the model, bit for bit",
        *([f"joined or turned by the converter, and not compared with the model: {_some(missing)}"] if missing else []),
        *([f"{quantized} values are quantized and dequantized to 8 bits"] if quantized else []),
        *([f"rounded by float operations, as Core ML has no such grid: {_some(floats)}"] if floats else []),
        "a batch of one, for iOS 18, macOS 15 or later; float32, which Core ML computes on CPU or GPU",
        *([] if run else ["Core ML is not on this machine (macOS alone has it): weights were compared, outputs not"]),
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without coremltools' bars, and what it says of versions of PyTorch that it was not tried with."""
    log = logging.getLogger("coremltools")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
