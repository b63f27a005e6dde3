"""How busy the machine was while something was measured: by this process, and by others."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

BUSY = 0.1  # of a core, worked by others: timings then vary


@dataclass
class Load:
    """Cores that were at work on average, of ``cores``; and how many were waiting for one, in the last minute."""

    cores: int = field(default_factory=lambda: os.cpu_count() or 1)
    own: float = 0.0
    others: float = 0.0
    average: float | None = None

    @property
    def busy(self) -> bool:
        """Whether others were at work too."""
        return self.others >= BUSY


@contextmanager
def watched() -> Iterator[Load]:
    """Measures the load while the block runs; what it yields is known after it."""
    load = Load()
    load.average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    wall, own, machine = time.monotonic(), time.process_time(), _worked()
    yield load
    seconds = max(time.monotonic() - wall, 1e-9)
    load.own = (time.process_time() - own) / seconds
    load.others = max((_worked() - machine) / seconds - load.own, 0.0)


def _worked() -> float:
    """Seconds that all cores of the machine have worked so far."""
    import psutil

    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))
