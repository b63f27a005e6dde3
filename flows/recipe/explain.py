"""What is wrong in a recipe, in one line."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from flows.recipe.schema import Recipe
from flows.recipe.stored import value_at


def explain(
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
    if isinstance(told := value_at(stored, path), str):
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
