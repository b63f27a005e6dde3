"""Energy of a call, where the machine counts it: Intel's and AMD's RAPL counters, NVIDIA's NVML. Nothing is guessed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

POWERCAP = Path("/sys/class/powercap")


class Meter(Protocol):
    """``name``: what it counts; ``read``: joules since the last reading."""

    name: str

    def read(self) -> float:
        """Joules since the last reading, or since the meter was made."""


@dataclass(frozen=True)
class Energy:
    """Joules of a call; ``by``: what counted them, or what they were worked out from."""

    joules: float
    by: str
    assumed: bool = False


class Rapl:
    """The CPU packages' energy counters, which begin again at 0 beyond their range: read at least every few minutes."""

    def __init__(self, zones: Sequence[Path]) -> None:
        self.name = f"RAPL, {len(zones)} package{'s' if len(zones) > 1 else ''}: all that the machine did meanwhile"
        self._zones = {zone: _number(zone / "max_energy_range_uj") for zone in zones}
        self._last = {zone: _number(zone / "energy_uj") for zone in zones}

    def read(self) -> float:
        """Joules of all packages since the last reading."""
        joules = 0.0
        for zone, most in self._zones.items():
            now = _number(zone / "energy_uj")
            gone = now - self._last[zone]
            joules += (gone if gone >= 0 else gone + most + 1) / 1e6
            self._last[zone] = now
        return joules


class Nvml:
    """A GPU's energy counter."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.name = "NVML: all that the GPU did meanwhile"
        self._nvml, self._handle = nvml, handle
        self._last = self._so_far()

    def read(self) -> float:
        """Joules since the last reading."""
        now = self._so_far()
        gone, self._last = now - self._last, now
        return gone

    def _so_far(self) -> float:
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3


def cpu_meter(folder: Path = POWERCAP) -> Meter | str:
    """RAPL's counters, or why there are none.

    Args:
        folder: Linux's powercap folder.
    """
    if not folder.is_dir():
        return f"this machine has no energy counters ({folder} is missing)"
    zones = sorted(zone for zone in folder.glob("intel-rapl:*") if zone.name.count(":") == 1 and _is_package(zone))
    if not zones:
        return f"this machine has no energy counters (no package in {folder})"
    try:
        return Rapl(zones)
    except OSError as error:
        return f"its energy counters may not be read ({error.filename}: {error.strerror}; root may)"
    except ValueError as error:
        return f"its energy counters cannot be read ({error})"


def gpu_meter(index: int = 0, nvml: Any = None) -> Meter | str:
    """A GPU's counter, or why there is none.

    Args:
        index: of the GPU, as NVML counts them.
        nvml: the module pynvml, else it is imported.
    """
    try:
        nvml = nvml or import_module("pynvml")
        nvml.nvmlInit()
        return Nvml(nvml, nvml.nvmlDeviceGetHandleByIndex(index))
    except ImportError:
        return "the GPU's counter needs pynvml: pip install nvidia-ml-py"
    except Exception as error:  # NVML has a class of its own for each of its errors
        return f"the GPU's counter cannot be read ({error})"


def measured(
    call: Callable[[], object], meter: Meter, seconds: float = 1.0, clock: Callable[[], float] = time.perf_counter
) -> Energy:
    """The energy of one of as many calls as fit into ``seconds``.

    Args:
        call: what is measured; the counters see all else that runs, too.
        meter: of ``cpu_meter`` or ``gpu_meter``.
        seconds: for how long; the counters are renewed a thousand times a second at most.
        clock: seconds.
    """
    meter.read()
    started, calls = clock(), 0
    while not calls or clock() - started < seconds:
        call()
        calls += 1
    return Energy(meter.read() / calls, meter.name)


def assumed(watts: float, seconds: float) -> Energy:
    """What a call of so many seconds takes on a machine that somebody says to draw ``watts``."""
    return Energy(watts * seconds, f"an assumption: {watts:g} W while it runs", assumed=True)


def _is_package(zone: Path) -> bool:
    """Not of the whole platform, which holds the packages."""
    try:
        return not (zone / "name").read_text().startswith("psys")
    except OSError:
        return True


def _number(path: Path) -> int:
    text = path.read_text().strip()
    if not text.isdecimal():
        raise ValueError(f"{path} says {text[:40]!r}")
    return int(text)
