"""How long a training of a step would take, one tracked task: it changes no weight, its result is the report."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.states import State

from tasks.execution.bench import Bench, Product
from tasks.execution.run import Reference, Run
from tasks.execution.stage import TASK, perform
from tasks.secrets import sealed


@task(name="pace", **TASK)
@sealed
def pace(
    run: Run, label: str, number: int | None, config: dict[str, Any], source: Reference
) -> State[Reference] | Reference:
    """Seconds of an epoch, and of an evaluation; ``measured`` reads them. Kept in the store, so that a run that is
    started again plans as it did before.

    Args:
        run: the run.
        label: unique in the run.
        number: None.
        config: ``batch_size`` and ``distil`` of the training.
        source: the stage whose weights are trained.
    """
    return perform(run, label, number, config, source, lambda bench: _work(bench, config), draws=False)


def measured(run: Run, reference: Reference) -> tuple[float, float]:
    """Seconds of an epoch, and of an evaluation on validation."""
    entry = run.store.find(reference.key)
    assert entry is not None
    return float(entry["report"]["an_epoch"]), float(entry["report"]["a_look"])


def _work(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression.training import pace as library

    assert bench.input is not None
    found = library.pace(bench.model(), bench.problem(config), bench.run.compute())
    report = {"an_epoch": found.an_epoch, "a_look": found.a_look}
    return Product(bench.state(), zeros=bench.input.zeros, shared=bench.input.shared, report=report)
