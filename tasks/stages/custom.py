"""A stage of the user's own, one tracked task."""

from __future__ import annotations

from typing import Any

from prefect import task
from prefect.states import State

from tasks.execution.bench import Bench, Product
from tasks.execution.run import Reference, Run
from tasks.execution.stage import TASK, perform
from tasks.secrets import sealed


@task(name="custom", **TASK)
@sealed
def custom(
    run: Run, label: str, number: int, config: dict[str, Any], source: Reference
) -> State[Reference] | Reference:
    """Calls ``callable(model, problem, *, seed, **config)``, which changes the model in place.

    Zeros and sharing of the stages before must still be there afterwards; zeros that it adds are held from then on
    where the callable returns the names of its tensors.
    """
    return perform(run, label, number, config, source, lambda bench: _work(bench, config))


def _work(bench: Bench, config: dict[str, Any]) -> Product:
    from deepcompression import factory
    from deepcompression.errors import FactoryError
    from deepcompression.network import state

    assert bench.input is not None
    model = bench.model()
    arguments = {name: value for name, value in config.items() if name != "stage"}
    named = factory.load(config["stage"])(model, bench.run.problem(), seed=bench.seed, **arguments)
    known = set(model.state_dict())
    if named is not None and not (isinstance(named, list | tuple | set) and set(named) <= known):
        raise FactoryError(
            f"stage {config['stage']}: expected None or a list of names of the tensors that it pruned, got {named!r}"
        )
    zeros = dict.fromkeys([*bench.input.zeros, *(named or ())])
    return Product(state.plain_state(model), zeros=list(zeros), shared=bench.input.shared)
