"""A recipe's stages as they run: rounds unrolled, labels given."""

from __future__ import annotations

from flows.recipe.schema import Recipe
from tasks.execution.settings import Stage


def expand(recipe: Recipe) -> list[tuple[str, Stage]]:
    """The stages as they run, each with a label that is unique: rounds unrolled, the second prune is ``prune-2``.

    A label never depends on what comes later, so that seeds derived from it do not change when stages are added.
    """
    return [(label, stage) for label, _, stage in expanded(recipe)]


def expanded(recipe: Recipe) -> list[tuple[str, int, Stage]]:
    """Label, place in the recipe, keys."""
    unrolled: list[tuple[int, Stage]] = []
    stages = iter(enumerate(recipe.stages))
    for place, stage in stages:
        if rounds := stage.alternates():
            follows = next(stages)
            for number in range(rounds[0]):
                unrolled += [(place, stage.in_round(number)), follows]
        else:
            unrolled.append((place, stage))
    seen: dict[str, int] = {}
    labelled = []
    for place, stage in unrolled:
        name = stage.stage.replace(":", ".")
        seen[name] = seen.get(name, 0) + 1
        label = name if seen[name] == 1 else f"{name}-{seen[name]}"
        labelled.append((label, place, stage))
    return labelled
