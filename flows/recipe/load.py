"""From YAML and overrides to a validated recipe, and every wrong key to one clear line."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from deepcompression.errors import RecipeError
from flows.recipe.explain import explain
from flows.recipe.merge import merge, reason
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
        RecipeError: with file, line, key, what came and what was expected, in one line.
    """
    config, text, where = merge(source, overrides)
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise RecipeError(secrets.masked(f"{where}: {reason(error)}")) from None
    each_text(values, secrets.know_passwords)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        told = explain(error, values, text, where, overrides or {}, stored=with_labels(values, config))
        raise RecipeError(secrets.masked(told)) from None
    secrets.public(*own_names(recipe))
    return recipe


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
        raise RecipeError(explain(error, values, text, where, overrides or {}, kind)) from None


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
