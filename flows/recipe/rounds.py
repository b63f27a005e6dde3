"""A recipe's stages as they run: rounds unrolled, labels given."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from flows.recipe.schema import Prune, Recipe


def expand(recipe: Recipe) -> list[tuple[str, dict[str, Any]]]:
    """The stages as they run, each with a label that is unique: rounds unrolled, the second prune is ``prune-2``.

    A label never depends on what comes later, so that seeds derived from it do not change when stages are added.
    """
    return [(label, config) for label, _, config in expanded(recipe)]


def expanded(recipe: Recipe) -> list[tuple[str, int, dict[str, Any]]]:
    """Label, place in the recipe, keys."""
    from deepcompression.training.ramps import round_densities

    plain: list[tuple[int, Any]] = []
    stages = iter(enumerate(recipe.stages))
    for place, stage in stages:
        if isinstance(stage, Prune) and stage.rounds > 1:
            finetune = next(stages)
            for number in range(stage.rounds):
                plain += [(place, _one_round(stage, number, round_densities)), finetune]
        else:
            plain.append((place, stage))
    seen: dict[str, int] = {}
    labelled = []
    for place, stage in plain:
        name = stage.stage.replace(":", ".")
        seen[name] = seen.get(name, 0) + 1
        label = name if seen[name] == 1 else f"{name}-{seen[name]}"
        labelled.append((label, place, stage.model_dump(mode="json")))
    return labelled


def _one_round(stage: Prune, number: int, round_densities: typing.Callable[[float, int], list[float]]) -> Prune:
    def at(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {pattern: at(one) for pattern, one in value.items()}
        return round_densities(value, stage.rounds)[number]

    if stage.density is not None:
        return stage.model_copy(update={"density": at(stage.density), "rounds": 1})
    share = (number + 1) / stage.rounds
    quality = stage.quality
    scaled = {k: v * share for k, v in quality.items()} if isinstance(quality, dict) else (quality or 0) * share
    return stage.model_copy(update={"quality": scaled, "rounds": 1})
