"""BatchNorm statistics estimated anew, one tracked task."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.states import State

from tasks.execution.bench import Bench, Product
from tasks.execution.run import Reference, Run
from tasks.execution.stage import TASK, perform
from tasks.secrets import sealed


@task(name="recalibrate", **TASK)
@sealed
def recalibrate(
    run: Run, label: str, number: int, config: dict[str, Any], source: Reference
) -> State[Reference] | Reference:
    """``source`` with running means and variances of its present weights."""
    return perform(run, label, number, config, source, lambda bench: _work(bench, config))


def _work(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression.network import state
    from deepcompression.training import recalibrate as library

    assert bench.input is not None
    model = bench.model()
    layers = library.recalibrate(
        model,
        bench.run.problem(config["batch_size"], config.get("drop_last", False)),
        batches=config["batches"],
        compute=bench.run.compute(),
        seed=bench.seed,
    )
    return Product(
        state.plain_state(model),
        zeros=bench.input.zeros,
        shared=bench.input.shared,
        report={"layers": layers},
        notes=[] if layers else ["the model has no BatchNorm with running statistics; nothing changed"],
    )
