"""How long several callables take, side by side: interleaved in one process, so that what disturbs one disturbs all."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

LEAST_ROUNDS = 7
LEAST_WARM = 3  # calls
MOST_CALLS = 200  # of one callable in a round
FOR_P99 = 100  # calls: of fewer, the hundredth part is not one call

Call = Callable[[Any], object]


@dataclass(frozen=True)
class Clock:
    """Nanoseconds that passed, and nanoseconds that all threads of this process worked."""

    wall: Callable[[], int] = time.perf_counter_ns
    cpu: Callable[[], int] = time.process_time_ns


@dataclass(frozen=True)
class Plan:
    """How long is measured: so many rounds, or as many (seven at least) as fit into ``seconds`` for each callable.

    In a round each callable is called for ``burst`` seconds, once at least; before the first one for ``warm`` seconds,
    three times at least.
    """

    seconds: float = 2.0
    rounds: int | None = None
    burst: float = 0.02
    warm: float = 0.2


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: over all calls but those that warm up.

    ``p99`` is None of fewer than 100 calls. ``cpu``: the median of what all threads of the process worked during a
    call. ``by_round``: each round's median.
    """

    median: float
    p10: float
    p99: float | None
    iqr: float
    cpu: float
    calls: int
    by_round: tuple[float, ...]


def interleaved(
    rivals: Mapping[str, Call], batch: Any, plan: Plan | None = None, clock: Clock | None = None
) -> dict[str, Timing]:
    """Times each of ``rivals`` on the same batch: in rounds, each round beginning with another one.

    The first of several calls in a round is not counted: it finds the caches full of what a rival left there. The
    garbage collector rests meanwhile.

    Args:
        rivals: name -> callable, which takes ``batch`` and comes back when its work is done.
        batch: what each is given.
        plan: how long.
        clock: of this process; another one for tests.
    """
    plan, clock = plan or Plan(), clock or Clock()
    names, taken = list(rivals), {name: _Taken() for name in rivals}
    with _collected():
        counts = {name: _warmed(rivals[name], batch, plan, clock) for name in names}
        started = clock.wall()
        for number in itertools.count():
            if _enough(plan, number, (clock.wall() - started) / 1e9 / len(names)):
                break
            for name in names[number % len(names) :] + names[: number % len(names)]:
                taken[name].add(_burst(rivals[name], batch, counts[name], clock))
    return {name: one.told() for name, one in taken.items()}


def ratio(one: Timing, other: Timing) -> float:
    """How many times as long as ``other`` it takes: the median over rounds, in which both were disturbed alike."""
    return median(a / b if b else float("inf") for a, b in zip(one.by_round, other.by_round, strict=True))


def _enough(plan: Plan, rounds: int, seconds: float) -> bool:
    return rounds >= plan.rounds if plan.rounds else rounds >= LEAST_ROUNDS and seconds >= plan.seconds


class _Taken:
    """What was measured of one callable so far, in nanoseconds."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.cpu: list[int] = []
        self.rounds: list[float] = []

    def add(self, calls: Sequence[tuple[int, int]]) -> None:
        walls, cpus = zip(*calls, strict=True)
        self.calls += walls
        self.cpu += cpus
        self.rounds.append(median(walls))

    def told(self) -> Timing:
        p10, p25, p50, p75, p99 = (float(one) / 1e9 for one in np.percentile(self.calls, (10, 25, 50, 75, 99)))
        count = len(self.calls)
        rounds = tuple(one / 1e9 for one in self.rounds)
        return Timing(p50, p10, p99 if count >= FOR_P99 else None, p75 - p25, median(self.cpu) / 1e9, count, rounds)


def _warmed(call: Call, batch: Any, plan: Plan, clock: Clock) -> int:
    """Warms up; how many calls make a burst."""
    started, calls = clock.wall(), list[int]()
    while len(calls) < LEAST_WARM or clock.wall() - started < plan.warm * 1e9:
        calls.append(_timed(call, batch, clock)[0])
    return int(min(max(plan.burst * 1e9 // max(median(calls), 1), 1), MOST_CALLS))


def _burst(call: Call, batch: Any, count: int, clock: Clock) -> list[tuple[int, int]]:
    if count > 1:
        call(batch)
    return [_timed(call, batch, clock) for _ in range(count)]


def _timed(call: Call, batch: Any, clock: Clock) -> tuple[int, int]:
    """What passed, and what was worked."""
    worked, started = clock.cpu(), clock.wall()
    call(batch)
    return clock.wall() - started, clock.cpu() - worked


@contextmanager
def _collected() -> Iterator[None]:
    """Without garbage collection meanwhile."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
