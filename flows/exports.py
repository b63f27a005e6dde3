"""A finished run's file in the formats of other runtimes: the flow behind ``python -m flows export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from prefect import flow
from rich.markup import escape

from flows import history
from flows.compare.compare import read
from flows.compress import exports_of
from flows.recipe.schema import Export
from flows.runs import Finished, finished
from flows.summary import renew
from tasks.exports import check_export
from tasks.secrets import sealed
from tasks.storage.store import write_json


@flow(name="export", flow_run_name="export of {folder}", validate_parameters=False)
def export_run(folder: str, targets: list[str], inputs: list[str] | None) -> dict[str, Any]:
    """Writes and judges exports of a finished run; summary, report and MLflow run have them afterwards.

    Args:
        folder: the run's.
        targets: of ``deepcompression.export.TARGETS``.
        inputs: where samples are mappings: what the model takes, in its arguments' order; else as the recipe has it.

    Returns:
        The summary.

    Raises:
        RecipeError: the run has several seeds, or no file.
        ExportError, InvariantError: a target failed; what the others gave is kept.
    """
    return _exported(finished(history.find(folder, history.default_uri())), targets, inputs)


@sealed
def _exported(done: Finished, targets: Sequence[str], inputs: list[str] | None) -> dict[str, Any]:
    known = {one.to: one.inputs for one in done.recipe.export}
    asked = [Export(to=to, inputs=inputs or known.get(to)) for to in targets]
    for one in asked:
        check_export(done.run, one.to, one.inputs)
    rows, failed = exports_of(done.run, asked, str(done.file), done.summary["final"])
    with FileLock(done.folder / ".exports.lock"):  # another process may have exported meanwhile
        entry = read(done.folder)
        kept = [one for one in entry.summary.get("exports") or [] if one["target"] not in targets]
        summary = {**entry.summary, "exports": [*kept, *rows]}
        write_json(done.folder / "summary.json", summary)
        done.run.tracker.artifact(done.folder / "summary.json")
        renew(done.run, summary, entry.recipe)
    if failed is not None:
        raise failed
    return summary


def table(summary: dict[str, Any]) -> str:
    """A line an export, for the console."""
    return "\n".join(
        f"{one['target']:10} {one.get('bytes', 0):>12,} bytes  {escape(str(one.get('error') or Path(one['file'])))}"
        for one in summary["exports"]
    )
