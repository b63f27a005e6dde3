"""Where the project is: what recipes' relative paths start from, and where ``artifacts/`` lies."""

from __future__ import annotations

from pathlib import Path


def project_root(package: Path, current: Path) -> Path:
    """The clone that ``package`` lies in; ``current`` where it is installed, and no clone."""
    return package.parent if (package.parent / "pyproject.toml").is_file() else current


ROOT = project_root(Path(__file__).resolve().parent, Path.cwd())
