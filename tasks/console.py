"""What a person sees while a run goes on: bars on a terminal, one calm line now and then everywhere else."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, TextColumn
from rich.table import Column
from rich.text import Text

from deepcompression.cli.terminal import WIDE, bar_on
from deepcompression.errors import one_line
from tasks.secrets import masked

CALM_SECONDS = 60.0  # between two lines about one training in a log

NOTES = 8  # of one stage
NAMED = 3  # of a longer list

console = Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """One line for the person who watches, and for who reads the log of the Prefect run afterwards."""
    console.print(masked(text), soft_wrap=True)
    log_in_run(text)


def log_in_run(text: str) -> None:
    """A line, without its markup, in the log of the Prefect run that goes on, at INFO; nothing outside of one, or where
    its server is away."""
    if "prefect.context" not in sys.modules:
        return
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    with contextlib.suppress(MissingContextError, RuntimeError):
        adapter = get_run_logger()
        plain, more = Text.from_markup(masked(text)).plain, dict(adapter.extra or {})
        record = adapter.logger.makeRecord(adapter.logger.name, logging.INFO, __file__, 0, plain, (), None, None, more)
        for handler in adapter.logger.handlers:  # the server's: the console has the line already
            handler.handle(record)


def say_some(label: str, notes: Sequence[str]) -> None:
    """A stage's notes, of many the first ones, and of names that they list the first: the report has all."""
    for note in notes[:NOTES]:
        say(f"{label}: {escape(few_named(note))}")
    if more := len(notes[NOTES:]):
        say(f"{label}: and {more:,} more like these, in report.html")


def few_named(text: str) -> str:
    """A text in which long lists of names say how many they are, and the first three."""

    def shorter(found: re.Match[str]) -> str:
        names = found[0].split(", ")
        return f"{len(names)} names ({', '.join(names[:NAMED])}, ...)"

    return re.sub(rf"\b[A-Za-z_][\w.]*(?:, [A-Za-z_][\w.]*\w){{{NAMED + 1},}}", shorter, text)


def quiet() -> None:
    """From now on, nothing but results and errors."""
    console.quiet = True


@contextlib.contextmanager
def progress(label: str, metric: str) -> Iterator[Callable[[Any], None] | None]:
    """Progress of one training stage; yields the callback that ``deepcompression.training.loop.fit`` feeds.

    On a terminal a bar with epoch, loss, metric, rate and remaining time; in a log a line a minute.

    Args:
        label: the stage's label, shown first.
        metric: the validation metric's name, shown with its last value.
    """
    if console.quiet:
        yield None
        return
    if not console.is_terminal:
        yield _calm(label, metric)
        return
    with _bar() as shown:
        task = shown.add_task(label, total=None, note="starting")
        started, log = time.monotonic(), _calm(label, metric, log_in_run)

        def show(now: Any) -> None:
            log(now)
            done = (now.epoch - 1) * now.steps + now.step
            rate = done / max(time.monotonic() - started, 1e-9)
            note = _note(now, metric) + (f"  {rate:.0f} steps/s" if console.width >= WIDE else "")
            shown.update(task, total=now.epochs * now.steps, completed=done, note=note)

        yield show


@contextlib.contextmanager
def bar(label: str, total: int) -> Iterator[Callable[[str], None]]:
    """Progress of many runs; yields a callback that counts one more and shows (in a log: prints) its text."""
    if console.quiet or not console.is_terminal:
        done = 0

        def tell(text: str) -> None:
            nonlocal done
            done += 1
            say(f"{label} {done}/{total}  {escape(one_line(text))}")

        yield tell
        return
    with _bar() as shown:
        task = shown.add_task(label, total=total, note="")
        yield lambda text: shown.update(task, advance=1, note=f"{escape(one_line(text))}  ")


@contextlib.contextmanager
def counted(label: str, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Progress of a pass over samples; yields a callback that is told how much is done.

    On a terminal a bar; in a log a line a minute.

    Args:
        label: the stage's label, shown first.
        what: is counted, with what it is for.
        total: about how much there will be.
    """
    if console.quiet or not console.is_terminal:
        told = time.monotonic()

        def tell(done: int) -> None:
            nonlocal told
            if time.monotonic() - told > CALM_SECONDS:
                told = time.monotonic()
                say(f"{label:<12} {what} {done}/{total}")

        yield tell
        return
    with _bar() as shown:
        task = shown.add_task(label, total=total, note=what)
        yield lambda done: shown.update(task, completed=done, total=max(done, total))


def _bar() -> Progress:
    return bar_on(console, TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")))


def _calm(label: str, metric: str, tell: Callable[[str], None] | None = None) -> Callable[[Any], None]:
    told = time.monotonic()

    def show(now: Any) -> None:
        nonlocal told
        if time.monotonic() - told > CALM_SECONDS:
            told = time.monotonic()
            (tell or say)(f"{label:<12} {escape(_note(now, metric))}")

    return show


def _note(now: Any, metric: str) -> str:
    loss = "" if now.loss is None else f"  loss {now.loss:.3g}"
    best = "" if now.metric is None else f"  {metric} {now.metric:.4g}"
    return f"epoch {now.epoch}/{now.epochs}{loss}{best}"


def size(count: float) -> str:
    """Bytes for people: 834 B, 27.1 KB, 1.07 MB (powers of 1,000)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 100 * scale else f"{count / scale:.0f} {unit}"
    return f"{count:.0f} B"
