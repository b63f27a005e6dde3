"""Weight sharing, one tracked task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from prefect import task
from prefect.states import State

from tasks.execution.bench import Bench, Product, covering
from tasks.execution.execute import shown
from tasks.execution.run import Reference, Run
from tasks.execution.stage import TASK, perform
from tasks.secrets import sealed
from tasks.stages.prune import table_of


@task(name="share", **TASK)
@sealed
def share(run: Run, label: str, number: int, config: dict[str, Any], source: Reference) -> State[Reference] | Reference:
    """The non-zero weights of each layer of ``source`` take few values."""
    return perform(
        run,
        label,
        number,
        config,
        source,
        lambda bench: (_trained if config["train"] else _at_once)(bench, config),
        draws=bool(config["train"]) or config["init"] == "random",
    )


def _trained(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression.network.names import resolve
    from deepcompression.sharing import reassign as library

    assert bench.input is not None
    model, train = bench.model(), config["train"]
    bits = resolve(model, table_of(config["bits"]))
    with shown(bench.run, bench.label) as show:
        made = library.share_training(
            model,
            bench.problem(train),
            bits,
            rate=_rates(model, config, bits),
            zeros=bench.input.zeros,
            shared=[name for name in bench.input.shared if name not in bits],
            **bench.fit_arguments(train, show),
        )
    return replace(_product(bench, model, made, bits), regrouped=list(bits), history=made.fit.history)


def _at_once(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression.network import state
    from deepcompression.network.names import padding_rows, resolve
    from deepcompression.sharing import share as library

    assert bench.input is not None
    model = bench.model()
    bits = resolve(model, table_of(config["bits"]))
    made = library.share(
        state.plain_state(model),
        bits,
        init=config["init"],
        rate=_rates(model, config, bits),
        seed=bench.seed,
        padding=padding_rows(model),
    )
    return _product(bench, model, made, bits)


def _rates(model: Any, config: dict[str, Any], bits: Mapping[str, int]) -> dict[str, float]:
    from deepcompression.network.names import resolve

    rates = resolve(model, table_of(config["rate"])) if config["rate"] else {}
    return {name: rates.get(name, 0.0) for name in bits}


def _product(bench: Bench, model: Any, made: Any, bits: Mapping[str, int]) -> Product:
    from deepcompression.network.coverage import coverage

    assert bench.input is not None
    names = [layer.name for layer in made.layers if layer.nonzero]  # zero throughout: nothing to hold
    product = Product(
        made.state,
        zeros=list(dict.fromkeys([*bench.input.zeros, *names])),
        shared=list(dict.fromkeys([*bench.input.shared, *names])),
        report={"layers": made.layers},
    )
    blank = [name for name in bits if name not in names]
    return covering(product, coverage(model, names, dict.fromkeys(blank, "zero throughout")))
