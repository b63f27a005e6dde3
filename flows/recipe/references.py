"""A recipe of a server as plain data: references within it followed, values that you give put in their places."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from deepcompression.errors import RecipeError
from flows.recipe import reading
from tasks.execution.settings import Place

PLAIN = (str, int, float, bool, type(None))
REFERENCE = re.compile(r"\$\{\s*+(\.*+)([\w.\-\[\]]*+)\s*+\}")


def plain(who: str, recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain data: references within it followed, values that you give put in their places.

    Args:
        who: the run, for messages.
        recipe: from a server, nothing of it resolved.
        overrides: what you give, dotted key -> value; it may use the environment of this machine.

    Raises:
        RecipeError: anything else than a reference stands in ``${...}``, or a reference leads nowhere, to itself, or to
            what you read from this machine; the recipe is too large.
    """
    reading.within(recipe, f"run {who}: its recipe")
    result: dict[str, Any] = _Resolver(who, recipe, given(recipe, overrides)).value(recipe, ())
    return result


def merged(who: str, recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with overrides in their places, both from a server: nothing is resolved, by nobody.

    Raises:
        RecipeError: too large, or an override fits nowhere.
    """
    for one in (recipe, overrides):
        reading.within(one, f"run {who}: its recipe")
    result: dict[str, Any] = json.loads(json.dumps(recipe))
    for place, value in given(recipe, overrides).items():
        try:
            _put(result, place, value)
        except (IndexError, TypeError, AttributeError):
            raise RecipeError(f"run {who}: its override {shown(place)} fits nowhere in its recipe") from None
    return result


def given(recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[Place, Any]:
    """Places in ``recipe`` that overrides give a value to; a stage by its name or number, as in ``recipes.load``."""
    return {
        path: value
        for key, given_ in overrides.items()
        for path, value in _leaves(_place(key, recipe.get("stages")), given_)
    }


@dataclass
class _Resolver:
    """Follows references in a recipe, and counts what that makes, since references to references can grow."""

    who: str
    recipe: Mapping[str, Any]
    yours: Mapping[Place, Any]
    made: int = 0
    depth: int = 0
    open: list[Place] = field(default_factory=list)

    def value(self, value: Any, place: Place) -> Any:
        self._count(1)
        self.depth += 1
        made = self._your(place) if place in self.yours else self._followed(value, place)
        self.depth -= 1
        return made

    def _followed(self, value: Any, place: Place) -> Any:
        if isinstance(value, Mapping):
            return {self._key(key, place): self.value(one, (*place, key)) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(one, (*place, index)) for index, one in enumerate(value)]
        if not isinstance(value, PLAIN):  # YAML has bytes, sets and dates too; a path can be bytes
            raise RecipeError(
                f"run {self.who}: {shown(place)}: a {type(value).__name__}; expected text, numbers, lists and mappings"
            )
        return self._text(value, place) if isinstance(value, str) and "${" in value else value

    def _text(self, text: str, place: Place) -> Any:
        whole = REFERENCE.fullmatch(text)
        if whole:
            return self._target(whole, place)
        if "${" in REFERENCE.sub("", text) or "\\${" in text:
            self._refuse(place, text)
        made = REFERENCE.sub(lambda found: self._word(self._target(found, place), text, place), text)
        self._count(len(made) // 100)
        if "${" in made or len(made) > reading.MOST_CHARACTERS:
            self._refuse(place, text)
        return made

    def _target(self, found: re.Match[str], place: Place) -> Any:
        dots, name = len(found[1]), found[2]
        keys = [one for one in re.split(r"[.\[\]]+", name) if one]
        if not keys or dots > len(place):
            self._lost(found, place)
        target, at = self._find((*place[: len(place) - dots], *keys) if dots else tuple(keys), found, place)
        if at in self.open or len(self.open) > reading.MOST_DEPTH:
            self._lost(found, place)
        self.open.append(at)
        value = self.value(target, at)
        self.open.pop()
        return value

    def _find(self, keys: Place, found: re.Match[str], place: Place) -> tuple[Any, Place]:
        """What lies at ``keys`` and the same place with numbers for indices; or what you gave there."""
        target: Any = self.recipe
        at: Place = ()
        for number, key in enumerate(keys):
            at = (*at, int(key) if isinstance(target, list | tuple) and str(key).isdigit() else key)
            try:
                target = target[at[-1]]
            except (KeyError, IndexError, TypeError):
                at = (*at, *keys[number + 1 :])
                if at not in self.yours:
                    self._lost(found, place)
                return self.yours[at], at
        return target, at

    def _lost(self, found: re.Match[str], place: Place) -> NoReturn:
        raise RecipeError(f"run {self.who}: {shown(place)}: {found[0][:80]} leads nowhere in this recipe, or to itself")

    def _word(self, value: Any, text: str, place: Place) -> str:
        if isinstance(value, dict | list):
            self._refuse(place, text)
        return str(value)

    def _your(self, place: Place) -> Any:
        value = self.yours[place]
        if self.open and _has_interpolation(value):
            raise RecipeError(
                f"run {self.who}: it refers to {shown(place)}, which you read from this machine; its recipe came from "
                "a tracking server and is not told such values"
            )
        return value

    def _key(self, key: Any, place: Place) -> Any:
        if not isinstance(key, PLAIN) or (isinstance(key, str) and "${" in key):
            self._refuse(place, str(key))
        return key

    def _refuse(self, place: Place, text: str) -> NoReturn:
        where = ".".join(map(str, place)) or "recipe"
        raise RecipeError(
            f"run {self.who}: {shown(place)}: {text[:80]!r} is no plain data: a recipe from a tracking server "
            f"may hold no ${{...}} but references within itself; give the value: {where[:80]}=..."
        )

    def _count(self, more: int) -> None:
        self.made += more
        if self.made > reading.MOST_NODES or self.depth > reading.MOST_DEPTH:
            raise RecipeError(
                f"run {self.who}: its recipe has more than {reading.MOST_NODES:,} keys and values, or more than "
                f"{reading.MOST_DEPTH} levels, references followed"
            )


def _leaves(place: Place, value: Any) -> Iterator[tuple[Place, Any]]:
    """A mapping merges into what is there, so each of its values has a place; all else replaces as a whole."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from _leaves((*place, key), one)
    else:
        yield place, value


def _place(key: str, stages: Any) -> Place:
    parts: list[Any] = [one for one in re.split(r"[.\[\]]+", key) if one]
    if len(parts) > 1 and parts[0] == "stages" and isinstance(stages, list):
        names = [one.get("stage") if isinstance(one, Mapping) else None for one in stages]
        number = names.index(parts[1]) if names.count(parts[1]) == 1 else parts[1]
        parts[1] = int(number) if str(number).isdigit() else number
    return tuple(parts)


def _put(value: Any, place: Place, new: Any) -> None:
    """Mappings on the way that are not there are made, as OmegaConf does."""
    for key in place[:-1]:
        value = value[key] if isinstance(value, list) else value.setdefault(key, {})
    value[place[-1]] = new


def _has_interpolation(value: Any) -> bool:
    return "${" in str(value)


def dotted(place: Place) -> str:
    """A place as a key that you give on the command line."""
    return ".".join(map(str, place))


def shown(place: Place) -> str:
    """A place for people; what a server wrote does not reach the terminal as it is."""
    text = dotted(place) or "recipe"
    return (text if text.isprintable() else repr(text))[:120]
