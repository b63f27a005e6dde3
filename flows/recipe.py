"""From YAML and overrides to a validated recipe, and every wrong key to one clear line."""

from __future__ import annotations

import difflib
import functools
import itertools
import os
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from pydantic import BaseModel, ValidationError

from deepcompression.errors import RecipeError, one_line
from flows import reading
from flows.schema import Prune, Recipe
from tasks import secrets
from tasks.root import ROOT

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
    config, text, where = _merge(source, overrides)
    try:
        values = OmegaConf.to_container(config, resolve=True)
    except (OmegaConfBaseException, RecursionError) as error:
        raise RecipeError(secrets.masked(f"{where}: {_one_line(error)}")) from None
    _each_text(values, secrets.know_passwords)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        told = _explain(error, values, text, where, overrides or {}, stored=_stored(values, config))
        raise RecipeError(secrets.masked(told)) from None
    secrets.public(*_own_names(recipe))
    return recipe


def raw(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A recipe with overrides merged in and nothing resolved: fit to be sent elsewhere, secrets are not in it."""
    return typing.cast(dict[str, Any], OmegaConf.to_container(_merge(source, overrides)[0], resolve=False))


def load_as(kind: type[Model], source: str, overrides: Mapping[str, Any] | None = None) -> Model:
    """Another kind of YAML (a sweep, a schedule), read, checked and explained as recipes are.

    Raises:
        RecipeError: as ``load``.
    """
    config, text, where = _merge(source, overrides)
    values = OmegaConf.to_container(config, resolve=False)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error, values, text, where, overrides or {}, kind)) from None


def resolve(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A part of a stored recipe with its ``${...}`` resolved on this machine.

    Raises:
        RecipeError: a variable of the environment is missing.
    """
    try:
        return typing.cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(dict(values)), resolve=True))
    except OmegaConfBaseException as error:
        raise RecipeError(secrets.masked(f"{where}: {_one_line(error)}")) from None


def as_stored(
    recipe: Recipe, source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The resolved recipe as it may be written down: whatever was read from the environment stays as it was written,
    ``${oc.env:...}`` or a reference to it, a whole node too; passwords of URLs are masked.
    """
    return typing.cast(dict[str, Any], _stored(recipe.model_dump(mode="json"), _merge(source, overrides)[0]))


def as_logged(recipe: Recipe, stored: Mapping[str, Any]) -> dict[str, Any]:
    """Label -> keys of every stage as it runs (see ``expand``), with what ``stored`` hides hidden here too."""
    stages = stored["stages"]
    plain = [] if isinstance(stages, str) else list(stages)
    logged = {}
    for label, number, config in _expanded(recipe):
        told = _hidden_as(config, plain[number] if number < len(plain) else stages)
        logged[label] = {k: v for k, v in told.items() if k != "stage"} if isinstance(told, Mapping) else told
    return logged


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
            raise RecipeError(f"override {word[:200]!r}: the value is no YAML: {_one_line(error)}") from None
    return overrides


def expand(recipe: Recipe) -> list[tuple[str, dict[str, Any]]]:
    """The stages as they run, each with a label that is unique: rounds unrolled, the second prune is ``prune-2``.

    A label never depends on what comes later, so that seeds derived from it do not change when stages are added.
    """
    return [(label, config) for label, _, config in _expanded(recipe)]


def _expanded(recipe: Recipe) -> list[tuple[str, int, dict[str, Any]]]:
    """Label, place in the recipe, keys."""
    from deepcompression.prune import round_densities

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


def _merge(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None) -> tuple[DictConfig, str, str]:
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
        raise RecipeError(f"{where}: not a YAML mapping: {_one_line(error)}") from None
    if not isinstance(config, DictConfig):
        raise RecipeError(f"{where}: expected a YAML mapping with keys such as name, model, data, stages")
    for key, value in (overrides or {}).items():
        try:
            OmegaConf.update(config, _stage_index(key, config), value, merge=isinstance(value, Mapping), force_add=True)
        except (OmegaConfBaseException, ValueError, TypeError, IndexError, AssertionError) as error:
            raise RecipeError(secrets.masked(f"override {key}={value}: {_one_line(error)}")) from None
    for one, other in (("seed", "seeds"), ("seeds", "seed")):  # the one that was asked for replaces the other
        if (overrides or {}).get(one) is not None and (overrides or {}).get(other) is None:
            config.pop(other, None)
    return config, text, where


def _read(source: str) -> tuple[str, str]:
    """Text and a name for messages. Relative paths are taken from here, then from the repository's root."""
    secrets.know_passwords(source)
    if urlsplit(source).scheme in ("http", "https"):
        return reading.fetched(source), secrets.masked(source)
    path = Path(source) if Path(source).exists() else ROOT / source
    try:
        return reading.text_of(path), source
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RecipeError(f"recipe {source}: cannot be read: {reason}; expected a YAML file, see conf/") from None


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


def _explain(
    error: ValidationError,
    values: Any,
    text: str,
    where: str,
    overrides: Mapping[str, Any],
    root: type[BaseModel] = Recipe,
    stored: Any = None,
) -> str:
    """One line about the most specific complaint; what came is shown as ``stored`` has it, where that is given."""
    placed = [(_user_path(one, values), one) for one in error.errors()]
    path, first = max(placed, key=lambda one: len(one[0]))  # of a union's complaints the most specific
    key = ".".join(map(str, path)) or "recipe"
    line = _line(text, path)
    place = f"{where}:{line}" if line and not _overridden(path, overrides) else where
    others = {tuple(one) for one, _ in placed if one != path[: len(one)]}
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        known = sorted(_known_keys(values, path[:-1], root))
        near = difflib.get_close_matches(str(path[-1]), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
        return f"{place}: {key}: unknown key; {hint}{more}"
    message = first["msg"].removeprefix("Value error, ")
    got = first.get("input")
    if isinstance(told := _at(stored, path), str):
        got = told
    came = f", got {got!r}" if first["type"] != "missing" and not isinstance(got, Mapping | list | BaseModel) else ""
    return f"{place}: {key}: {message[:1].lower() + message[1:]}{came}{more}"


def _user_path(problem: Mapping[str, Any], values: Any) -> list[Any]:
    """An error's place without the union tags and type names that pydantic puts between the user's keys."""
    path: list[Any] = []
    here = values
    for part in problem["loc"]:
        if isinstance(here, Mapping):  # of layers called by numbers, the key as YAML read it
            part = next((key for key in here if str(key) == str(part)), part)
        if (isinstance(here, Mapping) and part in here) or (isinstance(here, list) and isinstance(part, int)):
            here = here[part]
            path.append(part)
    return [*path, problem["loc"][-1]] if problem["type"] == "missing" else path


def _known_keys(values: Any, path: Sequence[Any], root: type[BaseModel]) -> set[str]:
    kind: Any = root
    here = values
    for step in path:
        here = here[step]
        if isinstance(step, int) and isinstance(here, Mapping):
            kind = next((m for m in _models(kind) if _stage_name(m) == here.get("stage")), Recipe)
        else:
            kind = (
                next(iter(_models(kind.model_fields[step].annotation)), None)
                if step != "stages"
                else (Recipe.model_fields["stages"].annotation)
            )
    found = list(_models(kind))
    return set(found[0].model_fields) if found else set()


def _stage_name(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("stage")
    return typing.get_args(field.annotation)[0] if field and typing.get_args(field.annotation) else None


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for inner in typing.get_args(annotation) for model in _models(inner)]


def _line(text: str, path: Sequence[Any]) -> int | None:
    """The 1-based line of a key in the YAML text, or of the nearest mapping around it."""
    node = yaml.compose(text, Loader=yaml.SafeLoader) if text else None
    line = None
    for step in path:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(step):
                    line, node = key.start_mark.line + 1, value
                    break
            else:
                return line
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            line = node.start_mark.line + 1
        else:
            return line
    return line


def _overridden(path: Sequence[Any], overrides: Mapping[str, Any]) -> bool:
    last = str(path[-1]) if path else ""
    return any(key.split(".")[-1] == last for key in overrides)


# ---------------------------------------------------------------- what the environment gave


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
            _each_text(plain, secrets.know)
        return made

    return call


def _register() -> None:
    register: Callable[..., None] = getattr(OmegaConf, "register_resolver", OmegaConf.register_new_resolver)
    unchecked = {"annotation_validation": "off"} if hasattr(OmegaConf, "register_resolver") else {}
    register("oc.env", _environment, replace=True, **unchecked)
    for name in ("create", "decode", "coerce"):
        if hasattr(oc, name):
            register(f"oc.{name}", _telling(getattr(oc, name)), replace=True, **unchecked)


_register()


def _each_text(value: Any, tell: Callable[[str], None]) -> None:
    """Tells every scalar in ``value`` but words such as true."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for one in value:
            _each_text(one, tell)
    elif isinstance(value, bytes):
        tell(value.decode("utf-8", "replace"))
    elif value is not None and not isinstance(value, bool):
        tell(str(value))


def _stored(value: Any, config: Any) -> Any:
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
        return _stored(value, None)
    if not OmegaConf.is_interpolation(parent, key):
        return _stored(value, parent[key])
    before = next(_reads)
    found = parent[key]
    if OmegaConf.is_config(found):
        OmegaConf.to_container(found, resolve=True)
    if next(_reads) > before + 1:
        return secrets.without_passwords(OmegaConf.to_container(parent, resolve=False)[key])  # type: ignore
    return _stored(value, None)


def _hidden_as(value: Any, stored: Any) -> Any:
    """``value`` with the texts of ``stored`` that hide something."""
    if isinstance(stored, str) and "${" in stored:
        return stored
    if isinstance(value, Mapping) and isinstance(stored, Mapping):
        return {key: _hidden_as(one, stored.get(key)) for key, one in value.items()}
    if isinstance(value, list) and isinstance(stored, list) and len(value) == len(stored):
        return [_hidden_as(one, other) for one, other in zip(value, stored, strict=True)]
    return value


def _own_names(recipe: Recipe) -> list[str]:
    """What a run must call its things, in names of folders and at servers: no secrets."""
    folders = [str(ROOT / one) for one in (recipe.store, recipe.runs) if "://" not in one]
    words = [recipe.name, recipe.device, recipe.precision, recipe.tracking.experiment, *map(str, recipe.seeds or ())]
    model = [recipe.promote.model] if recipe.promote else []
    return [*words, str(recipe.seed), str(ROOT), *folders, recipe.store, recipe.runs, recipe.tracking.uri, *model]


def _at(value: Any, path: Sequence[Any]) -> Any:
    """What lies there, or the text that stands in place of all below it."""
    for step in path:
        if isinstance(value, str):
            return value
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def _one_line(error: Exception) -> str:
    """The message; of OmegaConf's, which have the key below them, the key and what is wrong with it."""
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        what = str(error).partition("\n    full_key")[0].split(" raised while resolving interpolation: ")[-1]
        return f"{error.full_key}: {' '.join(what.split())}".replace('"', "")
    return one_line(error)
