"""The file of a run in the formats of other runtimes: one tracked task a target, behind verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from pydantic import BaseModel

from deepcompression.errors import ExportError
from deepcompression.export import target_of
from tasks.console import say
from tasks.execution.example import example_of
from tasks.execution.run import Run
from tasks.execution.settings import Stage
from tasks.execution.stage import TASK
from tasks.secrets import sealed

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = 16  # on which outputs are compared


def check_export(
    run: Run, target: str, inputs: Sequence[str] | None, stages: Sequence[tuple[str, BaseModel]] = ()
) -> None:
    """Tells before anything trains what would stop an export: a package that is missing, a model that it cannot take,
    an edit that a stage will make of it.

    Args:
        run: the run.
        target: one of ``deepcompression.export.TARGETS``.
        inputs: where samples are mappings: what the model takes, in its arguments' order.
        stages: labels and their keys of the recipe, the baseline's among them.

    Raises:
        ExportError, DataError: in one line.
    """
    module = target_of(target)
    for label, settings in stages:
        for kind, key in settings.edits().items() if isinstance(settings, Stage) else ():
            if kind not in module.CARRIES:
                raise ExportError(
                    f"export {target}: stage {label}: {key} makes the edit {kind}, which this target does not write "
                    f"yet; leave {key} or the export out"
                )
    module.check(run.blank_model(), _sample(run, inputs))


@task(name="export", **TASK)
@sealed
def export(run: Run, label: str, target: str, inputs: Sequence[str] | None, path: str) -> dict[str, Any]:
    """Writes a run's ``.dcz`` for another runtime, into the run's folder, and compares what comes out there.

    Args:
        run: the run.
        label: the task's name.
        target: one of ``deepcompression.export.TARGETS``.
        inputs: where samples are mappings: what the model takes, in its arguments' order.
        path: the run's ``.dcz``.

    Returns:
        What the summary has of it: ``target``, ``file``, ``bytes``, ``float_bytes``, ``max_difference``, ``tensors``.

    Raises:
        ExportError: the target cannot take the model.
        InvariantError: its outputs are not those of the decoded file.
    """
    from deepcompression.torch import load_into

    run.ready()
    module = target_of(target)
    file = Path(run.folder) / "exports" / module.FILE
    made = module.export(load_into(run.blank_model(), path), _sample(run, inputs), file)
    numbers = {"bytes": made.bytes, "float_bytes": made.float_bytes, "max_difference": made.max_difference}
    run.tracker.metrics({f"export/{target}/{name}": value for name, value in numbers.items()})
    run.tracker.artifact(file, "exports")
    say(f"{target}: {made.bytes:,} bytes (float {made.float_bytes:,})")
    return {"target": target, "file": str(file), **numbers, "tensors": [asdict(one) for one in made.tensors]}


def _sample(run: Run, inputs: Sequence[str] | None) -> list[Tensor]:
    import torch

    example = example_of(run, inputs, key="export.inputs", count=SAMPLES)
    return [torch.from_numpy(one) for one in (example.values() if isinstance(example, dict) else [example])]
