"""docs/limits.md quotes what people see."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROWS = [line for line in (ROOT / "docs/limits.md").read_text().splitlines() if re.match(r"\|.*\|.*\|.*\|$", line)]
QUOTES = [quote for row in ROWS for quote in re.findall("`([^`]+)`", row.split("|")[3])]


@cache
def _sentences() -> str:
    """Every text in this project's code, what is filled in as an ellipsis."""
    found = []
    for path in sorted(ROOT.glob("[dft]*/**/*.py")):
        if path.is_relative_to(ROOT / "tests"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(one.value) if isinstance(one, ast.Constant) else "…" for one in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%[.\d]*[sdf]", "…", node.value))
    return "\n".join(found)


@pytest.mark.parametrize("quote", QUOTES)
def test_the_words_are_those_of_the_code(quote: str) -> None:
    """What the page says that one sees, some message says."""
    assert quote in _sentences()
