"""A recipe's text and its overrides, merged; nothing resolved."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from deepcompression.errors import RecipeError, one_line
from flows.recipe import reading
from flows.recipe.places import placed
from flows.recipe.schema import Recipe
from tasks import secrets
from tasks.execution.settings import tables
from tasks.root import ROOT


def raw(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A recipe with overrides merged in and nothing resolved: fit to be sent elsewhere, secrets are not in it.

    Raises:
        RecipeError: as ``merge``; or a path leads to two files.
    """
    plain = typing.cast(dict[str, Any], OmegaConf.to_container(merge(source, overrides)[0], resolve=False))
    beside = folder_of(source)
    return plain if beside is None else placed(plain, beside)


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """``["seed=3", "stages.prune.density=0.05"]`` -> a mapping; values are read as YAML.

    Raises:
        RecipeError: for a word without ``=``, or a value that is no YAML.
    """
    overrides = {}
    for word in words:
        key, sign, value = word.partition("=")
        if not sign or not key:
            raise RecipeError(f"override {word!r}: expected key=value, such as seed=3 or stages.prune.density=0.05")
        try:
            read = OmegaConf.from_dotlist([f"value={value}"])
            overrides[key.strip()] = typing.cast(dict[str, Any], OmegaConf.to_container(read))["value"]
        except (yaml.YAMLError, OmegaConfBaseException, RecursionError) as error:
            raise RecipeError(f"override {word[:200]!r}: the value is no YAML: {reason(error)}") from None
    return overrides


def merge(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None) -> tuple[DictConfig, str, str]:
    """The configuration with overrides in it, its text, and what messages call it; see ``load``.

    Raises:
        RecipeError: no such file, no YAML mapping, or an override that does not fit it.
    """
    text, where = ("", "recipe") if isinstance(source, Mapping) else _read(str(source))
    try:
        if isinstance(source, Mapping):
            reading.within(source, where)
        else:
            reading.check(text, where)
        config = OmegaConf.create(dict(source)) if isinstance(source, Mapping) else OmegaConf.create(text or "{}")
    except RecipeError:
        raise
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{where}: not a YAML mapping: {reason(error)}") from None
    if not isinstance(config, DictConfig):
        raise RecipeError(f"{where}: expected a YAML mapping with keys such as name, model, data, stages")
    for key, value in (overrides or {}).items():
        try:
            _set(config, _stage_index(key, config), value)
        except (OmegaConfBaseException, ValueError, TypeError, IndexError, AssertionError) as error:
            raise RecipeError(secrets.masked(f"override {key}={value}: {reason(error)}")) from None
    for one, other in (("seed", "seeds"), ("seeds", "seed")):  # the one that was asked for replaces the other
        if (overrides or {}).get(one) is not None and (overrides or {}).get(other) is None:
            config.pop(other, None)
    return config, text, where


def _read(source: str) -> tuple[str, str]:
    """Text and a name for messages."""
    secrets.know_passwords(source)
    if urlsplit(source).scheme in ("http", "https"):
        return reading.fetched(source), secrets.masked(source)
    path = path_of(source)
    try:
        return reading.text_of(path), source
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(
            f"recipe {source}: {path.resolve()} cannot be read: {reason}; expected a YAML file, see conf/"
        ) from None


def path_of(source: str) -> Path:
    """The file of a recipe: relative paths are taken from here, then from the repository's root."""
    return Path(source) if Path(source).exists() else ROOT / source


def folder_of(source: str | Path | Mapping[str, Any]) -> Path | None:
    """The folder of a recipe's file; None of one that has none."""
    if isinstance(source, Mapping) or urlsplit(str(source)).scheme in ("http", "https"):
        return None
    return path_of(str(source)).resolve().parent


def _set(config: DictConfig, key: str, value: Any) -> None:
    """Puts a value at its place; behind a key that may be a table by tensor name all is one name, dots and all."""
    path, name = _of_table(key)
    table = OmegaConf.select(config, path) if name else None
    if not name:
        OmegaConf.update(config, key, value, merge=isinstance(value, Mapping), force_add=True)
    elif isinstance(table, DictConfig):
        table[name] = value
    else:  # one value for all is from now on that of the others
        others = {} if table is None else {"default": table}
        OmegaConf.update(config, path, {**others, name: value}, merge=False, force_add=True)


def _of_table(key: str) -> tuple[str, str]:
    """The path of a table by tensor name and the name in it; the key and nothing where it leads to none."""
    parts = key.split(".")
    for place, part in enumerate(parts[:-1], 1):
        if part in _tables() and "kwargs" not in parts[:place] and "[" not in key:
            return ".".join(parts[:place]), ".".join(parts[place:])
    return key, ""


@cache
def _tables() -> frozenset[str]:
    return frozenset(tables(Recipe))


def _stage_index(key: str, config: DictConfig) -> str:
    parts = key.split(".")
    if parts[0] != "stages" or len(parts) < 2 or parts[1].isdigit():
        return key
    names = [stage.get("stage") if isinstance(stage, DictConfig) else None for stage in config.get("stages") or []]
    places = [str(index) for index, name in enumerate(names) if name == parts[1]]
    if len(places) == 1:
        return ".".join(["stages", places[0], *parts[2:]])
    if places:
        raise RecipeError(
            f"override {key}: {len(places)} stages are called {parts[1]}; use stages.{places[0]}. or "
            f"stages.{places[1]}. instead"
        )
    raise RecipeError(f"override {key}: no stage is called {parts[1]}; the recipe has {', '.join(map(str, names))}")


def reason(error: Exception) -> str:
    """The message; of OmegaConf's, which have the key below them, the key and what is wrong with it."""
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        what = str(error).partition("\n    full_key")[0].split(" raised while resolving interpolation: ")[-1]
        return f"{error.full_key}: {' '.join(what.split())}".replace('"', "")
    return one_line(error)
