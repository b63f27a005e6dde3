"""Which of several ways is faster: called by turns, so that what else the machine does slows all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

ROUNDS, SECONDS = 15, 0.4  # rounds at least 3, and no more when the time is over
SEEN, MOST_CALLS = 2e-4, 100  # seconds that a clock sees well


def medians(ways: Sequence[Callable[[], object]], threads: int) -> list[float]:
    """Microseconds that each takes, the median of several rounds.

    On one thread, of the processor's time: other programs on the machine do not count.

    Args:
        ways: what is called.
        threads: that they use.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    calls = [_calls(way, clock) for way in ways]
    took: list[list[float]] = [[] for _ in ways]
    end = time.perf_counter() + SECONDS
    while len(took[0]) < ROUNDS and (len(took[0]) < 3 or time.perf_counter() < end):
        for way, times, found in zip(ways, calls, took, strict=True):
            found.append(_seconds(way, times, clock) / times)
    return [1e6 * statistics.median(found) for found in took]


def _calls(way: Callable[[], object], clock: Callable[[], float]) -> int:
    """How many calls a clock sees well."""
    way()
    return max(1, min(MOST_CALLS, int(SEEN / max(min(_seconds(way, 1, clock) for _ in range(3)), 1e-9))))


def _seconds(way: Callable[[], object], calls: int, clock: Callable[[], float]) -> float:
    began = clock()
    for _ in range(calls):
        way()
    return clock() - began
