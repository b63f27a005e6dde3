"""A recipe as it is kept: without secrets."""

from __future__ import annotations

import functools
import itertools
import os
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.resolvers import oc

from flows.recipe.merge import merge
from flows.recipe.rounds import expanded
from flows.recipe.schema import Recipe
from tasks import secrets
from tasks.root import ROOT
from tasks.storage.places import is_url


def as_stored(
    recipe: Recipe, source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The resolved recipe as it may be written down: whatever was read from the environment stays as it was written,
    ``${oc.env:...}`` or a reference to it, a whole node too; passwords of URLs are masked.
    """
    return typing.cast(dict[str, Any], with_labels(recipe.model_dump(mode="json"), merge(source, overrides)[0]))


def as_logged(recipe: Recipe, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Label -> keys of every stage as it runs (see ``expand``), with what ``stored`` hides hidden here too."""
    stages = stored["stages"]
    plain = [] if isinstance(stages, str) else list(stages)
    logged = {}
    for label, number, settings in expanded(recipe):
        told = _hidden_as(settings.model_dump(mode="json"), plain[number] if number < len(plain) else stages)
        logged[label] = {k: v for k, v in told.items() if k != "stage"} if isinstance(told, Mapping) else told
    return logged


_reads = itertools.count()


def _environment(key: Any, *default: Any) -> Any:
    """OmegaConf's ``oc.env``, which tells what it read: each way to a value, however wrapped, leads through here."""
    next(_reads)
    value = oc.env(key, *default)
    if key in os.environ:
        secrets.know(value, str(key))
    return value


def _telling(resolver: Callable[..., Any]) -> Callable[..., Any]:
    """A resolver of OmegaConf that makes something of a text: what it makes of a secret is secret too."""

    @functools.wraps(resolver)
    def call(*arguments: Any, **named: Any) -> Any:
        secret = any(isinstance(one, str) and secrets.knows(one) for one in arguments)
        try:
            made = resolver(*arguments, **named)
        except Exception:
            if secret:  # its message shows parts of the value, which nobody could mask
                raise ValueError("the value from the environment is not what this resolver reads") from None
            raise
        if secret:
            plain = OmegaConf.to_container(made, resolve=False) if OmegaConf.is_config(made) else made
            each_text(plain, secrets.know)
        return made

    return call


def register_resolvers() -> None:
    """OmegaConf's resolvers that read the environment tell what they read."""
    register: Callable[..., None] = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)
    unchecked = {"annotation_validation": "off"} if hasattr(OmegaConf, "register_resolver") else {}
    register("oc.env", _environment, replace=True, **unchecked)
    for name in ("create", "decode", "coerce"):
        if hasattr(oc, name):
            register(f"oc.{name}", _telling(getattr(oc, name)), replace=True, **unchecked)


def each_text(value: Any, tell: Callable[[str], None]) -> None:
    """Tells every scalar in ``value`` but words such as true."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            each_text(one, tell)
    elif isinstance(value, bytes):
        tell(value.decode("utf-8", "replace"))
    elif value is not None and not isinstance(value, bool):
        tell(str(value))


def with_labels(value: Any, config: Any) -> Any:
    """``value`` with the text of ``config`` wherever that reads the environment, directly or by reference."""
    if isinstance(value, Mapping):
        places = {str(key): key for key in config} if isinstance(config, DictConfig) else {}
        return {key: _stored_at(one, config, places.get(str(key))) for key, one in value.items()}
    if isinstance(value, list):
        count = len(config) if isinstance(config, ListConfig) else 0
        return [_stored_at(one, config, place if place < count else None) for place, one in enumerate(value)]
    return secrets.masked(value) if isinstance(value, str) else value


def _stored_at(value: Any, parent: Any, key: Any) -> Any:
    if key is None:
        return with_labels(value, None)
    if not OmegaConf.is_interpolation(parent, key):
        return with_labels(value, parent[key])
    before = next(_reads)
    found = parent[key]
    if OmegaConf.is_config(found):
        OmegaConf.to_container(found, resolve=True)
    if next(_reads) > before + 1:
        return secrets.without_passwords(OmegaConf.to_container(parent, resolve=False)[key])  # type: ignore
    return with_labels(value, None)


def _hidden_as(value: Any, stored: Any) -> Any:
    """``value`` with the texts of ``stored`` that hide something."""
    if isinstance(stored, str) and "${" in stored:
        return stored
    if isinstance(value, Mapping) and isinstance(stored, Mapping):
        return {key: _hidden_as(one, stored.get(key)) for key, one in value.items()}
    if isinstance(value, list) and isinstance(stored, list) and len(value) == len(stored):
        return [_hidden_as(one, other) for one, other in zip(value, stored, strict=True)]
    return value


def own_names(recipe: Recipe) -> list[str]:
    """What a run must call its things, in names of folders and at servers: no secrets."""
    folders = [str(ROOT / one) for one in (recipe.store, recipe.runs) if not is_url(one)]
    words = [recipe.name, recipe.device, recipe.precision, recipe.tracking.experiment, *map(str, recipe.seeds or ())]
    model = [recipe.promote.model] if recipe.promote else []
    return [*words, str(recipe.seed), str(ROOT), *folders, recipe.store, recipe.runs, recipe.tracking.uri, *model]


def value_at(value: Any, path: Sequence[Any]) -> Any:
    """What lies there, or the text that stands in place of all below it."""
    for step in path:
        if isinstance(value, str):
            return value
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value
