"""A comparison as one HTML page that loads nothing: results, a picture of them, then what was changed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.compare.picture import scatter
from flows.compare.results import Comparison, Group
from flows.compare.words import MISSING, Column, columns

COLUMN_EACH = 6  # runs that stand side by side
FIRST = ("score", "file_bytes", "file_bytes_worst", "ratio", "file_score", "file_score_worst", "change", "p_value")


def html(comparison: Comparison) -> str:
    """The page; runs on unlike data are in sections of their own.

    Args:
        comparison: what `compare` returned.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    parts = comparison.parts or (comparison,)
    return environment.get_template("compare.html.j2").render(
        parts=[_section(part, place) for place, part in enumerate(parts)],
        count=sum(group.n for group in comparison.groups),
        notes=list(dict.fromkeys([*comparison.notes, *(note for part in parts for note in part.notes)])),
    )


def _section(comparison: Comparison, place: int) -> dict[str, Any]:
    found = columns(comparison)
    results = sorted((column for column in found[1:] if _told(column)), key=_rank)
    settings = [column for column in found[1:] if column.setting]
    several = len(comparison.groups) > 1
    return {
        "heads": [_head(group, number) for number, group in enumerate(comparison.groups, 1)],
        "side": len(comparison.groups) <= COLUMN_EACH,
        "tables": [("what came out", results), *([("what was changed", settings)] if settings else [])],
        "rows": {
            heading: _rows(part) for heading, part in (("what came out", results), ("what was changed", settings))
        },
        "sentences": comparison.sentences,
        "picture": scatter(f"part{place}", comparison.groups) if several else "",
        "score": comparison.groups[0].measure.label,
    }


def _told(column: Column) -> bool:
    """Whether it is a result that some run has."""
    return not column.setting and any(cell.text != MISSING for cell in column.cells)


def _rank(column: Column) -> int:
    return FIRST.index(column.key) if column.key in FIRST else len(FIRST)


def _rows(found: Sequence[Column]) -> list[list[tuple[Column, Any]]]:
    """A line a group."""
    return [list(zip(found, cells, strict=True)) for cells in zip(*(column.cells for column in found), strict=True)]


def _head(group: Group, number: int) -> dict[str, Any]:
    """Number, name, and the reports that lie in the runs' folders."""
    pages = [path for folder in group.folders if (path := Path(folder) / "report.html").is_file()]
    links = [path.resolve().as_uri() for path in pages]
    return {"number": number, "name": group.name, "links": links}
