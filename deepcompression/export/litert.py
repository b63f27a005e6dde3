"""A ``.tflite`` for LiteRT: weights that lie on grids as int8; with integer kernels where values have grids of 8 bits.

The converter is a worker in an environment of its own (``litert_environment``); LiteRT's runtime is a package of ours.
The file takes a batch of one, floats in and out.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression._atomic import written
from deepcompression.errors import ExportError, in_one_line
from deepcompression.export.agreement import apart, judged, together
from deepcompression.export.exported import Array, Exported, Held
from deepcompression.export.litert_environment import check_environment, converted
from deepcompression.export.litert_sparse import Sparse, sparse
from deepcompression.export.litert_task import float_program, on_grids, rounds, task_of
from deepcompression.export.pt2 import compared, first, pairs, program_of, save

FILE = "model.tflite"
FLOAT, SMALL = "float.tflite", "small.tflite"  # of the worker, which rounds nothing; what is written
CARRIES = frozenset({"resize", "select_inputs", "bypass", "fold", "quantize_values", "dictionary"})
ROUNDING = 1e-4  # of the largest output


def check(model: nn.Module, sample: Sequence[Tensor]) -> None:
    """Raise ExportError where ``export`` could not write this model: the runtime or the converter's environment is
    missing, or its forward cannot be followed.
    """
    _check_runtime()
    check_environment()
    program_of("litert", model, sample)


def export(model: nn.Module, sample: Sequence[Tensor], path: Path) -> Exported:
    """Writes ``model`` in eval mode to ``path``: a batch of one, floats in and out.

    Args:
        model: on the CPU.
        sample: what its forward takes by position, each (batch, ...); its outputs are compared, and ranges that the
            model has no grids for are those that values have on it.
        path: what is there stays where something goes wrong.

    Raises:
        ExportError: a package or the environment is missing, or the model cannot be converted.
        InvariantError: outputs are beyond rounding.
        StorageError: ``path`` cannot be written.
    """
    _check_runtime()
    check_environment()
    with tempfile.TemporaryDirectory(prefix="deepcompression-") as name:  # readable by its owner alone
        folder = Path(name)
        save(
            float_program(model, sample) if on_grids(model) else program_of("litert", model, sample),
            folder / "model.pt2",
        )
        arrays: dict[str, Any] = task_of(model, sample)
        np.savez(folder / "task.npz", **arrays)
        told = converted(folder, path.with_name("litert.log"))
        with in_one_line("export litert: the worker's file cannot be read", ExportError):
            content, changed = sparse((folder / "model.tflite").read_bytes())
        (folder / SMALL).write_bytes(content)
        largest, how = _compared(model, sample, folder, told)
    with written(path, parents=True) as file:
        file.write(content)
    held, notes = _held(told, changed), [*how, *_notes(told, bool(changed))]
    if rounds(model) and not told["integers"]:
        notes.insert(0, "float: values are rounded by operations: integer kernels take static grids of 8 bits alone")
    return Exported(len(content), told["float_bytes"], largest, held, notes, integers=bool(told["integers"]))


def _compared(
    model: nn.Module, sample: Sequence[Tensor], folder: Path, told: Mapping[str, Any]
) -> tuple[float, list[str]]:
    """The largest difference of an output, and what people should know of it."""
    session = load(folder / SMALL, torch.get_num_threads())
    if not told["integers"]:
        return compared("litert", model, sample, session, ROUNDING), []
    found = together(list(pairs(model, sample, session)))
    inputs = [one.numpy() for one in first(sample, 0)]
    largest, how = judged("litert", "LiteRT", found, lambda: _layers(folder, told, inputs))
    return largest, [how]


def _layers(folder: Path, told: Mapping[str, Any], inputs: Sequence[Array]) -> dict[str, float]:
    """How far what each layer gives on integers is from what it gives in the float file, which rounds nothing."""
    names = {one["tensor"]: one["output"] for one in told["held"]}
    wanted, got = (_inside(folder / name, set(names.values()), inputs) for name in (FLOAT, SMALL))
    both = {name: output for name, output in names.items() if output in wanted and output in got}
    return {name: apart(wanted[output], got[output]) for name, output in both.items()}


def _inside(path: Path, names: Collection[str], inputs: Sequence[Array]) -> dict[str, Array]:
    """What tensors within a file are, as floats, by name."""
    from ai_edge_litert.interpreter import OpResolverType

    plain = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES  # others keep no tensors
    session = LiteRTSession(path, 1, experimental_preserve_all_tensors=True, experimental_op_resolver_type=plain)
    session(inputs)
    found = {}
    for one in session.interpreter.get_tensor_details():
        if one["name"] in names:
            array, grid = session.interpreter.get_tensor(one["index"]), one["quantization_parameters"]
            rounded = len(grid["scales"]) == 1
            found[one["name"]] = (array.astype(np.float64) - grid["zero_points"]) * grid["scales"] if rounded else array
    return found


def _held(told: Mapping[str, Any], changed: Sequence[Sparse]) -> list[Held]:
    """How each layer's weight lies in the file."""
    forms = {one.name: one for one in changed}
    found = []
    for one in told["held"]:
        now = forms.get(one["weight"])
        form, size = (now.form, now.bytes) if now else (one["form"], one["bytes"])
        found.append(Held(one["tensor"], form, size, one["dense_bytes"]))
    return found


class LiteRTSession:
    """A file in LiteRT's interpreter, on the CPU.

    Args:
        path: of the file.
        threads: of an op.
        options: further ones of LiteRT's ``Interpreter``.
    """

    fixed_batch: int | None = 1

    def __init__(self, path: Path, threads: int, **options: Any) -> None:
        from ai_edge_litert.interpreter import Interpreter

        self.interpreter = Interpreter(model_path=str(path), num_threads=threads, **options)
        self.interpreter.allocate_tensors()
        ((_, signature),) = self.interpreter._get_full_signature_list().items()
        self.inputs, self.outputs = (_in_order(signature[side]) for side in ("inputs", "outputs"))
        details = {one["index"]: one["dtype"] for one in self.interpreter.get_input_details()}
        self.kinds = [details[one] for one in self.inputs]

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """See ``Session``."""
        for place, kind, array in zip(self.inputs, self.kinds, inputs, strict=True):
            self.interpreter.set_tensor(place, np.ascontiguousarray(array, kind))  # int64 is int32 there
        self.interpreter.invoke()
        return [self.interpreter.get_tensor(place) for place in self.outputs]


def _in_order(places: Mapping[str, int]) -> list[int]:
    """Inputs and outputs are numbered: args_0, output_1."""
    return [places[name] for name in sorted(places, key=lambda name: int(name.rpartition("_")[2]))]


def load(path: Path, threads: int) -> LiteRTSession:
    """Opens a file.

    Args:
        path: what ``export`` wrote.
        threads: of an op.

    Raises:
        ExportError: the runtime is missing, or does not open the file.
    """
    _check_runtime()
    with in_one_line(f"export litert: LiteRT does not open {path}", ExportError):
        return LiteRTSession(path, threads)


def _check_runtime() -> None:
    if importlib.util.find_spec("ai_edge_litert") is None:
        raise ExportError("export litert: needs ai-edge-litert: pip install 'deep-compression[litert]'")


def _notes(told: Mapping[str, Any], are_sparse: bool) -> list[str]:
    reasons: dict[str, list[str]] = {}
    for name, why in told["left"].items():
        reasons.setdefault(why, []).append(name)
    notes = [f"{len(told['integers'])} layers multiply integers"] if told["integers"] else []
    notes += [f"float: {', '.join(names)}: {why}" for why, names in reasons.items()]
    if told["observed"]:
        notes.append(f"{len(told['observed'])} values rounded to 8 bits by their range on the export's samples")
    if are_sparse:
        notes.append("pruned weights of float layers are sparse tensors, made dense when the file is loaded")
    return [*notes, f"converted by litert-torch {told['versions'].get('litert-torch')}; takes a batch of one"]
