"""Pruning, one tracked task: one-shot, or gradually while training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import task
from prefect.states import State

from tasks.run import Reference, Run
from tasks.stage import TASK, Bench, Product, perform, shown


@task(name="prune", **TASK)
def prune(
    run: Run, label: str, number: int, config: dict[str, Any], source: Reference
) -> State[Reference] | Reference:
    """Small weights of ``source`` become +0.0."""
    work = _gradual if config["gradual"] else _one_shot
    return perform(run, label, number, config, source, lambda bench: work(bench, config), code=["prune"])


def _one_shot(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression import factory, structure
    from deepcompression import prune as library

    model = bench.model()
    density, quality = config["density"], config["quality"]
    whole = config["scope"] == "global"
    score = config["score"]
    pruned = library.prune(
        structure.plain_state(model),
        structure.prunable(model) if whole else structure.resolve(model, _table(density or quality)),
        by="quality" if quality else "density",
        density=density if whole else None,
        scope=config["scope"],
        score=factory.build(score["factory"], score["kwargs"]) if score else None,
    )
    return _product(bench, pruned.state, pruned.layers)


def _gradual(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression import prune as library
    from deepcompression import structure

    model, gradual = bench.model(), config["gradual"]
    assert bench.input is not None
    with shown(bench.run, bench.label) as show:
        pruned = library.prune_gradually(
            model,
            bench.run.problem(gradual["batch_size"]),
            structure.resolve(model, _table(config["density"])),
            **bench.fit_arguments(gradual, show),
        )
    return _product(bench, pruned.state, pruned.layers)


def _product(bench: Bench, state: Mapping[str, Any], layers: Any) -> Product:
    assert bench.input is not None
    zeros = dict.fromkeys([*bench.input.zeros, *(layer.name for layer in layers)])
    return Product(state, zeros=list(zeros), shared=bench.input.shared, report={"layers": layers})


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {"default": value}
