"""Weight sharing, one tracked task."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.states import State

from tasks.prune import table_of
from tasks.run import Reference, Run
from tasks.stage import TASK, Bench, Product, perform


@task(name="share", **TASK)
def share(run: Run, label: str, number: int, config: dict[str, Any], source: Reference) -> State[Reference] | Reference:
    """The non-zero weights of each layer of ``source`` take few values."""
    return perform(
        run,
        label,
        number,
        config,
        source,
        lambda bench: _work(bench, config),
        code=["share"],
        draws=config["init"] == "random",
    )


def _work(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression import share as library
    from deepcompression import structure

    assert bench.input is not None
    model = bench.model()
    made = library.share(
        structure.plain_state(model),
        structure.resolve(model, table_of(config["bits"])),
        init=config["init"],
        seed=bench.seed,
        padding=structure.padding_rows(model),
    )
    names = [layer.name for layer in made.layers]
    return Product(
        made.state,
        zeros=list(dict.fromkeys([*bench.input.zeros, *names])),
        shared=list(dict.fromkeys([*bench.input.shared, *names])),
        report={"layers": made.layers},
    )
