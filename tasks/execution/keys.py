"""The key of a stage: the digest of all that decides its bytes and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tasks.execution.run import Reference, Run
from tasks.execution.settings import plain
from tasks.execution.sources import code_digest, factory_digest, versions
from tasks.execution.specs import specs_in
from tasks.storage.store import key_of


def stage_key(
    run: Run,
    label: str,
    config: Mapping[str, Any],
    source: Reference | None,
    module: str,
    draws: bool,
    also: Mapping[str, Any] | None,
) -> str:
    """What a stage's result is stored under.

    Args:
        run: the run.
        label: the stage's label; its draws depend on it.
        config: the stage's keys of the recipe.
        source: the stage before, or None.
        module: of ``tasks``, in which the stage's work is defined; all that it imports counts.
        draws: whether the result depends on the seed.
        also: further inputs that decide the result.
    """
    import torch

    return key_of(
        {
            "stage": config.get("stage", label),
            "config": config,
            "seed": run.stage_seed(label) if draws else None,
            "input": [source.object, source.zeros, source.shared] if source else None,
            "model": _model(run),
            "data": [plain(run.data), run.data_identity().digest],
            "step": plain(run.step),
            "metric": plain(run.metric),
            "hold": plain(run.hold),
            "code": code_digest(module, "tasks.execution.bench"),
            "factories": {spec: factory_digest(spec) for spec in callables(run, config)},
            "versions": versions(),
            "device": str(run.compute().resolved()),
            "precision": [run.precision, run.channels_last],
            "threads": torch.get_num_threads(),
            "also": also,
            "teacher": _teacher(run) if _learns(config) else None,
        }
    )


def callables(run: Run, config: Mapping[str, Any] | None = None) -> list[str]:
    """Every ``package.module:callable`` that a run and a stage of it name, at any depth, each once."""
    teacher = run.teacher if config is None or _learns(config) else None
    parts = [plain(part) for part in (run.model, run.data, run.step, run.metric, teacher)]
    return sorted({spec for part in (*parts, config) for spec in specs_in(part)})


def _learns(config: Mapping[str, Any]) -> bool:
    """Whether some training in a stage's keys learns from the teacher."""
    return bool(config.get("distil")) or any(_learns(one) for one in config.values() if isinstance(one, Mapping))


def _teacher(run: Run) -> Any:
    assert run.taught_by is not None
    return [run.taught_by.object, *_model(replace(run, model=run.teacher or run.model))]


def _model(run: Run) -> list[Any]:
    return [run.model.factory, run.model.arguments(), run.model_identity()]
