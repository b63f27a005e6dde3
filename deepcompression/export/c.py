"""A folder of C99 that runs a chain of layers from its compressed weights: for machines with little memory.

There is no dense copy of the weights: the program walks them in the ``.dcz``, one by one, while a layer is computed.
Layers on static grids of 8 bits whose weights are integers of 8 bits compute with integers alone.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression._atomic import folder_written
from deepcompression.errors import ExportError, one_line
from deepcompression.export.c_chain import chain_of
from deepcompression.export.c_plan import Plan, check_sizes, plan
from deepcompression.export.c_text import is_data
from deepcompression.export.exported import Array, Exported, Held
from deepcompression.export.ran import difference
from deepcompression.network.trace import resting

FILE = "c"
CARRIES = frozenset({"resize", "bypass", "fold", "quantize_values", "dictionary"})
RANGES = ("static",)
UNTIMED = (
    "not timed: its program would be started anew for each call, which takes longer than the net; time it where it is "
    "built in (README.md beside it)"
)
SOURCES = ("net.h", "net.c", "main.c", "README.md")
OF_THE_MODEL = ("model.h", "model.c", "model_dcz.c")
ROUNDING = 1e-4  # of the largest output
GRID_ROUNDING = 0.05  # the same where layers compute with integers: values between two steps go either way
ENOUGH = 1 << 10  # samples a call of the program
SECONDS = 600


def check(model: nn.Module, sample: Sequence[Tensor]) -> None:
    """Raise ExportError where ``export`` could not write this model: it is no chain of layers that are known."""
    check_sizes(chain_of(model, sample))


def export(model: nn.Module, sample: Sequence[Tensor], path: Path) -> Exported:
    """Writes the folder: ``model.dcz``, its reader in C, and the program; see the README in it.

    Args:
        model: on the CPU.
        sample: what its forward takes: one batch, whose outputs are compared where there is a C compiler.
        path: of the folder; what is there stays where something goes wrong.

    Raises:
        ExportError: it is no chain of layers that are known.
        InvariantError: the program's outputs are beyond rounding.
        StorageError: ``path`` cannot be written.
    """
    network = chain_of(model, sample)
    made = plan(network)
    with folder_written(path) as folder:
        for name, content in made.files.items():
            (folder / name).write_bytes(content)
        for name in SOURCES:
            (folder / name).write_bytes(_source(name))
        (folder / "dcz.c").write_bytes(resources.files("deepcompression.codec").joinpath("c/dcz.c").read_bytes())
        session = load(folder, 1)
        apart = float("nan") if session is None else _difference(model, sample[0], session, not made.floats)
        notes = _notes(made, None if session is None else _code_bytes(folder))
    dense = sum(one.numel() * one.element_size() for one in model.parameters())
    held = [Held(name, blob.form, len(blob.bytes), made.dense[name]) for name, blob in made.blobs.items()]
    total = len(made.files["model.dcz"]) + made.tables
    return Exported(total, dense, apart, held, notes, integers=not made.floats)


class CSession:
    """The program, run once for each call."""

    fixed_batch: int | None = None

    def __init__(self, path: Path, compiler: list[str]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="deepcompression-")
        where = Path(self.folder.name)
        texts = {name: (path / name).read_text("utf-8") for name in OF_THE_MODEL}
        for name, text in texts.items():
            if not is_data(text):
                raise ExportError(f"export c: {path / name} holds more than numbers; it is not compiled")
            (where / name).write_text(text, "utf-8")
        for name in SOURCES[:-1]:  # the package's own: what lies in the folder may be anybody's
            (where / name).write_bytes(_source(name))
        self.program = where / "run"
        units = ["main.c", "net.c", "model.c", "model_dcz.c"]
        _run([*compiler, "-std=c99", "-O2", "-o", str(self.program), *units], where)
        self.inputs, self.outputs = (_shape(texts["model.h"], name) for name in ("INPUT", "OUTPUT"))

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """See ``Session``."""
        (batch,) = inputs
        if batch.shape[1:] != self.inputs:
            raise ExportError(f"export c: a sample is {self.inputs}, not {batch.shape[1:]}")
        parts = [self._lines(batch[at : at + ENOUGH]) for at in range(0, len(batch), ENOUGH)]
        found = np.array([line.split()[1:] for part in parts for line in part], np.float32)
        return [found.reshape(len(batch), *self.outputs)]

    def classes(self, batch: Array) -> list[int]:
        """What the program calls each sample."""
        return [int(line.split()[0]) for line in self._lines(batch)]

    def _lines(self, batch: Array) -> list[str]:
        given = np.ascontiguousarray(batch, "<f4").tobytes()
        return _run([str(self.program)], Path(self.folder.name), given).decode().splitlines()


def load(path: Path, threads: int) -> CSession | None:
    """Compiles what ``export`` wrote, in a folder of its own; None where there is no C compiler.

    Args:
        path: of the folder.
        threads: the program has one.

    Raises:
        ExportError: the compiler refuses it, or it is not what ``export`` writes.
    """
    compiler = _compiler()
    return CSession(path, compiler) if compiler else None


def _compiler() -> list[str]:
    """The command that compiles C: that of the environment's CC, else cc; empty where it is missing."""
    command = shlex.split(os.environ.get("CC", ""), posix=os.name != "nt") or ["cc"]
    return command if shutil.which(command[0]) else []


def _source(name: str) -> bytes:
    return resources.files("deepcompression.export").joinpath("c_sources", name).read_bytes()


def _run(command: list[str], where: Path, given: bytes = b"") -> bytes:
    done = subprocess.run(command, cwd=where, input=given, capture_output=True, timeout=SECONDS, check=False)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise ExportError(f"export c: {Path(command[0]).name} failed: {one_line(lines[0])[:200]}")
    return done.stdout


def _shape(text: str, what: str) -> tuple[int, ...]:
    found = re.search(rf'MODEL_{what}_SHAPE "([\dx ]+)"', text)
    if found is None:
        raise ExportError(f"export c: model.h does not say the shape of an {what.lower()}")
    return tuple(int(one) for one in found[1].split(" x "))


def _code_bytes(folder: Path) -> int | None:
    """Bytes of code and constants of net.c for this machine, made small; None where no tool counts them."""
    tool = shutil.which("size")
    if tool is None:
        return None
    with tempfile.TemporaryDirectory() as made:
        _run([*_compiler(), "-std=c99", "-Os", "-c", "-o", f"{made}/net.o", "net.c"], folder)
        columns = _run([tool, f"{made}/net.o"], folder).decode().splitlines()[-1].split()
    return int(columns[0]) + int(columns[1])


def _notes(made: Plan, code: int | None) -> list[str]:
    sizes, dcz = made.sizes, len(made.files["model.dcz"])
    machine = f"{code:,} of code (net.c by the compiler of this machine, -Os)" if code else "the code of net.c"
    way = f"computes in floats: {made.floats}" if made.floats else "computes in integers; no float in a layer"
    return [
        f"{sizes.ram:,} bytes of RAM (32-bit pointers), all static, beside the stack",
        f"flash: {dcz:,} bytes of model.dcz, {made.tables:,} of tables, {machine}",
        way,
        *([] if code or _compiler() else ["there is no C compiler here: not run"]),
    ]


def _difference(model: nn.Module, batch: Tensor, session: CSession, integers: bool) -> float:
    with resting(model), torch.no_grad():
        wanted = _only(model(batch)).numpy()
    return difference("c", wanted, session([batch.numpy()])[0], GRID_ROUNDING if integers else ROUNDING)


def _only(outputs: object) -> Tensor:
    from torch.utils import _pytree

    (found,) = (one for one in _pytree.tree_leaves(outputs) if isinstance(one, Tensor))
    return found
