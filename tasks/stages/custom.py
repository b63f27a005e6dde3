"""A stage of the user's own."""

from __future__ import annotations

from pydantic import ConfigDict

from tasks.execution.bench import Bench, Product
from tasks.execution.settings import Spec, Stage, plain


class Settings(Stage):
    """A stage of the user's own; every further key is a keyword argument of the callable."""

    model_config = ConfigDict(extra="allow")
    stage: Spec


def work(bench: Bench, settings: Settings) -> Product:
    """Calls ``callable(model, problem, *, seed, **config)``, which changes the model in place.

    Zeros and sharing of the stages before must still be there afterwards; zeros that it adds are held from then on
    where the callable returns the names of its tensors.
    """
    from deepcompression import factory
    from deepcompression.errors import FactoryError
    from deepcompression.network import state
    from deepcompression.structure.constraints import structured

    assert bench.input is not None
    model = bench.model()
    arguments = {name: value for name, value in plain(settings).items() if name != "stage"}
    named = factory.load(settings.stage)(model, bench.run.problem(), seed=bench.seed, **arguments)
    known = set(model.state_dict())
    if named is not None and not (isinstance(named, list | tuple | set) and set(named) <= known):
        raise FactoryError(
            f"stage {settings.stage}: expected None or a list of names of the tensors that it pruned, got {named!r}"
        )
    return Product(state.plain_state(model), structure=structured(named or ()))
