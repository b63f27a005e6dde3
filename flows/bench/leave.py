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
    """MLflow's metrics: of the decoded file ``latency_ms``, ``energy_mj`` and ``flops``, of each way
    ``bench/<way>/latency_ms``; all that was measured is in bench.json."""
    small = str(result["batches"][0])
    found: dict[str, float] = {"flops": result["flops"]["final"]["flops"]}
    for row in result["ways"]:
        time, energy = row.get("batches", {}).get(small, {}).get("median_ms"), row.get("energy", {})
        if row["why"] is None and time is not None:
            found[f"bench/{row['way']}/latency_ms"] = time
            found |= {"latency_ms": time} if row["way"] == DECODED else {}
        if row["way"] == DECODED and energy and not energy.get("assumed"):
            found["energy_mj"] = energy["mj"]
    return found
