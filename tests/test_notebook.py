"""The notebook of the first hour runs from top to bottom."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "first-hour.ipynb"


def _cells() -> list[dict[str, object]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.usefixtures("prefect_server")
def test_every_cell_runs(tmp_path: Path) -> None:
    """In order, in one process, with fewer epochs; what it says at last is that stages were reused."""
    code = "\n".join("".join(cell["source"]) for cell in _cells())  # type: ignore[arg-type]
    assert code.count("EPOCHS = 20") == 1
    (tmp_path / "cells.py").write_text(code.replace("EPOCHS = 20", "EPOCHS = 1"))
    told = subprocess.run(
        [sys.executable, tmp_path / "cells.py"],
        cwd=ROOT / "docs",
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr[-3000:]
    assert "3 stages were reused" in told.stdout and "['report.html']" in told.stdout


def test_what_is_shown_was_run() -> None:
    """Each cell's outputs are those of one run from top to bottom, without an error."""
    assert [cell["execution_count"] for cell in _cells()] == list(range(1, len(_cells()) + 1))
    assert not [one for cell in _cells() for one in cell["outputs"] if one["output_type"] == "error"]  # type: ignore[attr-defined]
