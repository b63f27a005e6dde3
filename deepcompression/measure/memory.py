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
REHEARSALS = 2


@dataclass(frozen=True)
class Footprint:
    """Bytes of physical memory that this process has grown by.

    ``resident``: after loading and running once, with what was only needed for loading given back. ``running``: the
    most while it runs; ``peak``: the most at any time, loading too (where the system forgets no peak, since the process
    began). ``process``: all of the process, with the libraries' code, after loading.
    """

    resident: int
    running: int
    peak: int
    process: int


def footprint(load: Callable[[], Callable[[], object]], runs: int = 5) -> Footprint:
    """What loading and running adds to this process; twice before it is done for nothing.

    What the first times bring into memory for good, a runtime's code and its pools, is so no part of the growth.

    Args:
        load: returns what runs the model once.
        runs: how often it is run.
    """
    for _ in range(REHEARSALS):
        load()()
    _give_back()
    before = resident()
    _forget_peak()
    run = load()
    run()
    loading = peak()
    _give_back()
    process = resident()
    _forget_peak()
    for _ in range(runs):
        run()
    running = max(peak(), process)
    most = max(loading, running)
    return Footprint(max(process - before, 0), max(running - before, 0), max(most - before, 0), process)


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
