"""Measured tables of README and docs say what their files say, and where it comes from."""

from __future__ import annotations

import re

import numbers_in_docs as numbers
import pytest

MARKED = list(numbers.marked())


@pytest.mark.parametrize("name", sorted(path.stem for path in numbers.FOLDER.glob("*.json") if path != numbers.CELLS))
def test_a_table_is_its_file(name: str) -> None:
    """In each page that shows it: a number is changed in the file, never in the text alone."""
    shown = [text for _, one, text in MARKED if one == name]
    assert shown and set(shown) == {numbers.text_of(numbers.read(name))}


@pytest.mark.parametrize("name", sorted({name for _, name, _ in MARKED}))
def test_a_table_says_where_it_comes_from(name: str) -> None:
    """A command, a commit, a date, a machine; each row has a cell for each column."""
    table = numbers.read(name)
    assert set(table) == numbers.KEYS and table["command"] and table["machine"]
    assert re.fullmatch(r"[0-9a-f]{7,40}", table["commit"]) and re.fullmatch(r"20\d\d-\d\d-\d\d", table["date"])
    assert {len(row) for row in table["rows"]} == {len(table["columns"])}


def test_results_have_no_other_tables() -> None:
    """All of the page of results is made from files, and so is the first table of README."""
    page = numbers.ROOT / "docs" / "results.md"
    tables = re.findall(r"(?m)(?:^\|.*\n)+", page.read_text(encoding="utf-8"))
    assert sorted(tables) == sorted(text for where, _, text in MARKED if where == page)
    assert "overview" in {name for where, name, _ in MARKED if where.name == "README.md"}


def test_measured_lines_of_lists_are_their_file() -> None:
    """What a list says was measured stands in the file, with its origin, and nothing in the file is unused."""
    shown = {
        one[2]: one[3] for page in numbers.PAGES for one in numbers.CELL.finditer(page.read_text(encoding="utf-8"))
    }
    assert shown == {name: cell["text"] for name, cell in numbers.cells().items()}
    for cell in numbers.cells().values():
        assert re.fullmatch(r"[0-9a-f]{7,40}", cell["commit"]) and cell["date"] and cell["machine"]
        first = cell["command"].split()[0]
        assert first == "flows" or any((numbers.ROOT / place / first).exists() for place in ("", "tests/benchmarks"))


def test_lists_of_methods_have_no_other_numbers() -> None:
    """A line of a list of methods has a measured cell from the file, a link to what has it, or none."""
    page = (numbers.ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    lists = re.findall(r"(?m)^\|.* measured \|\n\|[-|]+\n((?:\|.*\n)+)", page)
    rows = [re.split(r"(?<!\\)\|", row)[-2].strip() for one in lists for row in one.splitlines()]
    assert len(rows) > 50
    for cell in rows:
        assert cell == "-" or re.fullmatch(r"\[[^]]+\]\(\S+\)|`conf/\S+`", cell) or numbers.CELL.fullmatch(cell)
