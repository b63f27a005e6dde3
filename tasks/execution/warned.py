"""Warnings of a run: on the console at once, and kept in its folder, for report, summary and MLflow."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rich.markup import escape

from tasks.console import say
from tasks.secrets import masked

FILE = "warnings.jsonl"
LOGGERS = ("deepcompression", "tasks", "flows")
Hears = Callable[[str], None]
_hears: ContextVar[Hears | None] = ContextVar("hears", default=None)


class _Listener(logging.Handler):
    """Hands on what this project's own loggers warn of; Prefect's handlers would swallow it."""

    def emit(self, record: logging.LogRecord) -> None:
        hears = _hears.get() or _say
        hears(" ".join(record.getMessage().split()))


def listen() -> None:
    """From now on every warning of this project's loggers reaches a person; once a process is enough."""
    for name in LOGGERS:
        logger = logging.getLogger(name)
        if not any(isinstance(one, _Listener) for one in logger.handlers):
            logger.addHandler(_Listener(logging.WARNING))


@contextlib.contextmanager
def warned(folder: str | Path, label: str) -> Iterator[list[str]]:
    """Keeps, while the block works, every warning of it; yields the list of them as it grows.

    Args:
        folder: the run's.
        label: of the stage, shown before each.
    """
    listen()
    texts: list[str] = []

    def hears(text: str) -> None:
        if text not in texts:
            texts.append(text)
            warn(folder, label, text)

    token = _hears.set(hears)
    try:
        yield texts
    finally:
        _hears.reset(token)


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """Collects, while the block works, every warning of it, and neither says nor keeps one; yields the growing list."""
    listen()
    texts: list[str] = []
    token = _hears.set(lambda text: texts.append(text) if text not in texts else None)
    try:
        yield texts
    finally:
        _hears.reset(token)


def warn(folder: str | Path, label: str, text: str) -> None:
    """Says a warning, and keeps it in the run's folder; the same one again is neither said nor kept."""
    line = {"stage": label, "text": masked(text)}
    if line in kept(folder):
        return
    _say(text, f"{label}: ")
    with contextlib.suppress(OSError), (Path(folder) / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, ensure_ascii=False) + "\n")


def kept(folder: str | Path) -> list[dict[str, Any]]:
    """A run's warnings so far, in order: ``stage`` and ``text`` of each."""
    try:
        lines = (Path(folder) / FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):  # the last line of a process that was killed
            found.append(json.loads(line))
    return found


def _say(text: str, before: str = "") -> None:
    say(f"[yellow]warning:[/] {escape(before + text)}")
