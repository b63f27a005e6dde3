"""A plan as a person reads it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from deepcompression.allocation.budget import FASTEST
from deepcompression.cli.terminal import WIDE
from tasks.console import size

MOST = 40  # tensors that are shown; --json has all


def show(plan: Mapping[str, Any]) -> None:
    """Prints what was found, or all that is wrong."""
    console = Console(highlight=False)
    for warning in [*plan.get("warnings", ()), *plan.get("doubts", ())]:
        console.print(f"[yellow]warning:[/] {escape(warning)}", soft_wrap=True)
    if "stages" not in plan:
        return
    console.print(_stages(plan))
    if plan["tensors"]:
        console.print(_tensors(plan["tensors"], console.width >= WIDE))
    for line in _lines(plan):
        console.print(line, soft_wrap=True)


def _stages(plan: Mapping[str, Any]) -> Table:
    table = Table(title=f"{plan['name']}: nothing was trained", title_justify="left")
    table.add_column("stage", overflow="fold")
    for heading in ("epochs", "about", "bytes"):
        table.add_column(heading, justify="right")
    for row in plan["stages"]:
        spent = "reused" if row["reused"] else duration(row["seconds"])
        known = "" if row["bytes"] is None else f"{'' if row['reused'] else '~'}{size(row['bytes'])}"
        table.add_row(escape(row["stage"]), str(row["epochs"] or ""), spent, known)
    return table


def _tensors(rows: Sequence[Mapping[str, Any]], shapes: bool) -> Table:
    table = Table(title="tensors", title_justify="left")
    table.add_column("tensor", overflow="fold")
    if shapes:
        table.add_column("shape", no_wrap=True)
    table.add_column("selected by; left alone by", min_width=24)
    for heading in ("dense", "in the file"):
        table.add_column(heading, justify="right")
    largest = sorted(rows, key=lambda row: -row["bytes"])[:MOST]
    for row in (one for one in rows if one in largest):
        held = "" if row["file_bytes"] is None else f"~{row['file_bytes']:,}"
        shape = ["x".join(map(str, row["shape"]))] if shapes else []
        told = "; ".join(filter(None, (", ".join(row["stages"]), _left(row["left_alone"]))))
        table.add_row(escape(row["tensor"]), *shape, escape(told), f"{row['bytes']:,}", held)
    if len(rows) > MOST:
        table.add_row(f"and {len(rows) - MOST:,} smaller ones (--json has all)")
    return table


def _left(reasons: Mapping[str, str]) -> str:
    """Why, with the stages that say so; those of one reason together."""
    said: dict[str, list[str]] = {}
    for stage, reason in reasons.items():
        said.setdefault(reason, []).append(stage)
    return "; ".join(f"left alone by {', '.join(stages)}: {reason}" for reason, stages in said.items())


def _lines(plan: Mapping[str, Any]) -> Iterator[str]:
    if why := plan.get("not_rehearsed"):
        yield f"[yellow]not foreseen:[/] {escape(why)}"
    if budget := plan.get("budget"):
        yield from _budget(budget, plan)
    predicted = plan["predicted"]
    if predicted["bytes"]:
        about = "" if predicted["exact"] else "about "
        yield (
            f"{plan['dense_bytes']:,} -> {about}[bold]{predicted['bytes']:,}[/] bytes, {about}"
            f"{predicted['ratio']:.1f}x smaller; "
            f"{'the store has it' if predicted['exact'] else 'found by a handful of steps of each training'}"
        )
    for row in plan["earlier"]:
        told = f"predicted {row['predicted_bytes']:,} bytes, it was {row['bytes']:,.0f} ({row['error']:+.1%})"
        if row.get("seconds"):
            told += f", {duration(row['predicted_seconds'])} for {duration(row['seconds'])}"
        yield f"earlier, {escape(row['run'])}: {told}"
    if predicted["seconds"] is not None:
        yield f"about {duration(predicted['seconds'])} on this machine, at {size(plan['peak_memory_bytes'])} of memory"
    else:
        limit = predicted["most_seconds"]
        time = f"about {duration(limit)} at most, as it was asked for" if limit else "how long it takes is not known"
        yield f"{time}; {size(plan['peak_memory_bytes'])} of memory so far"


def _budget(budget: Mapping[str, Any], plan: Mapping[str, Any]) -> Iterator[str]:
    """What was asked for, what is tried, and from which sizes on; nothing of what only a run finds."""
    asked = [f"{budget['metric_loss']:g} {budget['unit']} lost at most"] if budget["metric_loss"] else []
    dense, most = plan["dense_bytes"], budget["most_bytes"]
    asked += [f"{most:,} bytes at most, {dense / most:.1f}x"] if most else []
    yield f"budget: {', '.join(asked)}; {dense:,} bytes dense"
    yield from (f"  {escape(one)}" for one in budget["searches"])
    small, large = budget["first_bytes"]
    sizes = f"{small:,} bytes" if small == large else f"{small:,} to {large:,} bytes, by what sensitivity tells"
    until = "while enough is kept" if budget["metric_loss"] else "until one has no more than was asked for"
    yield f"  the first of them of {sizes}; each next one up to {FASTEST:g} times smaller, {until}"


def duration(seconds: float | None) -> str:
    """Seconds, minutes or hours, as precise as they are known."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
