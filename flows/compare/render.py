"""A comparison as a table on the terminal, and as text that other programs read: HTML, LaTeX, CSV, JSON."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Literal, get_args

from flows.compare.latex import latex
from flows.compare.page import html
from flows.compare.recipes import ABSENT, value_text
from flows.compare.results import Comparison, Group, Statistic
from flows.compare.words import SIDE_BY_SIDE, Cell, Column, columns

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Format = Literal["table", "html", "csv", "latex", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)
FOLDS = (48, 32, 22)


def render(comparison: Comparison, format: Format) -> str:
    """The comparison as text.

    Args:
        comparison: what `compare` returned.
        format: ``table`` is what `show` prints, as wide as it needs; ``csv`` ends its lines with CR LF (RFC 4180), so
            that a file of it is opened with ``newline=""``.
    """
    return {"table": _text, "html": html, "csv": _csv, "latex": latex, "json": _json}[format](comparison)


def show(comparison: Comparison) -> None:
    """Prints table, sentences and notes to stdout. Nothing is cut off: what is too wide goes below."""
    from rich.console import Console

    console = Console(highlight=False)
    # Behind a pipe there is no width to keep to, unless one is asked for.
    known = console.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    _print(console if known else Console(highlight=False, width=100_000), comparison, console.width if known else 0)


def _text(comparison: Comparison) -> str:
    from rich.console import Console

    file = io.StringIO()
    _print(Console(file=file, width=100_000, highlight=False), comparison, 0)
    return file.getvalue()


def _print(console: Console, comparison: Comparison, width: int) -> None:
    for table in _tables(columns(comparison), width):
        console.print(table)
    for line in (*comparison.sentences, *comparison.notes):
        console.print(line, markup=False, soft_wrap=True)


def _tables(found: Sequence[Column], width: int) -> list[Table]:
    """One table where the width (0: any) allows, names and settings folded as little as that takes; else several."""
    below = len(found[0].cells) > SIDE_BY_SIDE
    lay = _below if below else _side_by_side
    for fold in FOLDS:
        tables = lay(found, width, fold)
        if len(tables) == 1:
            return tables
    if not below:
        return tables
    numbers = tuple(Cell(str(number)) for number, _ in enumerate(found[0].cells, 1))
    return _below([Column("number", "#", numbers, numeric=True), *found], width, FOLDS[1])


def _side_by_side(found: Sequence[Column], width: int, fold: int) -> list[Table]:
    """A column a run; several tables repeat the labels and the reference."""
    grid = _grid(found, fold)
    marked = [[False, *(cell.best for cell in column.cells)] for column in found]
    ruled = sum(column.setting for column in found)
    numeric = [False, *(True for _ in found[0].cells)]
    return [_table(grid, marked, numeric, chosen, ruled) for chosen in _chosen(grid, width, 2)]


def _below(found: Sequence[Column], width: int, fold: int) -> list[Table]:
    """A line a run; several tables repeat the first column."""
    grid = [[*line] for line in zip(*_grid(found, fold), strict=True)]
    marked = [
        [False for _ in found],
        *([one.best for one in row] for row in zip(*(c.cells for c in found), strict=True)),
    ]
    numeric = [column.numeric for column in found]
    return [_table(grid, marked, numeric, chosen) for chosen in _chosen(grid, width, 1)]


def _grid(found: Sequence[Column], fold: int) -> list[list[str]]:
    texts = [[column.label, *(cell.text for cell in column.cells)] for column in found]
    return [["\n".join(textwrap.wrap(text, fold)) for text in line] for line in texts]


def _table(
    grid: Sequence[Sequence[str]],
    marked: Sequence[Sequence[bool]],
    numeric: Sequence[bool],
    chosen: Sequence[int],
    ruled: int = 0,
) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for index in chosen:
        justify: Literal["left", "right"] = "right" if numeric[index] else "left"
        table.add_column(Text(grid[0][index]), justify=justify, overflow="fold")
    for row in range(1, len(grid)):
        cells = [Text(grid[row][index], style="bold" if marked[row][index] else "") for index in chosen]
        table.add_row(*cells, end_section=row == ruled)
    return table


def _chosen(grid: Sequence[Sequence[str]], width: int, kept: int) -> list[list[int]]:
    """Which columns go into which table: the first ``kept`` into each, of the others as many as fit, one at least."""
    from rich.cells import cell_len

    wide = [max(cell_len(line) for row in grid for line in row[index].split("\n")) + 3 for index in range(len(grid[0]))]
    if not width or sum(wide) + 1 <= width:
        return [list(range(len(wide)))]
    if kept > 1 and sum(wide[:kept]) + max(wide[kept:], default=0) + 1 > width:
        kept = 1
    tables: list[list[int]] = [list(range(kept))]
    for index in range(kept, len(wide)):
        used = 1 + sum(wide[one] for one in tables[-1])
        if len(tables[-1]) > kept and used + wide[index] > width:
            tables.append(list(range(kept)))
        tables[-1].append(index)
    return tables


def _csv(comparison: Comparison) -> str:
    rows = [_plain(comparison, group) for group in comparison.groups]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _plain(comparison: Comparison, group: Group) -> dict[str, Any]:
    """One line of CSV: the same columns for one seed and for several."""
    row: dict[str, Any] = {"run": group.name, "runs": " ".join(group.names), "n": group.n}
    row["seeds"] = " ".join(str(seed) for seed in group.seeds)
    for key in comparison.changed:
        value = group.settings[key]
        row[f"recipe.{key}"] = "" if value is None or value is ABSENT else value_text(value)
    measure = group.measure
    row |= {"split": measure.split, "metric": measure.metric, "score": measure.score, "samples": measure.samples}
    row["higher_is_better"] = str(measure.higher_is_better).lower()
    for key, one in group.results.items():
        row[key] = _bare(one.mean if one else None)
        row[f"{key}_sd"] = _bare(one.sd if one else None)
        row[f"{key}_worst"] = _bare(one.worst if one else None)
    row["reused"] = " ".join(group.reused)
    row["incomparable"] = "; ".join(group.incomparable.values())
    return row


def _bare(value: float | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if math.isfinite(value) and value == int(value) else repr(float(value))


def _json(comparison: Comparison) -> str:
    groups = [
        {
            **{"name": group.name, "runs": list(group.names), "folders": list(group.folders)},
            **{"n": group.n, "seeds": list(group.seeds)},
            "recipe": {key: value for key, value in group.settings.items() if value is not ABSENT},
            **asdict(group.measure),
            **{"score": group.measure.score, "reused": dict(group.reused), "incomparable": dict(group.incomparable)},
            "results": {key: _statistic(one) for key, one in group.results.items()},
        }
        for group in comparison.groups
    ]
    whole = {"reference": comparison.groups[0].name, "changed": list(comparison.changed), "groups": groups}
    whole |= {"sentences": list(comparison.sentences), "notes": list(comparison.notes)}
    return json.dumps(_finite(whole), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _statistic(one: Statistic | None) -> dict[str, Any] | None:
    if one is None:
        return None
    return {"mean": one.mean, "sd": one.sd, "worst": one.worst, "n": one.n, "values": list(one.values)}


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, dict):
        return {str(key): _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
