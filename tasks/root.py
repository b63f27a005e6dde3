"""Where the project is: its code; what recipes' relative paths start from, and where ``artifacts/`` lies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

NAME = "deep-compression"  # the command, where it is installed
VARIABLE = "DEEPCOMPRESSION_ROOT"  # says where; processes that the command starts have it


def project_root(package: Path, current: Path, typed: str = "", said: str = "") -> Path:
    """What is said; else the clone that ``package`` lies in; else ``current``: where it is no clone, and wherever the
    installed command was typed."""
    clone = (package.parent / "pyproject.toml").is_file() and Path(typed).stem != NAME
    return current / said if said else package.parent if clone else current


CODE = Path(__file__).resolve().parent.parent  # the folder of the three packages: a clone, or where they are installed
ROOT = project_root(CODE / "tasks", Path.cwd(), sys.argv[0], os.environ.get(VARIABLE, ""))
