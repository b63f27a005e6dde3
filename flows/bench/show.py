"""A bench as a table on the console: 80 columns, and what cannot stand in a table below it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tasks.console import size
from tasks.report.bench import sentences
from tasks.report.words import milliseconds, rate, speed


def show(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints a bench.

    Args:
        result: of ``bench``.
        console: another one than stdout's.
    """
    console = console or Console(highlight=False)
    small, large = str(result["batches"][0]), str(result["batches"][-1])
    table = Table(box=None, padding=(0, 1, 0, 0), title=f"{result['run']}, batch {small}", title_justify="left")
    table.add_column("\nway", overflow="fold")
    headings = ("on\ndisk", "median\nms", "p10\nms", "p99\nms", "CPU\nms", "times\nas fast")
    for heading in (*headings, f"per s,\nof {large}", "memory\nheld", "memory\npeak"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["ways"]:
        if row["why"] is None:
            table.add_row(*map(escape, _cells(row, small, large)))
    console.print(table)
    for line in sentences(result):
        console.print(escape(line), soft_wrap=True)


def _cells(row: Mapping[str, Any], small: str, large: str) -> Iterator[str]:
    one, many = row["batches"].get(small, {}), row["batches"].get(large, {})
    memory = row.get("memory", {})
    yield row["way"]
    yield size(row["bytes"])
    for name in ("median_ms", "p10_ms", "p99_ms", "cpu_ms"):
        yield milliseconds(one.get(name))
    yield speed(one.get("to_dense"))
    yield rate(many.get("per_second"))
    for name in ("resident", "peak"):
        yield size(memory[name]) if name in memory else ""
