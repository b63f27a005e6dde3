"""The file of a run in the formats of other runtimes: one tracked task a target, behind verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from pydantic import BaseModel

from deepcompression.errors import ExportError, FactoryError, one_line
from deepcompression.export import target_of
from tasks.console import say
from tasks.execution.example import example_of
from tasks.execution.run import Run
from tasks.execution.settings import Stage
from tasks.execution.stage import TASK
from tasks.secrets import sealed

if TYPE_CHECKING:
    from torch import Tensor, nn

SAMPLES = 16  # on which outputs are compared, and which decide what ranges a target has to find itself


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
        for kind, key in settings.ranges().items() if isinstance(settings, Stage) else ():
            if kind not in getattr(module, "RANGES", [kind]):
                raise ExportError(
                    f"export {target}: stage {label}: {key}: {kind} is of values that are not known before, where this "
                    f"target writes {', '.join(module.RANGES)} ones; leave {key} or the export out"
                )
    module.check(run.blank_model(), _sample(run, inputs))


@task(name="export", **TASK)
@sealed
def export(
    run: Run, label: str, target: str, inputs: Sequence[str] | None, path: str, final: Mapping[str, Any]
) -> dict[str, Any]:
    """Writes a run's ``.dcz`` for another runtime, into the run's folder, and judges it there as the file was judged.

    Args:
        run: the run.
        label: the task's name.
        target: one of ``deepcompression.export.TARGETS``.
        inputs: where samples are mappings: what the model takes, in its arguments' order.
        path: the run's ``.dcz``.
        final: what verify found of that file: the ``split``, ``metric``, ``correct`` of ``total``.

    Returns:
        What the summary has of it: ``target``, ``file``, ``bytes``, ``float_bytes``, ``max_difference``, ``split``,
        ``metric``, ``correct``, ``notes``, ``tensors``.

    Raises:
        ExportError: the target cannot take the model, or recognises what the decoded file does not, or less.
        InvariantError: its outputs are not those of the decoded file.
    """
    from deepcompression.torch import load_into

    run.ready()
    module = target_of(target)
    file = Path(run.folder) / "exports" / module.FILE
    model, sample = load_into(run.blank_model(), path), _sample(run, inputs)
    made = module.export(model, sample, file)
    judged = _judged(run, target, file, model, sample, str(final["split"]))
    numbers = {"bytes": made.bytes, "float_bytes": made.float_bytes, "max_difference": made.max_difference}
    metrics = {**numbers, **{name: judged[name] for name in ("metric", "correct") if judged.get(name) is not None}}
    run.tracker.metrics({f"export/{target}/{name}": value for name, value in metrics.items()})
    for one in [file] if file.is_file() else sorted(part for part in file.rglob("*") if part.is_file()):
        run.tracker.artifact(one, one.parent.relative_to(run.folder).as_posix())
    say(f"{target}: {made.bytes:,} bytes (float {made.float_bytes:,}), {_told(judged, final)}")
    _check_equal(target, judged, final, made.integers)
    notes = [*made.notes, *([judged.pop("note")] if "note" in judged else [])]
    tensors = [asdict(one) for one in made.tensors]
    return {"target": target, "file": str(file), **numbers, **judged, "notes": notes, "tensors": tensors}


def _judged(run: Run, target: str, file: Path, model: nn.Module, sample: list[Tensor], split: str) -> dict[str, Any]:
    """What the recipe's metric says of the file in its own runtime; a ``note`` where that cannot be asked."""
    import torch

    from deepcompression.export.ran import InRuntime
    from deepcompression.training.device import Compute
    from deepcompression.training.evaluate import evaluate

    session = target_of(target).load(file, torch.get_num_threads())
    if session is None:
        return {"note": "its runtime is not on this machine: not run here"}
    problem = run.problem()
    samples = run.splits().test if split == "test" else problem.validation
    try:
        ran = InRuntime(session, model, sample)
        found = evaluate(ran, samples, problem.step, problem.metric, Compute("cpu"))
    except (FactoryError, ExportError) as error:  # of a step that asks more of the model than to be called
        return {"note": f"not judged by the recipe's metric: {one_line(error)}"}
    return {"split": split, "metric": found.metric, "correct": found.correct, "total": found.total}


def _check_equal(target: str, judged: Mapping[str, Any], final: Mapping[str, Any], integers: bool) -> None:
    """Of scores that are right or wrong, as many must be right; rounding may decide between equal outputs."""
    correct, total = judged.get("correct"), judged.get("total")
    if correct is None or final.get("correct") is None or total != final["total"]:
        return
    allowed = max(1, total // (1000 if integers else 10_000))
    if abs(correct - final["correct"]) > allowed:
        raise ExportError(
            f"export {target}: {correct:,} of {total:,} of the {judged['split']} split are right in its own runtime, "
            f"{final['correct']:,} with the decoded file, where {allowed} may differ; the file was kept, and is not "
            "the model"
        )


def _told(judged: Mapping[str, Any], final: Mapping[str, Any]) -> str:
    if "note" in judged:
        return str(judged["note"])
    if judged["correct"] is None:
        return f"{judged['split']} metric {judged['metric']:.6g} (decoded file {final['metric']:.6g})"
    return f"{judged['correct']:,} of {judged['total']:,} right (decoded file {final['correct']:,})"


def _sample(run: Run, inputs: Sequence[str] | None) -> list[Tensor]:
    import torch

    example = example_of(run, inputs, key="export.inputs", count=SAMPLES, training=True)
    return [torch.from_numpy(one) for one in (example.values() if isinstance(example, dict) else [example])]
