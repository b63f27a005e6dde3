"""Writes the measured tables of README and docs from docs/numbers/*.json: `make numbers [TABLE=name]`.

A table stands below `<!-- numbers: name -->`. Its file has `columns`, `rows` of text, and where they come from:
`command` (of this repository, run with the `seeds`), `commit` and `date` when the rows came in, `machine`, `versions`.
`--adopt name FILE` makes the file of a table that a page has already. What was measured of one line of a list stands
between `<!-- number: name -->` and `<!-- / -->`, and in docs/numbers/cells.json.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "numbers"
CELLS = FOLDER / "cells.json"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
MARKED = re.compile(r"(<!-- numbers: ([\w-]+) -->\n)((?:\|.*\n)*)")
CELL = re.compile(r"(<!-- number: ([\w-]+) -->)(.*?)(<!-- / -->)")
KEYS = {"command", "seeds", "commit", "date", "machine", "versions", "columns", "rows"}


def read(name: str) -> dict[str, Any]:
    """What a table says, and where it comes from."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return found


def cells() -> dict[str, dict[str, str]]:
    """What was measured of single lines: `text`, and where it comes from."""
    found: dict[str, dict[str, str]] = json.loads(CELLS.read_text(encoding="utf-8"))
    return found


def text_of(table: dict[str, Any]) -> str:
    """The table as it stands in a page."""
    rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    lines = ["|" + "|".join(f" {cell} " if cell else " " for cell in row) + "|" for row in rows]
    lines[1] = "|" + "---|" * len(table["columns"])
    return "".join(f"{line}\n" for line in lines)


def marked() -> Iterator[tuple[Path, str, str]]:
    """Each marked table: its page, its name, its text."""
    for page in PAGES:
        for found in MARKED.finditer(page.read_text(encoding="utf-8")):
            yield page, found[2], found[3]


def renew(name: str | None) -> None:
    """Writes all tables and cells, or one, into their pages."""
    lines = cells()
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = MARKED.sub(lambda one: one[1] + (text_of(read(one[2])) if name in (None, one[2]) else one[3]), before)
        after = CELL.sub(
            lambda one: one[1] + (lines[one[2]]["text"] if name in (None, one[2]) else one[3]) + one[4], after
        )
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: renewed")


def adopt(name: str, page: Path) -> None:
    """The file of a table that stands in a page, with the commit that brought it."""
    (lines,) = [text.splitlines() for where, one, text in marked() if one == name and where == page.resolve()]
    parts = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    telling = max(lines[2:], key=len)
    came = subprocess.run(
        ["git", "log", "--format=%h %ad", "--date=short", f"-S{telling}", "--", "README.md", "docs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    commit, date = came[-1].split() if came else (None, None)
    table = {"command": "", "seeds": None, "commit": commit, "date": date, "machine": "", "versions": None}
    FOLDER.mkdir(exist_ok=True)
    write(name, {**table, "columns": parts[0], "rows": parts[2:]})


def write(name: str, table: dict[str, Any]) -> None:
    """A table's file: a line a row."""
    told = {key: json.dumps(value, ensure_ascii=False) for key, value in table.items() if key != "rows"}
    rows = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in table["rows"])
    lines = [*(f' "{key}": {value}' for key, value in told.items()), f' "rows": [\n  {rows}\n ]']
    (FOLDER / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main() -> int:
    """All tables or the named one; with a name, how it was measured is told."""
    if sys.argv[1:2] == ["--adopt"]:
        adopt(sys.argv[2], Path(sys.argv[3]))
        return 0
    name = sys.argv[1] if len(sys.argv) > 1 else None
    renew(name)
    source = {} if name is None else cells().get(name) or read(name)
    for key, value in source.items():
        if key not in ("columns", "rows"):
            print(f"{key}: {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
