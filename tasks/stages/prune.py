"""Pruning, one tracked task: one-shot, or gradually while training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import task
from prefect.states import State

from tasks.execution.bench import Bench, Product, covering
from tasks.execution.execute import shown
from tasks.execution.run import Reference, Run
from tasks.execution.stage import TASK, perform
from tasks.secrets import sealed


@task(name="prune", **TASK)
@sealed
def prune(run: Run, label: str, number: int, config: dict[str, Any], source: Reference) -> State[Reference] | Reference:
    """Small weights of ``source`` become +0.0."""
    work = _gradual if config["gradual"] else _one_shot
    return perform(
        run,
        label,
        number,
        config,
        source,
        lambda bench: work(bench, config),
        draws=bool(config["gradual"]),
    )


def _one_shot(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression.network import state
    from deepcompression.network.names import padding_rows, resolve
    from deepcompression.pruning import prune as library

    model, name = bench.model(), "density" if config["quality"] is None else "quality"
    pruned = library.prune(
        state.plain_state(model),
        **{name: resolve(model, table_of(config[name]))},
        scope=config["scope"],
        score=score_of(bench, config, model),
        padding=padding_rows(model),
    )
    return _product(bench, model, pruned)


def _gradual(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression.network.names import resolve
    from deepcompression.pruning import gradual as library

    assert bench.input is not None
    model, gradual = bench.model(), config["gradual"]
    with shown(bench.run, bench.label) as show:
        pruned = library.prune_gradually(
            model,
            bench.problem(gradual),
            resolve(model, table_of(config["density"])),
            zeros=bench.input.zeros,
            shared=bench.input.shared,
            scope=config["scope"],
            start=gradual["start"],
            ramp=gradual["ramp"],
            score=score_of(bench, config),
            dropout=config["dropout"],
            **bench.fit_arguments(gradual, show),
        )
    return _product(bench, model, pruned)


def _product(bench: Bench, model: Any, pruned: Any) -> Product:
    from deepcompression.network.coverage import coverage

    assert bench.input is not None
    # What is zero throughout has no structure yet: held so, it could never learn.
    blank = [layer.name for layer in pruned.layers if not layer.nonzero]
    names = [*bench.input.zeros, *(layer.name for layer in pruned.layers if layer.nonzero)]
    product = Product(
        pruned.state,
        zeros=list(dict.fromkeys(names)),
        shared=bench.input.shared,
        report={"layers": pruned.layers},
        history=pruned.fit.history if pruned.fit else (),
        notes=[f"{name} is zero throughout: nothing is pruned in it, and it stays free to learn" for name in blank],
    )
    done = [layer.name for layer in pruned.layers if layer.nonzero]
    return covering(product, coverage(model, done, dict.fromkeys(blank, "zero throughout")))


def score_of(bench: Bench, config: Mapping[str, Any], model: Any = None) -> Any:
    """What the criterion, or the user's score, makes of weights; measured for ``model``, where one is given.

    Raises:
        StructureError: no criterion has the name that ``config`` gives.
        FactoryError: the user's score does not import, or is no function of two arguments.
    """
    from deepcompression import factory
    from deepcompression.pruning.criteria import maker

    score = config.get("score")
    if score:
        return factory.function(score["factory"], score["kwargs"])
    make = maker(config.get("criterion", "magnitude"))
    if make is None:
        return None
    made = make(bench.run.problem(), bench.run.compute())
    if model is not None and hasattr(made, "refresh"):
        made.refresh(model)
    return made


def table_of(value: Any) -> Mapping[str, Any]:
    """One value for all layers as the table of values by name pattern."""
    return value if isinstance(value, Mapping) else {"default": value}
