"""Which layers lose it: a tracked task behind verify, which leaves a table in the run's folder and in MLflow."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.states import Completed, State

from tasks.execution.run import Reference, Run
from tasks.execution.stage import TASK
from tasks.network import leave_network
from tasks.report import states
from tasks.report.losses import FILE
from tasks.secrets import sealed
from tasks.storage.store import write_json

if TYPE_CHECKING:
    from deepcompression.measure.difference import Difference

SAMPLES, BATCH = 64, 4  # of the validation split; what all ops give for a batch is in memory at a time


@task(name="difference", **TASK)
@sealed
def difference(run: Run, label: str, baseline: Reference, others: Sequence[Reference]) -> State[str]:
    """Compares what each op gives with what the dense net's gives, after every stage that changed a weight.

    Leaves ``differences.json``, a table as MLflow shows them: columns ``stage`` and those of ``measure.difference``;
    and ``network.json``, what of the network can be drawn.

    Args:
        run: the run.
        label: the task's name.
        baseline: the dense net.
        others: what stages made of it, in their order.
    """
    run.ready()
    _network(run, baseline, others)
    rows = [{"stage": stage, **asdict(row)} for stage, row in _compared(run, baseline, others)]
    if rows:
        _leave(run, rows)
    told = states.differed(rows)
    return Completed(message=told, data=told)


def _leave(run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    path = Path(run.folder) / FILE
    write_json(path, {"columns": list(rows[0]), "data": [list(row.values()) for row in rows]})
    run.tracker.artifact(path)
    last = [row["sqnr_alone"] for row in rows if row["stage"] == rows[-1]["stage"] and not row["why"]]
    if last and math.isfinite(min(last)):
        run.tracker.tags({"least_sqnr_db": f"{min(last):.1f}"})


def _network(run: Run, baseline: Reference, others: Sequence[Reference]) -> None:
    from deepcompression.training.batches import some
    from deepcompression.training.problem import stepped

    problem, compute = run.problem(), run.compute()
    dense, final = (compute.place(run.model_with(one)) for one in (baseline, [baseline, *others][-1]))
    batch = next(iter(some(problem.validation, 1, 1, compute)))
    leave_network(run, dense, final, lambda model: stepped(problem.step, model, batch)[1])


def _compared(run: Run, baseline: Reference, others: Sequence[Reference]) -> Iterator[tuple[str, Difference]]:
    """Rows by stage; stages that left all weights as they were have none."""
    from deepcompression.measure.difference import differences
    from deepcompression.training.batches import some
    from deepcompression.training.problem import stepped

    problem, compute, before = run.problem(), run.compute(), baseline.object
    dense = compute.place(run.model_with(baseline))
    for one in others:
        if one.object != before:
            batches = some(problem.validation, SAMPLES, BATCH, compute)
            other = compute.place(run.model_with(one))
            for row in differences(dense, other, batches, lambda model, batch: stepped(problem.step, model, batch)[1]):
                yield str(one.numbers["stage"]), row
        before = one.object
