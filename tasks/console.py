"""What a person sees while a run goes on: a progress bar on a terminal, one calm line a stage everywhere else."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line for the person who watches."""
    console.print(text, soft_wrap=True)


def quiet() -> None:
    """From now on, nothing but results and errors."""
    console.quiet = True


@contextlib.contextmanager
def progress(label: str, metric: str) -> Iterator[Callable[[Any], None] | None]:
    """A bar for one training stage; yields the callback that ``deepcompression.training.fit`` feeds.

    Args:
        label: the stage's label, shown before the bar.
        metric: the validation metric's name, shown with its last value.
    """
    if not console.is_terminal or console.quiet:
        yield None
        return
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[note]}"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None, note="starting")

        def show(now: Any) -> None:
            loss = "" if now.loss is None else f"  loss {now.loss:.3g}"
            best = "" if now.metric is None else f"  {metric} {now.metric:.4g}"
            bar.update(
                task,
                total=now.epochs * now.steps,
                completed=(now.epoch - 1) * now.steps + now.step,
                note=f"epoch {now.epoch}/{now.epochs}{loss}{best}",
            )

        yield show


def size(count: float) -> str:
    """Bytes for people: 834 B, 27.1 KB, 1.07 MB (powers of 1,000)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 100 * scale else f"{count / scale:.0f} {unit}"
    return f"{count:.0f} B"
