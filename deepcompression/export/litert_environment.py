"""LiteRT's converter in an environment of its own: its packages conflict with ours, so that it is another process."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from deepcompression.errors import ExportError, one_line

VARIABLE = "DEEPCOMPRESSION_LITERT"
DEFAULT = "~/.cache/deepcompression/litert"
VERSION = "0.10.0"
WORKER = Path(__file__).with_name("litert_worker.py")
SECONDS = 3600
TOLD = {"float_bytes": int, "integers": list, "left": dict, "observed": list, "held": list, "versions": dict}


def environment() -> Path:
    """The folder of the virtual environment: what ``DEEPCOMPRESSION_LITERT`` says, else one below the home folder."""
    return Path(os.environ.get(VARIABLE) or DEFAULT).expanduser()


def command(folder: Path) -> str:
    """The shell line that makes the environment.

    Args:
        folder: of the environment.
    """
    index = "--extra-index-url https://download.pytorch.org/whl/cpu"
    packages = f"torch=={torch.__version__} litert-torch=={VERSION}"
    return f"python3.11 -m venv {folder} && {folder}/bin/pip install {index} {packages}"


def check_environment() -> None:
    """Raise ExportError where the environment is missing, or has another version of litert-torch or PyTorch."""
    folder = environment()
    found = {name: _installed(folder, name) for name in ("litert_torch", "torch")}
    wanted = {"litert_torch": VERSION, "torch": torch.__version__}
    if not (folder / "bin" / "python").exists() or None in found.values():
        raise ExportError(
            f"export litert: there is no litert-torch in {folder}: it needs an environment of its own, of about 2 GB: "
            f"{command(folder)} ({VARIABLE} says where it is)"
        )
    for name, one in wanted.items():
        if str(found[name]).partition("+")[0] != one.partition("+")[0]:
            raise ExportError(
                f"export litert: {folder} has {name.replace('_', '-')} {found[name]}, expected {one}: make it anew: "
                f"{command(folder)}"
            )


def _installed(folder: Path, package: str) -> str | None:
    """The version of a package, without a start of that Python."""
    found = sorted((folder / "lib").glob(f"python3*/site-packages/{package}-*.dist-info"))
    return found[0].name.removesuffix(".dist-info").rpartition("-")[2] if found else None


def converted(folder: Path, log: Path, seconds: float = SECONDS) -> Mapping[str, Any]:
    """What the worker says of the ``model.tflite`` that it made in a folder.

    Args:
        folder: with what the worker takes.
        log: of all that it prints; it stays where something goes wrong.
        seconds: until it is ended.

    Raises:
        ExportError: it fails, takes too long, or does not say what it did.
    """
    line: Sequence[str] = [str(environment() / "bin" / "python"), "-P", str(WORKER), str(folder)]
    log.parent.mkdir(parents=True, exist_ok=True)
    _run(line, folder, log, seconds)
    try:
        told = json.loads((folder / "done.json").read_text("utf-8"))
        wrong = [name for name, kind in TOLD.items() if not isinstance(told[name], kind)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"export litert: the worker does not say what it did ({one_line(error)}); see {log}"
        ) from error
    if wrong or not (folder / "model.tflite").is_file():
        raise ExportError(f"export litert: the worker does not say what it did ({', '.join(wrong)}); see {log}")
    log.unlink(missing_ok=True)
    found: dict[str, Any] = told
    return found


def _run(line: Sequence[str], folder: Path, log: Path, seconds: float) -> None:
    with log.open("wb") as printed:
        worker = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=printed, stderr=subprocess.STDOUT, cwd=folder, env=_variables()
        )
        try:
            code = worker.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"export litert: the worker took longer than {seconds:g} s; see {log}") from error
        finally:  # also of Ctrl-C
            worker.kill()
            worker.wait()
            worker.communicate()
    if code:
        raise ExportError(f"export litert: the worker failed: {_last(log, code)}; see {log}")


def _variables() -> dict[str, str]:
    """This process's, but for what would bring its packages into that environment."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | {
        "PYTHONUNBUFFERED": "1"
    }


def _last(log: Path, code: int) -> str:
    """The last line of a log: Python's error, where it is one."""
    lines = [one for one in log.read_text("utf-8", errors="replace").splitlines() if one.strip()]
    ended = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{one_line(lines[-1])[:300]} ({ended})" if lines else ended
