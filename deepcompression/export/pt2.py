"""A ``.pt2``: the model as ``torch.export`` follows it, for PyTorch itself and for tools that start from there.

What PyTorch writes of the sample is left out: it is a pickle. Weights are plain bytes, the graph is JSON. PyTorch would
load pickles from such a file, look up any function of its own by name and evaluate text, so that nothing is opened
here that holds more than tensors and operators.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from deepcompression._atomic import written
from deepcompression.errors import ExportError, in_one_line
from deepcompression.export.exported import Array, Exported, Session
from deepcompression.export.ran import difference
from deepcompression.network.trace import resting

FILE = "model.pt2"
CARRIES = frozenset(
    {"resize", "select_inputs", "bypass", "fold", "quantize_values", "binary", "dictionary", "threshold"}
)
ROUNDING = 1e-4  # of the largest output
OPERATORS = re.compile(r"torch\.ops\.(aten|prims|quantized_decomposed)\.\w+\.\w+|_operator\.\w+")
SIZES = re.compile(r"[\w +*-]*")


def check(model: nn.Module, sample: Sequence[Tensor]) -> None:
    """Raise ExportError where ``export`` could not write this model: its forward cannot be followed."""
    program_of("pt2", model, sample)


def export(model: nn.Module, sample: Sequence[Tensor], path: Path) -> Exported:
    """Writes ``model`` in eval mode to ``path``: a batch of one, floats; what it rounds is rounded by operations.

    Args:
        model: on the CPU.
        sample: what its forward takes by position, each (batch, ...); its outputs are compared.
        path: what is there stays where something goes wrong.

    Raises:
        ExportError: the model cannot be written.
        InvariantError: outputs are beyond rounding.
        StorageError: ``path`` cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="deepcompression-") as folder:
        made = Path(folder) / FILE
        save(program_of("pt2", model, sample), made)
        apart = compared("pt2", model, sample, load(made, torch.get_num_threads()), ROUNDING)
        content = made.read_bytes()
    with written(path, parents=True) as file:
        file.write(content)
    return Exported(len(content), len(content), apart, [])


class Pt2Session:
    """A file in PyTorch."""

    fixed_batch: int | None = 1

    def __init__(self, path: Path) -> None:
        check_plain(path)
        with in_one_line(f"export pt2: PyTorch does not open {path}", ExportError):
            self.model = torch.export.load(str(path)).module()

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """See ``Session``."""
        with torch.no_grad():
            found = self.model(*(torch.from_numpy(one) for one in inputs))
        return [one.numpy() for one in _pytree.tree_leaves(found) if isinstance(one, Tensor)]


def load(path: Path, threads: int) -> Pt2Session:
    """Opens a file.

    Args:
        path: what ``export`` wrote.
        threads: PyTorch's own are taken.

    Raises:
        ExportError: it holds more than tensors and operators, or PyTorch does not open it.
    """
    return Pt2Session(path)


def program_of(target: str, model: nn.Module, sample: Sequence[Tensor]) -> torch.export.ExportedProgram:
    """The model as a graph of operators, with a batch of one.

    Args:
        target: its word, for the error.
        model: on the CPU.
        sample: what its forward takes by position.

    Raises:
        ExportError: ``torch.export`` does not take it.
    """
    doing = in_one_line(f"export {target}: torch.export does not take the model", ExportError)
    with resting(model), _silent(), doing:
        return torch.export.export(model, tuple(first(sample, 0)))


def first(sample: Sequence[Tensor], place: int) -> list[Tensor]:
    """One element of a sample, as a batch."""
    return [one[place : place + 1].contiguous() if one.ndim else one for one in sample]


def save(program: torch.export.ExportedProgram, path: Path) -> None:
    """Writes a program, without its sample.

    Args:
        program: is changed: its sample is dropped.
        path: of the file.

    Raises:
        ExportError: it would hold more than tensors and operators.
    """
    program._example_inputs = None
    with _silent():
        torch.export.save(program, path)
    check_plain(path)


def check_plain(path: Path) -> None:
    """Raise ExportError where a ``.pt2`` holds a pickle, a function that is no operator, or text that is evaluated."""
    with in_one_line(f"export pt2: {path} is no .pt2", ExportError), zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            _check_part(path, name.split("/", 1)[-1], archive.read(name))


def _check_part(path: Path, name: str, content: bytes) -> None:
    if name.endswith(".json"):
        for key, value in _said(json.loads(content)):
            allowed = {"target": OPERATORS, "expr_str": SIZES}.get(key)
            if (allowed and not allowed.fullmatch(str(value))) or (key == "use_pickle" and value):
                raise ExportError(f"export pt2: {path}: {name}: {key} {str(value)[:80]!r} is not opened")
    elif not _is_data(name) and content:
        raise ExportError(f"export pt2: {path}: {name} may hold a pickle; it is not opened")


def _is_data(name: str) -> bool:
    return bool(re.fullmatch(r"data/(weights/weight|constants/tensor)_\d+", name)) or name in (
        "archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id", "version",
    )  # fmt: skip


def _said(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each value of JSON that is no container, with the key under which it is."""
    if isinstance(value, dict):
        for name, one in value.items():
            yield from _said(one, name)
    elif isinstance(value, list):
        for one in value:
            yield from _said(one, key)
    else:
        yield key, value


def compared(target: str, model: nn.Module, sample: Sequence[Tensor], session: Session, rounding: float) -> float:
    """The largest difference of an output, over the elements of a sample.

    Args:
        target: its word, for the error.
        model: on the CPU.
        sample: what its forward takes by position.
        session: which takes a batch of one.
        rounding: what may differ, as a part of the largest magnitude.

    Raises:
        InvariantError: more than that.
    """
    found = [pair for some in pairs(model, sample, session) for pair in some]
    return max((difference(target, *pair, rounding) for pair in found), default=0.0)


def pairs(model: nn.Module, sample: Sequence[Tensor], session: Session) -> Iterator[list[tuple[Array, Array]]]:
    """For each element of a sample its outputs: PyTorch's and the file's.

    Args:
        model: on the CPU.
        sample: what its forward takes by position.
        session: which takes a batch of one.
    """
    for place in range(max((len(one) for one in sample if one.ndim), default=1)):
        inputs = first(sample, place)
        with resting(model), torch.no_grad():
            wanted = [one.numpy() for one in _pytree.tree_leaves(model(*inputs)) if isinstance(one, Tensor)]
        yield list(zip(wanted, session([one.numpy() for one in inputs]), strict=True))


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without what PyTorch says of its own future."""
    log = logging.getLogger("torch.export")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
