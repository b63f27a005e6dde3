"""How long a training of a step would take: it changes no weight, its result is the report."""

from __future__ import annotations

from typing import ClassVar, Literal

from tasks.execution.bench import Bench, Product
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Distil, Stage


class Settings(Stage):
    """Of the training what decides how long an epoch takes."""

    draws: ClassVar[bool] = False

    stage: Literal["pace"]
    batch_size: int | None = None
    drop_last: bool = False
    distil: Distil | None = None


def work(bench: Bench, settings: Settings) -> Product:
    """Seconds of an epoch, and of an evaluation; ``measured`` reads them. Kept in the store, so that a run that is
    started again plans as it did before."""
    from deepcompression.training import pace as library

    assert bench.input is not None
    methods = [settings.distil.make()] if settings.distil else []
    teacher = bench.run.teacher_model() if methods else None
    compute = bench.run.compute()
    found = library.pace(bench.model(), bench.problem(settings), compute, methods=methods, teacher=teacher)
    report = {"an_epoch": found.an_epoch, "a_look": found.a_look}
    return Product(bench.state(), selected=(), report=report)


def measured(run: Run, reference: Reference) -> tuple[float, float]:
    """Seconds of an epoch, and of an evaluation on validation."""
    entry = run.store.find(reference.key)
    assert entry is not None
    return float(entry["report"]["an_epoch"]), float(entry["report"]["a_look"])
