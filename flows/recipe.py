"""From YAML and overrides to a validated recipe, and every wrong key to one clear line."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from deepcompression.errors import RecipeError
from flows import reading
from flows.schema import Prune, Recipe

Model = typing.TypeVar("Model", bound=BaseModel)
ROOT = Path(__file__).resolve().parent.parent


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
        raise RecipeError(f"{where}: {_one_line(error)}") from None
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(_explain(error, values, text, where, overrides or {})) from None


def raw(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A recipe with overrides merged in and nothing resolved: fit to be sent elsewhere, secrets are not in it."""
    return typing.cast(dict[str, Any], OmegaConf.to_container(_merge(source, overrides)[0], resolve=False))


def factories(value: Any) -> list[str]:
    """Every ``package.module:callable`` that a recipe would import, in its order."""
    if isinstance(value, Mapping):
        own = [one for key, one in value.items() if key in ("factory", "stage") and ":" in str(one)]
        return own + [spec for one in value.values() for spec in factories(one)]
    if isinstance(value, list):
        return [spec for one in value for spec in factories(one)]
    return []


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
        raise RecipeError(f"{where}: {_one_line(error)}") from None


def as_stored(
    recipe: Recipe, source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The resolved recipe as it may be written down: secrets stay ``${oc.env:...}``, URL passwords are masked."""
    raw = OmegaConf.to_container(_merge(source, overrides)[0], resolve=False)
    secrets = [value for value in _environment_values(raw) if value]
    return typing.cast(dict[str, Any], _without_secrets(recipe.model_dump(mode="json"), raw, secrets))


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
    from deepcompression.prune import round_densities

    plain: list[Any] = []
    stages = iter(recipe.stages)
    for stage in stages:
        if isinstance(stage, Prune) and stage.rounds > 1:
            finetune = next(stages)
            for number in range(stage.rounds):
                plain += [_one_round(stage, number, round_densities), finetune]
        else:
            plain.append(stage)
    seen: dict[str, int] = {}
    labelled = []
    for stage in plain:
        name = stage.stage.replace(":", ".")
        seen[name] = seen.get(name, 0) + 1
        label = name if seen[name] == 1 else f"{name}-{seen[name]}"
        labelled.append((label, stage.model_dump(mode="json")))
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
            raise RecipeError(f"override {key}={value}: {_one_line(error)}") from None
    for one, other in (("seed", "seeds"), ("seeds", "seed")):  # the one that was asked for replaces the other
        if (overrides or {}).get(one) is not None and (overrides or {}).get(other) is None:
            config.pop(other, None)
    return config, text, where


def _read(source: str) -> tuple[str, str]:
    """Text and a name for messages. Relative paths are taken from here, then from the repository's root."""
    if urlsplit(source).scheme in ("http", "https"):
        return reading.fetched(source), source
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
) -> str:
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
    came = f", got {got!r}" if first["type"] != "missing" and not isinstance(got, Mapping | list | BaseModel) else ""
    return f"{place}: {key}: {message[:1].lower() + message[1:]}{came}{more}"


def _user_path(problem: Mapping[str, Any], values: Any) -> list[Any]:
    """An error's place without the union tags and type names that pydantic puts between the user's keys."""
    path: list[Any] = []
    here = values
    for part in problem["loc"]:
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


def _environment_values(raw: Any) -> list[str]:
    """What the environment gave to this recipe: never written down."""
    if isinstance(raw, Mapping):
        return [found for value in raw.values() for found in _environment_values(value)]
    if isinstance(raw, list):
        return [found for value in raw for found in _environment_values(value)]
    if isinstance(raw, str) and "oc.env" in raw:
        import os

        return [os.environ.get(name, "") for name in re.findall(r"oc\.env:\s*([A-Za-z_]\w*)", raw)]
    return []


def _without_secrets(value: Any, raw: Any, secrets: Sequence[str]) -> Any:
    if isinstance(value, Mapping):
        inner = raw if isinstance(raw, Mapping) else {}
        return {key: _without_secrets(one, inner.get(key), secrets) for key, one in value.items()}
    if isinstance(value, list):
        inner_list = raw if isinstance(raw, list) else []
        inner_list = [*inner_list, *[None] * (len(value) - len(inner_list))]
        return [_without_secrets(one, part, secrets) for one, part in zip(value, inner_list, strict=False)]
    if isinstance(raw, str) and "${" in raw and ("oc.env" in raw or any(secret in str(value) for secret in secrets)):
        return raw
    return re.sub(r"(\w+://[^/:@\s]*):[^@/\s]+@", r"\1:***@", value) if isinstance(value, str) else value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
