"""The dense model: trained here, or read from a checkpoint."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.states import State

from tasks.execution.bench import Bench, Product
from tasks.execution.execute import shown
from tasks.execution.run import Reference, Run
from tasks.execution.stage import TASK, perform
from tasks.secrets import sealed
from tasks.storage.store import file_digest


@task(name="baseline", **TASK)
@sealed
def baseline(run: Run, label: str, number: int | None, config: dict[str, Any]) -> State[Reference] | Reference:
    """The dense model's reference. ``config`` holds the recipe's ``train``, or its ``model.weights``."""
    weights = config.get("weights")
    work = _load if weights else _train
    also = {"weights": _digest(weights["path"])} if weights else None
    return perform(run, label, number, config, None, lambda bench: work(bench, config), draws=not weights, also=also)


def _train(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression.network.state import plain_state
    from deepcompression.training.loop import fit

    model = bench.run.blank_model()
    with shown(bench.run, bench.label) as show:
        fitted = fit(model, bench.problem(config["train"]), **bench.fit_arguments(config["train"], show))
    return Product(plain_state(model), history=fitted.history, report={"best_epoch": fitted.best_epoch})


def _load(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression.formats import checkpoint
    from deepcompression.network import load as files
    from deepcompression.network.names import select
    from deepcompression.network.state import plain_state
    from deepcompression.structure import hold as holding

    weights, hold = config["weights"], bench.run.hold
    model = bench.run.blank_model()
    state = checkpoint.read_state(weights["path"], key=weights["key"], strip=weights["strip"])
    files.load_state(model, state, where=f"model.weights {weights['path']}")
    held = holding.hold(
        model,
        None if hold["zeros"] is None else select(model, hold["zeros"]),
        shared=select(model, hold["shared"]),
    )
    holding.bake(model)
    names = ", ".join(held.zeros) or "no tensor"
    return Product(
        plain_state(model),
        zeros=held.zeros,
        shared=held.shared,
        notes=[f"read from {weights['path']}; zeros held in {names}; sharing in {', '.join(held.shared) or 'none'}"],
    )


def _digest(path: str) -> str:
    from pathlib import Path

    from deepcompression.errors import WeightsError

    try:
        return file_digest(Path(path))
    except OSError as error:
        raise WeightsError(f"model.weights.path {path}: cannot be read: {error.strerror or error}") from None
