"""A finished run's file in the formats of other runtimes: the flow behind ``python -m flows export``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from prefect import flow
from rich.markup import escape

from deepcompression.errors import WeightsError
from flows import history
from flows.compare.compare import read
from flows.compress import exports_of
from flows.runs import Finished, finished
from flows.summary import renew, warnings_tag
from tasks.execution.run import Reference
from tasks.export_settings import Export
from tasks.exports import check_export
from tasks.secrets import masked, sealed
from tasks.storage.store import write_json


@flow(name="export", flow_run_name="export of {folder}", validate_parameters=False)
def export_run(folder: str, targets: list[str], inputs: list[str] | None, io: str | None = None) -> dict[str, Any]:
    """Writes and judges exports of a finished run; summary, report and MLflow run have them afterwards.

    Args:
        folder: the run's.
        targets: of ``deepcompression.export.TARGETS``.
        inputs: where samples are mappings: what the model takes, in its arguments' order; else as the recipe has it.
        io: of inputs and outputs, ``float`` or ``integer``; else as the recipe has it.

    Returns:
        The summary.

    Raises:
        RecipeError: the run has several seeds, or no file.
        ExportError, InvariantError: a target failed; what the others gave is kept.
    """
    return _exported(finished(history.find(folder, history.default_uri())), targets, inputs, io)


@sealed
def _exported(done: Finished, targets: Sequence[str], inputs: list[str] | None, io: str | None) -> dict[str, Any]:
    known = {one.to: one.model_dump() for one in done.recipe.export}
    said = {key: value for key, value in {"inputs": inputs, "io": io}.items() if value}
    asked = [Export.model_validate({"to": to, **known.get(to, {}), **said}) for to in targets]
    done.run.ready()
    for one in asked:
        check_export(done.run, one)
    rows, failed = exports_of(done.run, asked, str(done.file), done.summary["final"], _dense(done))
    with FileLock(done.folder / ".exports.lock"):  # another process may have exported meanwhile
        entry = read(done.folder)
        others = [one for one in entry.summary.get("exports") or [] if one["target"] not in targets]
        summary = {**entry.summary, "exports": [*others, *rows], "warnings": _warnings(entry.summary, rows)}
        write_json(done.folder / "summary.json", summary)
        done.run.tracker.artifact(done.folder / "summary.json")
        done.run.tracker.tags(warnings_tag(summary))
        renew(done.run, summary, entry.recipe)
    if failed is not None:
        raise failed
    return summary


def _dense(done: Finished) -> Reference | None:
    """The dense net; None where the store has it no more, without which an export is made all the same."""
    try:
        return done.baseline()
    except WeightsError:
        return None


def _warnings(summary: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The run's, with those of these exports in the place of what was said of them before."""
    labels = {f"export-{one['target']}" for one in rows}
    others = [one for one in summary.get("warnings") or [] if one["stage"] not in labels]
    new = [(one["target"], text) for one in rows for text in one.get("warnings") or []]
    return [*others, *({"stage": f"export-{target}", "text": masked(text)} for target, text in new)]


def table(summary: dict[str, Any]) -> str:
    """A line an export, for the console, and one for each of its warnings."""
    return "\n".join(line for one in summary["exports"] for line in _lines(one))


def _lines(one: Mapping[str, Any]) -> list[str]:
    time = f"{one['latency_ms']:9.3g} ms  " if one.get("latency_ms") else " " * 14
    told = f"{one['target']:10} {one.get('bytes', 0):>12,} bytes {time}"
    return [
        f"{told}{escape(str(one.get('error') or Path(one['file'])))}",
        *(f"{'':10} [yellow]warning:[/] {escape(text)}" for text in one.get("warnings") or []),
    ]
