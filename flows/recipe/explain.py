"""What is wrong in a recipe, a line for each thing."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from flows.recipe.possible import Possible
from flows.recipe.schema import Recipe
from flows.recipe.stored import value_at
from tasks.execution.settings import CALLABLE

# Complaints about what a value is, where its schema says better what it may be.
FORMS = (
    *(f"{kind}_{what}" for kind in ("int", "float", "bool", "string", "list", "dict") for what in ("type", "parsing")),
    *("model_type", "int_from_float", "literal_error"),
    *("greater_than", "greater_than_equal", "less_than", "less_than_equal"),
)


@dataclass(frozen=True)
class _Complaint:
    """One of pydantic's, where the user's keys lead, and which parts of unions it is about, by the place of each."""

    path: Sequence[Any]
    problem: Mapping[str, Any]
    parts: Mapping[tuple[Any, ...], tuple[Any, ...]]

    def repeats(self, told: _Complaint) -> bool:
        """Whether it is about nothing else than what was told: the same place, one around it, or another part of a
        union, of which the one that was told is most likely meant.
        """
        around = list(self.path) == list(told.path[: len(self.path)])
        other = any(told.parts.get(place, part) != part for place, part in self.parts.items())
        return around or other or _same(told.path, told.problem, self.path, self.problem)


def explain(
    error: ValidationError,
    values: Any,
    text: str,
    where: str,
    overrides: Mapping[str, Any],
    root: type[BaseModel] = Recipe,
    stored: Any = None,
) -> list[str]:
    """A line for each thing that is wrong, the one that tells most first; what came is shown as ``stored`` has it,
    where that is given.
    """
    left = [_complaint(one, values) for one in error.errors()]
    told: list[_Complaint] = []
    while left:
        told.append(max(left, key=_telling))
        left = [one for one in left if not one.repeats(told[-1])]
    possible = Possible(root, values)
    return [_line_of(one, text, where, overrides, possible, stored) for one in told]


def _line_of(
    told: _Complaint, text: str, where: str, overrides: Mapping[str, Any], possible: Possible, stored: Any
) -> str:
    path, problem = told.path, told.problem
    key = ".".join(map(str, path)) or "recipe"
    line = _line(text, path)
    place = f"{where}:{line}" if line and not _overridden(path, overrides) else where
    if problem["type"] == "extra_forbidden":
        known = sorted(possible.keys(path[:-1]))
        near = difflib.get_close_matches(str(path[-1]), known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(known)}"
        return f"{place}: {key}: unknown key; {hint}"
    got = problem.get("input")
    if isinstance(hidden := value_at(stored, path), str):
        got = hidden
    return f"{place}: {key}: {_message(problem, got, possible, path)}"


def _telling(complaint: _Complaint) -> tuple[int, int]:
    """How much a complaint tells. Of a union that is the most specific one: where a key is known in one of its parts,
    that it is unknown in another is none.
    """
    kind = complaint.problem["type"]
    return len(complaint.path), {"missing": 0, "extra_forbidden": 1}.get(kind, 2 if kind in FORMS else 3)


def _same(path: Sequence[Any], first: Mapping[str, Any], other: Sequence[Any], problem: Mapping[str, Any]) -> bool:
    """Whether a key that is missing is most likely the one that is unknown."""
    return first["type"] == "extra_forbidden" and problem["type"] == "missing" and other[:-1] == path[:-1]


def _message(first: Mapping[str, Any], got: Any, possible: Possible, path: Sequence[Any]) -> str:
    """What may stand there and what came; of what no schema says the complaint's own words."""
    expected = possible.told(path) if first["type"] in FORMS else ""
    if first.get("ctx", {}).get("pattern") == CALLABLE:
        expected = "package.module:callable"
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


def _complaint(problem: Mapping[str, Any], values: Any) -> _Complaint:
    """Its place without the union tags and type names that pydantic puts between the user's keys."""
    path: list[Any] = []
    parts: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    here = values
    for part in problem["loc"]:
        if isinstance(here, Mapping):  # of layers called by numbers, the key as YAML read it
            part = next((key for key in here if str(key) == str(part)), part)
        if (isinstance(here, Mapping) and part in here) or (isinstance(here, list) and isinstance(part, int)):
            here = here[part]
            path.append(part)
        else:
            parts[tuple(path)] = (*parts.get(tuple(path), ()), part)
    if problem["type"] != "missing":
        return _Complaint(path, problem, parts)
    missing = parts.pop(tuple(path))
    return _Complaint([*path, missing[-1]], problem, {**parts, **({tuple(path): missing[:-1]} if missing[1:] else {})})


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
