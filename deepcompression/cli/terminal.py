"""What `dcz` says on a terminal while it works, and how it prints what it was given."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deepcompression.errors import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

PATIENCE = 2.0
WIDE = 110  # columns that a bar needs with everything beside it
MOST_OF_A_NOTE = 2_000


class Stopped(Exception):
    """Ctrl-C ended work that left something behind: says what."""


class Bar:
    """Progress in bytes on stderr, gone when done; only on a terminal, and only from the third second of work on.

    `with Bar("encoding", total) as bar: save(..., progress=bar)`.
    """

    def __init__(self, what: str, total: int) -> None:
        """`what` is done; `total` bytes of tensors."""
        self._what = what
        self._total = total
        self._done = 0
        self._shown: tuple[Progress, Any] | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(PATIENCE, self._show)
        self._timer.daemon = True

    def __call__(self, name: str, nbytes: int) -> None:
        """The tensor `name`, of so many bytes, is done."""
        with self._lock:
            self._done += nbytes
            if self._shown is not None:
                progress, task = self._shown
                progress.update(task, completed=self._done)

    def again(self, what: str) -> None:
        """Another pass over the same tensors begins."""
        with self._lock:
            self._what, self._done = what, 0
            if self._shown is not None:
                progress, task = self._shown
                progress.reset(task, description=what)

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            if self._shown is not None:
                self._shown[0].stop()
            self._total = -1

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import DownloadColumn

        with self._lock:
            if self._total >= 0:
                progress = bar_on(Console(stderr=True), DownloadColumn())
                task = progress.add_task(self._what, total=self._total, completed=self._done)
                self._shown = progress, task
                progress.start()


def bar_on(console: Console, middle: ProgressColumn) -> Progress:
    """Bars that are gone when done: what is done, how far, `middle`, the time that it took and that is left."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.table import Column

    whole = Column(no_wrap=True, min_width=7)  # on 80 columns the middle gives way, not the time
    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=20 if console.width >= WIDE else 6),
        middle,
        TimeElapsedColumn(table_column=whole),
        TextColumn("left"),
        TimeRemainingColumn(table_column=whole),
    )
    return Progress(*columns, console=console, transient=True)


def plain(text: str) -> str:
    """`text` in one line without control characters, whatever a file calls its tensors."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def note(text: str) -> None:
    """One line on stderr, cut where a hostile file's name made it endless."""
    line = plain(one_line(text))
    print(f"dcz: {line if len(line) <= MOST_OF_A_NOTE else f'{line[:MOST_OF_A_NOTE]}...'}", file=sys.stderr)


class _Telling(logging.Handler):
    """Hands on each message."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage())


def tell_of_compiling(tell: Callable[[str], None] = note) -> None:
    """From now on a person is told when something is compiled, which takes seconds, once a machine."""
    logger = logging.getLogger("deepcompression._numba")
    if not any(isinstance(one, _Telling) for one in logger.handlers):
        logger.addHandler(_Telling(tell))
        logger.setLevel(logging.INFO)


def compiled() -> tuple[float, bool]:
    """Seconds that numba spent on compiling in this process, and whether it kept the outcome; imports nothing."""
    seconds, kept = 0.0, False
    kernels: Any = sys.modules.get("deepcompression.codec.kernels")
    for kernel in vars(kernels).values() if kernels else ():
        if not hasattr(kernel, "stats"):
            continue
        for signature in kernel.stats.cache_misses:
            timers = (kernel.get_metadata(signature) or {}).get("timers") or {}
            seconds += max(timers.values(), default=0.0)
            kept = kept or bool(kernel.stats.cache_path)
    return seconds, kept
