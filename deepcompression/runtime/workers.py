"""Rows of a layer on several threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

WORTH = 1 << 19  # multiplications that repay waking a thread


class Workers:
    """At most so many threads, which begin when first they are worth it."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._pool: ThreadPoolExecutor | None = None
        self._process = 0
        self._scratch = threading.local()

    def scratch(self, what: str, rows: int, columns: int) -> NDArray[np.float32]:
        """Memory (rows, columns) of any content, the calling thread's own until it asks for the same again.

        Args:
            what: it is for.
            rows: of it.
            columns: of each.
        """
        held: NDArray[np.float32] | None = getattr(self._scratch, what, None)
        if held is None or len(held) < rows * columns:
            held = np.empty(rows * columns, np.float32)
            setattr(self._scratch, what, held)
        return held[: rows * columns].reshape(rows, columns)

    def parts(self, work: int) -> int:
        """Threads that so many multiplications repay."""
        return min(self.threads, 1 + work // WORTH)

    def spread(self, rows: int, work: int, function: Callable[[int, int], object]) -> None:
        """Call ``function(first row, row behind the last)`` for parts that make up all rows.

        Args:
            rows: of the layer.
            work: multiplications of all of them.
            function: that lets go of Python's lock.
        """
        parts = min(self.parts(work), rows)
        if parts <= 1:
            function(0, rows)
            return
        ends = [rows * part // parts for part in range(parts + 1)]
        others: list[Future[object]] = [self._threads().submit(function, *ends[at : at + 2]) for at in range(1, parts)]
        function(0, ends[1])
        for one in others:
            one.result()

    def _threads(self) -> ThreadPoolExecutor:
        if self._pool is None or self._process != os.getpid():  # threads do not come along with a fork
            self._pool, self._process = ThreadPoolExecutor(self.threads - 1), os.getpid()
        return self._pool
