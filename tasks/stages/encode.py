"""The file, one tracked task."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.states import State

from tasks.execution.bench import Bench, Product
from tasks.execution.run import Reference, Run
from tasks.execution.stage import TASK, perform
from tasks.secrets import sealed


@task(name="encode", **TASK)
@sealed
def encode(
    run: Run, label: str, number: int, config: dict[str, Any], source: Reference
) -> State[Reference] | Reference:
    """The weights of ``source`` as a ``.dcz``, losslessly."""
    return perform(run, label, number, config, source, lambda bench: _work(bench, config), draws=False)


def _work(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression.formats import state_dict as files
    from deepcompression.network import state

    assert bench.input is not None
    path = bench.folder / "model.dcz"
    files.save(state.plain_state(bench.model()), path, coder=config["coder"])
    return Product(file=path, zeros=bench.input.zeros, shared=bench.input.shared)
