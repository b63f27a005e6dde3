"""Memory of a way to run a model: how much this process grows by it, which must be a fresh one."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

PROC = Path("/proc/self")


@dataclass(frozen=True)
class Footprint:
    """Bytes of physical memory: of the process before loading, and what it has grown by.

    ``resident``: after loading and running once, with what was only needed for loading given back. ``peak``: the most
    at any time until the end of several runs.
    """

    before: int
    resident: int
    peak: int


def footprint(load: Callable[[], Callable[[], object]], runs: int = 5) -> Footprint:
    """What loading and running adds to this process.

    Args:
        load: returns what runs the model once.
        runs: how often it is run.
    """
    _give_back()
    before = resident()
    _forget_peak()
    run = load()
    run()
    _give_back()
    loaded = resident()
    for _ in range(runs):
        run()
    return Footprint(before, max(loaded - before, 0), max(peak() - before, loaded - before, 0))


def resident() -> int:
    """Bytes of this process in physical memory now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """The most bytes of this process in physical memory: since ``_forget_peak`` on Linux, else since it began."""
    with suppress(OSError, ValueError, IndexError):
        lines = (PROC / "status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
    with suppress(ImportError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
    return resident()


def parameter_bytes(model: nn.Module) -> int:
    """Bytes that a model's parameters and buffers hold in memory; what is shared counts once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}.values())


def _give_back() -> None:
    """What is free, but kept by the allocator for later, goes back to the system, where it is glibc's."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _forget_peak() -> None:
    with suppress(OSError):
        (PROC / "clear_refs").write_text("5")
