"""What is wrong in a recipe, in one line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from flows.recipe.possible import Possible
from flows.recipe.schema import Recipe
from flows.recipe.stored import value_at

# Complaints about what a value is, where its schema says better what it may be.
FORMS = (
    *(f"{kind}_{what}" for kind in ("int", "float", "bool", "string", "list", "dict") for what in ("type", "parsing")),
    *("model_type", "int_from_float", "literal_error"),
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal"),
)


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
    path, first = max(placed, key=_telling)
    key = ".".join(map(str, path)) or "recipe"
    line = _line(text, path)
    place = f"{where}:{line}" if line and not _overridden(path, overrides) else where
    others = {tuple(one) for one, other in placed if one != path[: len(one)] and not _same(path, first, one, other)}
    more = f" (and {len(others)} more)" if others else ""
    possible = Possible(root, values)
    if first["type"] == "extra_forbidden":
        known = sorted(possible.keys(path[:-1]))
        near = difflib.get_close_matches(str(path[-1]), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
        return f"{place}: {key}: unknown key; {hint}{more}"
    got = first.get("input")
    if isinstance(told := value_at(stored, path), str):
        got = told
    return f"{place}: {key}: {_message(first, got, possible, path)}{more}"


def _telling(placed: tuple[Sequence[Any], Mapping[str, Any]]) -> tuple[int, int]:
    """How much a complaint tells. Of a union that is the most specific one: where a key is known in one of its parts,
    that it is unknown in another is none.
    """
    path, problem = placed
    kind = problem["type"]
    return len(path), {"missing": 0, "extra_forbidden": 1}.get(kind, 2 if kind in FORMS else 3)


def _same(path: Sequence[Any], first: Mapping[str, Any], other: Sequence[Any], problem: Mapping[str, Any]) -> bool:
    """Whether a key that is missing is most likely the one that is unknown."""
    return first["type"] == "extra_forbidden" and problem["type"] == "missing" and other[:-1] == path[:-1]


def _message(first: Mapping[str, Any], got: Any, possible: Possible, path: Sequence[Any]) -> str:
    """What may stand there and what came; of what no schema says the complaint's own words."""
    expected = possible.told(path) if first["type"] in FORMS else ""
    near = difflib.get_close_matches(got, possible.words(path), 1) if expected and isinstance(got, str) else []
    own = first["msg"].removeprefix("Value error, ")
    message = f"expected {expected}" if expected else own[:1].lower() + own[1:]
    return f"{message}{_came(first, got, bool(expected))}{f'; did you mean {near[0]!r}?' if near else ''}"


def _came(first: Mapping[str, Any], got: Any, whole: bool) -> str:
    if first["type"] == "missing":
        return ""
    if isinstance(got, Mapping | list | BaseModel):
        return f", got a {'list' if isinstance(got, list) else 'mapping'}" if whole else ""
    return f", got {got!r}"


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
