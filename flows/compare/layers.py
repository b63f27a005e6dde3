"""``python -m flows compare --layers``: which layers lose it, in one run or side by side in several."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepcompression.errors import RecipeError
from tasks.report.losses import FILE, RATIOS, by_op, rows_in
from tasks.report.words import cosine, decibels, percent

Row = dict[str, Any]
FORMATS = ("table", "csv", "json")


def layers_of(folders: Sequence[Path]) -> tuple[dict[str, list[Row]], list[str]]:
    """By run its rows of ``tasks.report.losses.by_op``; and in a sentence each what runs have none, and why.

    Args:
        folders: of runs; one of several seeds stands for the runs of its seeds.

    Raises:
        RecipeError: none has such a table.
    """
    found, left = {}, []
    runs = [*dict.fromkeys(one for folder in folders for one in _seeds(folder))]
    names = Counter(folder.name for folder in runs)
    for folder in runs:
        rows, why = _rows(folder)
        if why:
            left.append(f"run {folder}: {why}")
        else:
            found[folder.name if names[folder.name] == 1 else str(folder)] = rows
    if not found:
        raise RecipeError("; ".join(left))
    return found, left


def _seeds(folder: Path) -> list[Path]:
    """The runs of a run's seeds, which lie beside it, if there are several; else the run itself."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return [folder.parent / Path(run["folder"]).name for run in summary["runs"]] or [folder]
    except (OSError, ValueError, KeyError, TypeError):
        return [folder]


def _rows(folder: Path) -> tuple[list[Row], str]:
    """A run's table, or why there is none."""
    try:
        rows = by_op(rows_in(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [], f"{FILE} cannot be read: {error}"
    return rows, "" if rows else (
        f"has no {FILE}: it was made by an older release, or no stage changed a weight; run its recipe again"
    )


def render(found: dict[str, list[Row]], form: str) -> str:
    """The tables as text.

    Args:
        found: the tables of ``layers_of``.
        form: table (as wide as it needs), csv or json (null is no figure, or equal values).
    """
    if form == "json":
        from tasks.storage.store import finite

        return json.dumps(finite(found), indent=2) + "\n"
    if form == "csv":
        return _csv(found)
    header, lines = _one(next(iter(found.values()))) if len(found) == 1 else _several(found)
    return _text(header, lines)


def _one(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    stages = list(rows[0]["stages"])
    header = ["op", "kind", "alone dB", "cosine", *(f"{stage} dB" for stage in stages), "cosine", "clipped"]
    lines = [
        [
            row["op"],
            row["kind"],
            row["why"] or decibels(row["sqnr_alone"]),
            cosine(row["cosine_alone"]),
            *(decibels(row["stages"][stage]) for stage in stages),
            cosine(row["cosine"]),
            percent(row["clipped"]),
        ]
        for row in rows
    ]
    return header, lines


def _several(found: dict[str, list[Row]]) -> tuple[list[str], list[list[str]]]:
    """Of each run two columns: signal to noise of an op alone, and in the whole net."""
    ops = {row["op"]: row["kind"] for rows in found.values() for row in rows}
    runs = [{row["op"]: row for row in rows} for rows in found.values()]
    header = ["op", "kind", *(f"{name} {what} dB" for name in found for what in ("alone", "in the net"))]
    lines = [
        [op, kind, *(decibels(run.get(op, {}).get(what)) for run in runs for what in RATIOS)]
        for op, kind in ops.items()
    ]
    return header, lines


def _csv(found: dict[str, list[Row]]) -> str:
    import csv
    import io

    file = io.StringIO(newline="")
    names = ["op", "kind", "sqnr_alone", "cosine_alone", "sqnr", "cosine", "clipped", "why"]
    writer = csv.DictWriter(file, ["run", *names], extrasaction="ignore")
    writer.writeheader()
    for run, rows in found.items():
        writer.writerows({"run": run, **row} for row in rows)
    return file.getvalue()


def _text(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    from io import StringIO

    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None)
    for place, name in enumerate(header):
        table.add_column(escape(name), justify="left" if place < 2 else "right")
    for line in lines:
        table.add_row(*map(escape, line))
    file = StringIO()
    Console(file=file, width=100_000).print(table)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"
