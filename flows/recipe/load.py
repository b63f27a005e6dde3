"""From YAML and overrides to a validated recipe, and every wrong key to one clear line."""

from __future__ import annotations

import copy
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from deepcompression.errors import InputError, RecipeError, together
from flows.recipe.explain import explain
from flows.recipe.merge import folder_of, merge, reason
from flows.recipe.places import placed
from flows.recipe.schema import Recipe
from flows.recipe.stored import each_text, own_names, register_resolvers, with_labels
from tasks import secrets

Model = typing.TypeVar("Model", bound=BaseModel)


def load(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe of ``source`` with ``overrides`` merged in, validated, every reference resolved.

    Args:
        source: path or http(s) URL of a YAML file, or the mapping itself.
        overrides: dotted key -> value. A stage is addressed by its name where that is unique, else by index
            (``stages.prune.density``, ``stages.0.density``). A mapping merges, a scalar or list replaces.

    Raises:
        RecipeError: with file, line, key, what came and what was expected, in one line; ``others``: what else is wrong.
    """
    recipe, problems = examined(source, overrides)
    if recipe is None or problems:
        raise together(problems)
    return recipe


def examined(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> tuple[Recipe | None, list[InputError]]:
    """The recipe and no problem; or all that is wrong with its keys and, if that can be told, the recipe without them,
    of which the rest can be looked at.

    Args:
        source: as of ``load``.
        overrides: as of ``load``.

    Raises:
        RecipeError: it cannot be read, or what it refers to.
    """
    config, text, where = merge(source, overrides)
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise RecipeError(secrets.masked(f"{where}: {reason(error)}")) from None
    each_text(values, secrets.know_passwords)
    wrong: list[InputError] = []
    if (beside := folder_of(source)) is not None:
        try:
            values = placed(typing.cast(dict[str, Any], values), beside)
        except RecipeError as error:
            wrong.append(RecipeError(secrets.masked(f"{where}: {error}")))
    try:
        recipe: Recipe | None = Recipe.model_validate(values)
    except ValidationError as error:
        told = explain(error, values, text, where, overrides or {}, stored=with_labels(values, config))
        wrong += [RecipeError(secrets.masked(one)) for one in told]
        recipe, more = _without_wrong(values, error)
        wrong += [RecipeError(secrets.masked(f"{where}: recipe: {one}")) for one in more]
    if recipe is not None:
        secrets.public(*own_names(recipe))
    return recipe, wrong


def _without_wrong(values: Any, error: ValidationError) -> tuple[Recipe | None, list[str]]:
    """The recipe without the keys that are wrong, of stages without the whole stage; None where none is left, and what
    is wrong with those together that are right."""
    kept = copy.deepcopy(values)
    bad = {tuple(one["loc"][: 2 if one["loc"][:1] == ("stages",) else 1]) for one in error.errors()}
    for path in bad:
        if len(path) == 2 and isinstance(path[1], int):
            kept["stages"][path[1]] = None
        elif path:
            kept.pop(path[0], None)
    if isinstance(kept.get("stages"), list):
        kept["stages"] = [one for one in kept["stages"] if one is not None] or [{"stage": "encode"}]
    try:
        return Recipe.model_validate(kept), []
    except ValidationError as left:
        told = [one["msg"].removeprefix("Value error, ") for one in left.errors() if not one["loc"]]
        names = {str(path[0]) for path in bad if path}
        return None, [one for one in told if not any(name in one for name in names)]


def load_as(kind: type[Model], source: str, overrides: Mapping[str, Any] | None = None) -> Model:
    """Another kind of YAML (a sweep, a schedule), read, checked and explained as recipes are.

    Raises:
        RecipeError: as ``load``.
    """
    config, text, where = merge(source, overrides)
    values = OmegaConf.to_container(config, resolve=False)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first, *more = explain(error, values, text, where, overrides or {}, kind)
        raise RecipeError(f"{first}{f' (and {len(more)} more)' if more else ''}") from None


def resolve(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A part of a stored recipe with its ``${...}`` resolved on this machine.

    Raises:
        RecipeError: a variable of the environment is missing.
    """
    try:
        return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True))
    except OmegaConfBaseException as error:
        raise RecipeError(secrets.masked(f"{where}: {reason(error)}")) from None


register_resolvers()
