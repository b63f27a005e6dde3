"""What a bench leaves: bench.json and a picture in the run's folder, a section of its report, and MLflow's metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flows.bench.ways import DECODED
from flows.runs import Finished
from tasks.console import say
from tasks.report import bench as report
from tasks.storage.store import write_json


def leave(done: Finished, result: Mapping[str, Any]) -> None:
    """Writes a bench where its run lies, in the place of an earlier one.

    Args:
        done: the run.
        result: of ``bench``.

    Raises:
        StorageError: the run's folder cannot be written.
    """
    file, figure, page = done.folder / report.FILE, done.folder / "figures" / "latency.svg", done.folder / "report.html"
    write_json(file, result)
    report.picture(result, figure)
    renewed = page.is_file() and report.renew(page, done.folder)
    if not renewed:
        say("report.html has no place for it: it is of an older release; bench.json and figures/latency.svg have all")
    tracker = done.run.tracker
    tracker.metrics(metrics_of(result))
    tracker.artifact(file)
    tracker.artifact(figure, "figures")
    if renewed:
        tracker.artifact(page)


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """MLflow's metrics: of the decoded file as ``latency_ms`` and so on, of each way as ``bench/<way>/latency_ms``."""
    small, large = str(result["batches"][0]), str(result["batches"][-1])
    found: dict[str, float] = {f"flops_{name}": one["flops"] for name, one in result["flops"].items()}
    for row in result["ways"]:
        if row["why"] is not None:
            continue
        one, many = row["batches"].get(small, {}), row["batches"].get(large, {})
        energy, memory = row.get("energy", {}), row.get("memory", {})
        figures = {
            "bytes": row["bytes"],
            "latency_ms": one.get("median_ms"),
            "latency_p10_ms": one.get("p10_ms"),
            "latency_p99_ms": one.get("p99_ms"),
            "cpu_ms": one.get("cpu_ms"),
            "samples_per_second": many.get("per_second"),
            "resident_bytes": memory.get("resident"),
            "peak_bytes": memory.get("peak"),
            "energy_mj" if not energy.get("assumed") else "energy_assumed_mj": energy.get("mj"),
        }
        found |= {f"bench/{row['way']}/{name}": value for name, value in figures.items() if value is not None}
    for name in ("latency_ms", "energy_mj"):
        if (value := found.get(f"bench/{DECODED}/{name}")) is not None:
            found[name] = value
    return {**found, "flops": result["flops"]["final"]["flops"]}
