"""Fine-tuning with structure held, one tracked task."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.states import State

from tasks.execution.bench import Bench, Product
from tasks.execution.execute import shown
from tasks.execution.run import Reference, Run
from tasks.execution.stage import TASK, perform
from tasks.secrets import sealed


@task(name="finetune", **TASK)
@sealed
def finetune(
    run: Run, label: str, number: int, config: dict[str, Any], source: Reference
) -> State[Reference] | Reference:
    """``source`` retrained; its zeros and its sharing stay."""
    return perform(run, label, number, config, source, lambda bench: train(bench, config))


def train(bench: Bench, config: dict[str, Any]) -> Product:
    """The training itself: what ``quantize`` does too, to the centroids."""
    from deepcompression.network import state
    from deepcompression.training import finetune as library

    assert bench.input is not None
    model = bench.model()
    with shown(bench.run, bench.label) as show:
        tuned = library.finetune(
            model,
            bench.problem(config),
            zeros=bench.input.zeros,
            shared=bench.input.shared,
            dropout=config.get("dropout") or {},
            **bench.fit_arguments(config, show),
        )
    return Product(
        state.plain_state(model),
        zeros=bench.input.zeros,
        shared=bench.input.shared,
        report={"best_epoch": tuned.fit.best_epoch, "stopped": tuned.fit.stopped, "dropout": tuned.dropout},
        history=tuned.fit.history,
    )
