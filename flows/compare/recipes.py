"""What differs between recipes, under the dotted names that overrides use."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

LEFT_OUT = frozenset({"name", "promote", "python_path", "runs", "seed", "seeds", "store", "tracking"})


class Absent:
    """A setting of a stage that a recipe does not have."""


ABSENT = Absent()


def differences(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Dotted key -> one value a recipe, for the keys that are not the same in all; bookkeeping and seeds left out.

    Stages go by name (``stages.prune.density``, the second one ``stages.prune-2.density``). Where the recipes have
    other stages, ``stages`` itself is a key, and the settings of a stage that a recipe lacks are ``ABSENT`` there.
    Where one recipe has a number and another a mapping, both are given whole.
    """
    found: dict[str, list[Any]] = {}
    prepared = [_prepared(recipe) for recipe in recipes]
    orders = [list(one["stages"]) for one in prepared]
    if any(order != orders[0] for order in orders):
        found["stages"] = [", ".join(order) for order in orders]
    _collect("", prepared, found)
    return found


def identity(recipe: Mapping[str, Any]) -> str:
    """The same text for recipes that differ in nothing but seeds and bookkeeping."""
    prepared = _prepared(recipe)
    return json.dumps([list(prepared["stages"]), _without_empty(prepared)], sort_keys=True, default=str)


def value_text(value: Any) -> str:
    """A setting for people: as it stands in the YAML, on one line."""
    if isinstance(value, Absent):
        return "–"
    if value is None or isinstance(value, bool):
        return {None: "none", True: "true", False: "false"}[value]
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, Mapping):
        kept = {key: one for key, one in value.items() if _without_empty(one) is not None}
        return "{" + ", ".join(f"{key}: {value_text(one)}" for key, one in kept.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(value_text, value)) + "]"
    return " ".join(str(value).split())


def _prepared(recipe: Mapping[str, Any]) -> dict[str, Any]:
    kept = {str(key): value for key, value in recipe.items() if key not in LEFT_OUT}
    stages = recipe.get("stages")
    return {**kept, "stages": _labelled(stages if isinstance(stages, list | tuple) else ())}


def _labelled(stages: Sequence[Any]) -> dict[str, Any]:
    """Stages by the labels that a run gives them: the second prune is ``prune-2``."""
    labelled: dict[str, Any] = {}
    seen: dict[str, int] = {}
    for stage in stages:
        settings = dict(stage) if isinstance(stage, Mapping) else {"stage": stage}
        name = str(settings.pop("stage", "stage")).replace(":", ".")
        seen[name] = seen.get(name, 0) + 1
        labelled[name if seen[name] == 1 else f"{name}-{seen[name]}"] = settings
    return labelled


def _collect(prefix: str, values: Sequence[Any], found: dict[str, list[Any]]) -> None:
    present = [value for value in values if value is not ABSENT]
    if all(_same(value, present[0]) for value in present):
        return
    if not all(isinstance(value, Mapping) for value in present):
        found[prefix] = list(values)
        return
    lacking = ABSENT if prefix == "stages" else None
    for key in dict.fromkeys(key for value in present for key in value):
        inner = [ABSENT if value is ABSENT else value.get(key, lacking) for value in values]
        _collect(f"{prefix}.{key}" if prefix else str(key), inner, found)


def _same(one: Any, other: Any) -> bool:
    return json.dumps(_without_empty(one), sort_keys=True, default=str) == json.dumps(
        _without_empty(other), sort_keys=True, default=str
    )


def _without_empty(value: Any) -> Any:
    """Older recipes lack keys that newer ones have as null: both say the same. So do 1 and 1.0."""
    if isinstance(value, Mapping):
        kept = {str(key): _without_empty(one) for key, one in value.items()}
        return {key: one for key, one in kept.items() if one is not None} or None
    if isinstance(value, list | tuple):
        return [_without_empty(one) for one in value] or None
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
