"""What makes weights important, by the keys of stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from tasks.execution.bench import Bench

if TYPE_CHECKING:
    from tasks.execution.settings import Factory


class Scored(Protocol):
    """Keys that say what makes a weight important."""

    criterion: str
    score: Factory | None


def score_of(bench: Bench, settings: Scored, model: Any = None) -> Any:
    """What the criterion, or the user's score, makes of weights; measured for ``model``, where one is given.

    Raises:
        StructureError: no criterion has the name that ``settings`` give.
        FactoryError: the user's score does not import, or is no function of two arguments.
    """
    from deepcompression import factory
    from deepcompression.pruning.criteria import maker

    if settings.score:
        return factory.function(settings.score.factory, settings.score.arguments())
    make = maker(settings.criterion)
    if make is None:
        return None
    made = make(bench.context())
    if model is not None and hasattr(made, "refresh"):
        made.refresh(model)
    return made
