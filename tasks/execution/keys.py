"""The key of a stage: the digest of all that decides its bytes and numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tasks.execution.run import Reference, Run
from tasks.execution.settings import MethodSettings, Stage, parts, plain
from tasks.execution.sources import code_digest, factory_digest, versions
from tasks.execution.specs import specs_in
from tasks.storage.store import key_of


def stage_key(
    run: Run,
    label: str,
    settings: Stage,
    source: Reference | None,
    module: str,
) -> str:
    """What a stage's result is stored under.

    Args:
        run: the run.
        label: the stage's label; its draws depend on it.
        settings: the stage's keys of the recipe; they know whether its result depends on the seed, and what decides it
            beside them.
        source: the stage before, or None.
        module: of ``tasks``, in which the stage's work is defined; all that it imports counts.
    """
    import torch

    return key_of(
        {
            "stage": getattr(settings, "stage", label),
            "config": plain(settings),
            "seed": run.stage_seed(label) if settings.draws else None,
            "input": [source.object, source.structure, source.edits] if source else None,
            "model": _model(run),
            "data": [plain(run.data), run.data_identity().digest],
            "step": plain(run.step),
            "metric": plain(run.metric),
            "hold": plain(run.hold),
            "code": code_digest(module, "tasks.execution.bench"),
            "factories": {spec: factory_digest(spec) for spec in callables(run, settings)},
            "versions": versions(),
            "device": str(run.compute().resolved()),
            "precision": [run.precision, run.channels_last, plain(run.evaluate)],
            "devices": [run.devices, run.compiled, run.num_workers, *_strategy(run)],
            "threads": torch.get_num_threads(),
            "also": settings.also(),
            "teacher": _teacher(run) if _learns(settings) else None,
        }
    )


def _strategy(run: Run) -> list[str]:
    """Where it is not the first one that there was: older results keep their keys."""
    return [] if run.strategy == "ddp" else [run.strategy]


def callables(run: Run, settings: Stage | None = None) -> list[str]:
    """Every ``package.module:callable`` that a run and a stage of it name, at any depth, each once."""
    teacher = run.teacher if settings is None or _learns(settings) else None
    named = (run.model, run.data, run.step, run.metric, teacher, settings)
    return sorted({spec for part in named for spec in specs_in(plain(part))})


def _learns(settings: Stage) -> bool:
    """Whether some training in a stage's keys learns from the teacher."""
    return any(isinstance(part, MethodSettings) and part.learns for _, part in parts(settings))


def _teacher(run: Run) -> Any:
    assert run.taught_by is not None
    return [run.taught_by.object, *_model(replace(run, model=run.teacher or run.model))]


def _model(run: Run) -> list[Any]:
    return [run.model.factory, run.model.arguments(), run.model_identity()]
