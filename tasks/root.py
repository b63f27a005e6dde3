"""Where the project is: its code; what recipes' relative paths start from, and where ``artifacts/`` lies."""

from __future__ import annotations

from pathlib import Path


def project_root(package: Path, current: Path) -> Path:
    """The clone that ``package`` lies in; ``current`` where it is installed, and no clone."""
    return package.parent if (package.parent / "pyproject.toml").is_file() else current


CODE = Path(__file__).resolve().parent.parent  # the folder of the three packages: a clone, or where they are installed
ROOT = project_root(CODE / "tasks", Path.cwd())
