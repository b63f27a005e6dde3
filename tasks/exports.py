"""The file of a run in the formats of other runtimes: one tracked task a target, behind verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.states import Completed, State
from pydantic import BaseModel

from deepcompression.errors import ExportError, FactoryError, one_line
from deepcompression.export import target_of
from tasks.agreement import check_agreement
from tasks.console import say
from tasks.execution.example import example_of
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Stage
from tasks.execution.stage import TASK
from tasks.execution.warned import warned
from tasks.export_settings import Export
from tasks.latency import THREADS, beside_dense
from tasks.report import states
from tasks.secrets import sealed

if TYPE_CHECKING:
    from torch import Tensor, nn

SAMPLES = 16  # on which outputs are compared, and which decide what ranges a target has to find itself
FOR_ENDS = 64  # the same where outputs are integers: what is beyond their range is cut off


def check_export(run: Run, asked: Export, stages: Sequence[tuple[str, BaseModel]] = ()) -> None:
    """Tells before anything trains what would stop an export: a package that is missing, a model that it cannot take,
    an edit that a stage will make of it.

    Args:
        run: the run.
        asked: the target, and what is said of it.
        stages: labels and their keys of the recipe, the baseline's among them.

    Raises:
        ExportError, DataError: in one line.
    """
    target, module = asked.to, target_of(asked.to)
    _check_options(asked, module, stages)
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
    model = run.blank_model()
    if within := getattr(module, "NOT_WITHIN", ()):
        _check_sites(target, within, model, stages)
    module.check(model, _sample(run, asked), **asked.options())


def _check_sites(target: str, within: Sequence[str], model: nn.Module, stages: Sequence[tuple[str, BaseModel]]) -> None:
    """Refuses values within recurrent layers, of a target that has these whole."""
    from deepcompression.network.edits.quantize_values import read_site

    for label, settings in stages:
        for one in sorted(settings.sites(model)) if isinstance(settings, Stage) else ():
            if (site := read_site(one)) is not None and site.side in within:
                raise ExportError(
                    f"export {target}: stage {label}: {one} is a value within a recurrent layer, which this target "
                    "writes whole; leave the layer's weights out of activations, or the export out"
                )


def _check_options(asked: Export, module: Any, stages: Sequence[tuple[str, BaseModel]]) -> None:
    for name, value in asked.options().items():
        if value not in getattr(module, "OPTIONS", {}).get(name, ()):
            raise ExportError(f"export {asked.to}: {name}: {value} is not of this target; leave {name} out")
    rounding = [one for _, one in stages if isinstance(one, Stage) and "quantize_values" in one.edits()]
    if asked.io == "integer" and stages and not rounding:
        raise ExportError(
            f"export {asked.to}: io: integer: no stage rounds what the model takes, so that there are no integers to "
            "give; add activations to a stage quantize, or leave io out"
        )


@task(name="export", **TASK)
@sealed
def export(
    run: Run, label: str, asked: Export, path: str, final: Mapping[str, Any], dense: Reference | None
) -> State[dict[str, Any]]:
    """Writes a run's ``.dcz`` for another runtime, into the run's folder, and judges it there as the file was judged.

    Args:
        run: the run.
        label: the task's name.
        asked: the target, and what is said of it.
        path: the run's ``.dcz``.
        final: what verify found of that file: ``split``, ``metric``, ``loss``, ``correct`` of ``total``.
        dense: the dense net, which it is timed beside; None where the store has it no more.

    Returns:
        What the summary has of it: ``target``, ``file``, ``bytes``, ``float_bytes``, ``max_difference``, ``split``,
        ``metric``, ``loss``, ``correct``, ``total``, ``latency_ms``, ``dense_latency_ms``, ``times_as_fast``,
        ``latency_how``, ``notes``, ``warnings``, ``tensors``, and its options. What could not be found out is not
        there; ``latency_how`` then says why.

    Raises:
        ExportError: the target cannot take the model, or recognises what the decoded file does not, or less.
        InvariantError: its outputs are not those of the decoded file.
    """
    with warned(run.folder, label) as warnings:
        row = _exported(run, asked, path, final, dense)
    return Completed(message=states.exported(row, final), data={**row, "warnings": list(warnings)})


def _exported(run: Run, asked: Export, path: str, final: Mapping[str, Any], dense: Reference | None) -> dict[str, Any]:
    from deepcompression.torch import load_into

    run.ready()
    target, module = asked.to, target_of(asked.to)
    file = Path(run.folder) / "exports" / module.FILE
    model, sample = load_into(run.blank_model(), path), _sample(run, asked)
    made = module.export(model, sample, file, **asked.options())
    judged = _judged(run, target, file, model, sample, str(final["split"]))
    timed = _timed(run, target, file, dense, sample)
    numbers = {"bytes": made.bytes, "float_bytes": made.float_bytes, "max_difference": made.max_difference}
    found = {**numbers, **judged, **timed}
    logged = {name: one for name in ("bytes", "metric", "latency_ms") if (one := found.get(name)) is not None}
    run.tracker.metrics({f"export/{target}/{name}": value for name, value in logged.items()})
    for one in [file] if file.is_file() else sorted(part for part in file.rglob("*") if part.is_file()):
        run.tracker.artifact(one, one.parent.relative_to(run.folder).as_posix())
    say(f"{target}: {made.bytes:,} bytes (float {made.float_bytes:,}), {_told(judged, final)}{_speed(timed)}")
    check_agreement(target, judged, final, integers=made.integers)
    notes = [*made.notes, *([judged.pop("note")] if "note" in judged else [])]
    tensors = [asdict(one) for one in made.tensors]
    return {
        **{"target": target, "file": str(file), **asked.options()},
        **{**numbers, **judged, **timed, "notes": notes, "tensors": tensors},
    }


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
    judged = {name: getattr(found, name) for name in ("metric", "loss", "correct", "total")}
    return {"split": split, **judged}


def _timed(run: Run, target: str, file: Path, dense: Reference | None, sample: list[Tensor]) -> dict[str, Any]:
    """Its latency, or why there is none."""
    module = target_of(target)
    if why := getattr(module, "UNTIMED", ""):
        return {"latency_how": why}
    if dense is None:
        return {"latency_how": "not timed: the dense net's weights are not in the store any more"}
    session = module.load(file, THREADS)
    if session is None:
        return {"latency_how": "not timed: its runtime is not on this machine"}
    return beside_dense(session, run.model_with(dense), sample)


def _told(judged: Mapping[str, Any], final: Mapping[str, Any]) -> str:
    if "note" in judged:
        return str(judged["note"])
    if judged["correct"] is None:
        return f"{judged['split']} metric {judged['metric']:.6g} (decoded file {final['metric']:.6g})"
    return f"{judged['correct']:,} of {judged['total']:,} right (decoded file {final['correct']:,})"


def _speed(timed: Mapping[str, Any]) -> str:
    """What was timed, in words: with how it was."""
    if "latency_ms" not in timed:
        return ""
    return (
        f"; {timed['latency_ms']:.3g} ms, {timed['times_as_fast']:.2f} times as fast as the dense net "
        f"({timed['latency_how'].partition(' in turns')[0]})"
    )


def _sample(run: Run, asked: Export) -> list[Tensor]:
    import torch

    count = FOR_ENDS if asked.io == "integer" else SAMPLES
    example = example_of(run, asked.inputs, key="export.inputs", count=count, training=True)
    return [torch.from_numpy(one) for one in (example.values() if isinstance(example, dict) else [example])]
