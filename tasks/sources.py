"""Digests of code: what a stage runs is part of what made its result."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterable
from functools import lru_cache
from importlib import metadata
from pathlib import Path

LIBRARY = "deepcompression"


@lru_cache
def library_digest(*stems: str) -> str:
    """SHA-256 over the sources of ``deepcompression.<stem>`` and all library modules that these import."""
    folder = Path(__file__).resolve().parent.parent / LIBRARY
    reached: set[str] = set()
    waiting = list(stems)
    while waiting:
        stem = waiting.pop()
        path = folder / f"{stem}.py"
        if stem not in reached and path.exists():
            reached.add(stem)
            waiting += _imported_stems(path)
    return _digest(folder / f"{stem}.py" for stem in sorted(reached))


def factory_digest(spec: str) -> str:
    """What identifies the code behind ``package.module:callable``.

    The library's own modules and packages outside site-packages by their sources, installed ones by version.
    """
    module = spec.partition(":")[0]
    top = module.partition(".")[0]
    if top == LIBRARY:
        return library_digest(module.partition(".")[2])
    found = importlib.util.find_spec(top)
    origin = Path(found.origin) if found and found.origin else None
    if origin is None and found and found.submodule_search_locations:
        return _digest(sorted(Path(next(iter(found.submodule_search_locations))).rglob("*.py")))
    if origin is None or not origin.exists() or "site-packages" in origin.parts:
        return f"{top} {_version(top)}"
    return _digest(sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin])


def versions() -> dict[str, str]:
    """Versions that can change a result's bits."""
    return {"python": sys.version.split()[0], "torch": _version("torch"), "numpy": _version("numpy")}


def _imported_stems(path: Path) -> list[str]:
    """Every ``deepcompression.x`` that a module imports, at its top or inside a function."""
    stems = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == LIBRARY:
            stems += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{LIBRARY}."):
            stems.append((node.module or "").removeprefix(f"{LIBRARY}."))
        elif isinstance(node, ast.Import):
            stems += [a.name.removeprefix(f"{LIBRARY}.") for a in node.names if a.name.startswith(f"{LIBRARY}.")]
    return stems


def _digest(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
