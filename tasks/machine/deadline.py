"""A bound on what a call may take, whoever keeps it waiting: limits of HTTP clients count each read anew."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from deepcompression.errors import RunError

CALL_SECONDS = 12.0  # one call of a server's client: two tries of five seconds, and the connections
SLOWEST = 1e6  # bytes a second of an upload or a download

T = TypeVar("T")


def within(seconds: float, work: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """What ``work`` returns or raises; the call is left to itself, in its thread, if it takes longer than ``seconds``.

    Raises:
        RunError: it took longer.
    """
    future: Future[T] = Future()
    context = contextvars.copy_context()  # Prefect keeps there which run this is

    def call() -> None:
        try:
            future.set_result(context.run(work, *arguments, **keywords))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=call, daemon=True, name="bounded-call").start()
    try:
        return future.result(seconds)
    except TimeoutError:
        if future.done():  # the call's own
            raise
        raise RunError(f"no whole answer within {seconds:.0f} s") from None


class Bounded:
    """A client of which each call has a deadline; one that carries files gets more time for more bytes."""

    def __init__(self, client: Any, slowest: float = SLOWEST) -> None:
        self._client, self._slowest = client, slowest

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if not callable(found):
            return found

        def bounded(*arguments: Any, **keywords: Any) -> Any:
            files = [*arguments, *keywords.values()] if "artifact" in name else []
            seconds = CALL_SECONDS + sum(map(_bytes, files)) / self._slowest
            return within(seconds, found, *arguments, **keywords)

        return bounded


def _bytes(path: Any) -> int:
    """Of a file, or of all files below a folder, named from the root; 0 for anything else."""
    try:
        found = Path(path)
        inside = [found] if found.is_file() else found.rglob("*")
        return sum(one.stat().st_size for one in inside) if found.is_absolute() else 0
    except (OSError, TypeError, ValueError):
        return 0
