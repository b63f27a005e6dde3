"""Energy counters, of machines that are folders here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deepcompression.measure.energy import Rapl, assumed, cpu_meter, gpu_meter, measured


@pytest.fixture
def zone(tmp_path: Path) -> Callable[..., Path]:
    """Makes a zone of a powercap folder."""

    def make(name: str, microjoules: object, label: str = "package-0") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for file, text in (("name", label), ("energy_uj", microjoules), ("max_energy_range_uj", 999_999)):
            (folder / file).write_text(f"{text}\n")
        return folder

    return make


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path, zone: Callable[..., Path]) -> None:
    """Cores and memory are in their package, packages are in the platform: each joule counts once."""
    one, two = zone("intel-rapl:0", 100), zone("intel-rapl:1", 100, "package-1")
    core, platform = zone("intel-rapl:0:0", 0, "core"), zone("intel-rapl:2", 0, "psys")
    meter = cpu_meter(tmp_path)
    assert isinstance(meter, Rapl) and "2 packages" in meter.name
    for folder in (one, two, core, platform):
        (folder / "energy_uj").write_text("500100\n")
    assert meter.read() == pytest.approx(1.0) and meter.read() == 0.0


def test_a_counter_that_begins_again(tmp_path: Path, zone: Callable[..., Path]) -> None:
    """After its greatest value a counter is 0: what went by is the rest and what came after."""
    folder = zone("intel-rapl:0", 900_000)
    meter = cpu_meter(tmp_path)
    assert not isinstance(meter, str)
    (folder / "energy_uj").write_text("100000")
    assert meter.read() == pytest.approx(0.2)


def test_energy_is_of_one_call(tmp_path: Path, zone: Callable[..., Path]) -> None:
    """Calls fill the time; what was there before does not count."""
    folder, now = zone("intel-rapl:0", 0), [0.0]
    meter = cpu_meter(tmp_path)
    assert not isinstance(meter, str)
    (folder / "energy_uj").write_text("700000")

    def call() -> None:
        now[0] += 0.25
        (folder / "energy_uj").write_text(str(700_000 + round(40_000 * now[0])))

    told = measured(call, meter, 1.0, lambda: now[0])
    assert told.joules == pytest.approx(0.01) and not told.assumed and told.by.startswith("RAPL, 1 package:")


def test_no_counter_no_figure(tmp_path: Path, zone: Callable[..., Path]) -> None:
    """Where nothing counts, or may not be read, there is a reason instead of a number."""
    assert cpu_meter(tmp_path / "none") == f"this machine has no energy counters ({tmp_path / 'none'} is missing)"
    assert cpu_meter(tmp_path) == f"this machine has no energy counters (no package in {tmp_path})"
    folder = zone("intel-rapl:0", "-3")
    assert "cannot be read" in str(cpu_meter(tmp_path)) and "'-3'" in str(cpu_meter(tmp_path))
    (folder / "energy_uj").unlink()
    assert "may not be read" in str(cpu_meter(tmp_path)) and "root may" in str(cpu_meter(tmp_path))


def test_an_assumption_is_called_one() -> None:
    """A power that somebody types is no measurement."""
    told = assumed(15, 0.002)
    assert told.joules == 0.03 and told.assumed and told.by == "an assumption: 15 W while it runs"


def test_a_gpu_counts_in_millijoules() -> None:
    """NVML's counter, of a GPU that is not here; and why there is none."""
    values = iter([1000, 3500, 3500])
    nvml: Any = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(values),
    )
    meter = gpu_meter(0, nvml)
    assert not isinstance(meter, str) and meter.read() == 2.5 and meter.read() == 0.0

    def fail() -> None:
        raise RuntimeError("Driver Not Loaded")

    assert gpu_meter(0, SimpleNamespace(nvmlInit=fail)) == "the GPU's counter cannot be read (Driver Not Loaded)"
