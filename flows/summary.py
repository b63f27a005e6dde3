"""What a run says of itself: summary.json, the report, Prefect's artifacts."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run

from deepcompression.errors import one_line
from flows import watchdog
from flows.shown import leave_artifacts
from tasks.console import say
from tasks.execution.execute import left_alone, numbers_of, reference_of
from tasks.execution.run import Reference, Run
from tasks.execution.settings import plain
from tasks.execution.warned import kept
from tasks.machine.deadline import within
from tasks.report.beside import beside
from tasks.report.figures import bytes_by_stage
from tasks.report.methods import methods_of
from tasks.report.page import write_report
from tasks.secrets import hidden, masked
from tasks.stages.verify import Verified
from tasks.storage.store import write_json
from tasks.tracking.results import columned, epoch_rows, results_of, stage_rows, tags_of

SUMMARY_VERSION = 1
ARTIFACT_SECONDS = 10.0


def spread_of(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean, worst and spread (sample standard deviation) over seeds, of size, ratio and test results."""

    def over(values: Sequence[float], worst: Any) -> dict[str, float]:
        if not all(map(math.isfinite, values)):
            return dict.fromkeys(("mean", "worst", "spread"), math.nan)
        return {
            "mean": statistics.fmean(values),
            "worst": worst(values),
            "spread": statistics.stdev(values) if len(values) > 1 else 0.0,
        }

    def ends(end: str) -> dict[str, Any]:
        first = summaries[0][end]
        higher = first["higher_is_better"]
        rising = {"metric": higher, "accuracy": True, "correct": True, "error": False}
        return {
            name: over([one[end][name] for one in summaries], min if rising[name] else max)
            for name in rising
            if first.get(name) is not None
        }

    return {
        "file_bytes": over([one["file_bytes"] for one in summaries], max),
        "ratio": over([one["ratio"] for one in summaries], min),
        "baseline": ends("baseline"),
        "final": ends("final"),
    }


def summary_of(run: Run, references: Sequence[Reference], verified: Verified, path: Path) -> dict[str, Any]:
    """What ``summary.json`` holds of one run."""
    dense, count = references[0].numbers["dense_bytes"], path.stat().st_size
    began, ends = run.tracker.began, (run.state(references[0]), run.state(references[-2]))
    names = (
        "stage", "size_bytes", "compression_ratio", "density", "bits_per_weight", "val_metric", "seconds", "cached",
    )  # fmt: skip
    return {
        "summary_version": SUMMARY_VERSION,
        "name": run.name,
        "seed": run.seed,
        "dense_bytes": dense,
        "file_bytes": count,
        "ratio": dense / count,
        "started": began,
        "seconds": None if began is None else round(time.time() - began, 1),
        "beside": beside(*ends, Path(run.folder), run.name, run.seed),
        "metric": run.metric_object().name,
        "data_digest": run.data_identity().digest,
        "data_notes": list(run.data_identity().notes),
        **({"classes": list(classes)} if (classes := run.splits().classes) else {}),
        "baseline": verified.baseline,
        "final": verified.final,
        "comparison": verified.comparison,
        "edits": [dict(edit) for edit in references[-1].edits],
        "stages": [
            {
                **{name: reference.numbers[name] for name in names},
                "model_density": reference.numbers.get("model_density"),
                "left_alone": left_alone(entry),
                "methods": methods_of(entry),
                "key": reference.key,
            }
            for reference in references
            for entry in [run.store.find(reference.key) or {}]
        ],
        "reused": [reference.numbers["stage"] for reference in references if reference.numbers["cached"]],
        "warnings": kept(run.folder),
        "file": str(path),
        "folder": run.folder,
        "tracking_uri": masked(run.tracker.uri),
        "mlflow_run_id": run.tracker.run_id,
        "prefect_flow_run_id": str(flow_run.id) if flow_run.id else None,
    }


def leave(
    run: Run, references: Sequence[Reference], summary: dict[str, Any], stored: Mapping[str, Any], alone: bool
) -> None:
    """Everything that a finished run leaves: folder, MLflow, Prefect; ``alone``: no other seed is to come."""
    import deepcompression

    folder, file = Path(run.folder), Path(summary["file"])
    inspection = deepcompression.inspect(file)
    write_json(folder / "summary.json", summary)
    bytes_by_stage(summary["stages"], inspection, folder / "figures" / "bytes.svg")
    write_report(run, references, summary, stored, folder / "report.html")
    if alone:
        watchdog.done(summary, file.stat().st_size)
    run.tracker.dataset(run.data.factory, summary["data_digest"], plain(run.data))
    run.tracker.metrics(results_of(summary))
    run.tracker.tags({**tags_of(summary, run.tracker.place), **warnings_tag(summary)})
    entries = [run.store.find(reference.key) or {} for reference in references]
    for name, rows in (
        ("stages.json", stage_rows(references, entries)),
        ("history.json", epoch_rows(references, entries)),
    ):
        write_json(folder / name, columned(rows))
    for name in (file.name, "summary.json", "report.html", "stages.json", "history.json"):
        run.tracker.artifact(folder / name)
    run.tracker.artifact(folder / "figures" / "bytes.svg", "figures")
    try:
        within(ARTIFACT_SECONDS, leave_artifacts, run, hidden(summary))
    except Exception as error:  # a server that went away: the run is finished, and its report lies in its folder
        reason = masked(one_line(error))[:120]
        say(f"[yellow]Prefect:[/] its server does not take the run's artifacts ({reason})")


def warnings_tag(summary: Mapping[str, Any]) -> dict[str, str]:
    """As much of all warnings as MLflow takes in a tag."""
    text = "; ".join(f"{one['stage']}: {one['text']}" for one in summary["warnings"])
    return {"warnings": text[:4900]} if text else {}


def renew(run: Run, summary: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    """Writes a finished run's report again, from its folder and the store; says so where the store has it no more.

    Args:
        run: the run.
        summary: what it says now.
        recipe: as stored, secrets masked.
    """
    path = Path(run.folder) / "report.html"
    entries = [(row, run.store.find(row["key"])) for row in summary["stages"]]
    if gone := [row["stage"] for row, entry in entries if entry is None or not run.store.intact(entry["object"])]:
        say(f"[yellow]report.html[/] stays as it was: the store has no {', '.join(gone)} of this run any more")
        return
    references = []
    for row, entry in entries:
        numbers = {"stage": row["stage"], "seconds": row["seconds"], "cached": row["cached"]}
        references.append(reference_of(row["key"], entry or {}, {**numbers_of(entry or {}), **numbers}))
    file = Path(run.folder) / "model.dcz"
    write_report(run, references, {**summary, "file": str(file), "folder": run.folder}, recipe, path)
    run.tracker.artifact(path)
