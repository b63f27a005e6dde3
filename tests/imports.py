"""Which module of the project imports which: read from the files, without running them."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOPS = ("deepcompression", "tasks", "flows")  # from below to above


def module_of(path: Path) -> str:
    """The module's name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


SOURCES = {module_of(path): path for top in TOPS for path in sorted((ROOT / top).rglob("*.py"))}


def imports_of(path: Path) -> set[str]:
    """Every name that a file imports anywhere in it, inside functions too: modules, and names in modules."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found
