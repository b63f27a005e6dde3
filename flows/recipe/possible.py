"""What may stand at a place of a recipe, by its JSON schema: for one line about what does not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel

Node = Mapping[str, Any]
MOST_KEYS = 6  # that a sentence names
BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")


class Possible:
    """What may stand at each place of values of one type."""

    def __init__(self, root: type[BaseModel], values: Any) -> None:
        self._root = _schema_of(root)
        self._values = values

    def keys(self, path: Sequence[Any]) -> set[str]:
        """The keys that a mapping there may have."""
        return {key for node in self._at(path) for key in node.get("properties", ())}

    def words(self, path: Sequence[Any]) -> list[str]:
        """The words that may stand there."""
        return [str(word) for node in self._at(path) for word in _words(node) if word is not None]

    def told(self, path: Sequence[Any]) -> str:
        """All that may stand there, such as ``an integer from 2 to 16, a table by name or allocated``; else empty."""
        return self._told(self._at(path))

    def _told(self, nodes: Sequence[Node]) -> str:
        listed = sorted(nodes, key=lambda node: node.get("type") == "array")  # last: what each is follows
        every = [*dict.fromkeys(one for node in listed for one in self._forms(node))]
        return f"{', '.join(every[:-1])}, or {every[-1]}" if len(every) > 1 else "".join(every)

    def _forms(self, node: Node) -> Iterator[str]:
        kind = node.get("type")
        if words := _words(node):
            yield from map(str, words)
        elif kind in ("integer", "number"):
            yield f"{'an integer' if kind == 'integer' else 'a number'}{_bounds(node)}"
        elif kind == "boolean":
            yield "true or false"
        elif kind == "string":
            yield "a text"
        elif kind == "array":
            each = self._told([*self._alternatives(node.get("items", {}))])
            yield f"a list, each {each}" if each else "a list"
        elif properties := node.get("properties"):
            named = node.get("required") or [*properties]
            yield f"a mapping with {', '.join(named[:MOST_KEYS])}{' ...' if len(named) > MOST_KEYS else ''}"
        elif kind == "object":
            yield "a table by name"

    def _at(self, path: Sequence[Any]) -> list[Node]:
        nodes, here = [*self._alternatives(self._root)], self._values
        for step in path:
            below = [one for node in nodes for one in _below(node, step, isinstance(here, list))]
            here = here[step] if isinstance(here, list) or (isinstance(here, Mapping) and step in here) else None
            nodes = [one for node in below for one in self._alternatives(node) if _meant(one, here)]
        return nodes

    def _alternatives(self, node: Node) -> Iterator[Node]:
        """What a node of the schema stands for, one by one."""
        if "$ref" in node:
            yield from self._alternatives(self._root["$defs"][node["$ref"].rpartition("/")[2]])
        elif several := node.get("anyOf") or node.get("oneOf"):
            for one in several:
                yield from self._alternatives(one)
        elif node.get("type") != "null":
            yield node


@cache
def _schema_of(root: type[BaseModel]) -> Node:
    return root.model_json_schema()


def _words(node: Node) -> list[Any]:
    return [node["const"]] if "const" in node else list(node.get("enum", ()))


def _bounds(node: Node) -> str:
    least, above, most, below = (node.get(key) for key in BOUNDS)
    if least is not None and most is not None:
        return f" from {least:g} to {most:g}"
    low = f"of {least:g} or more" if least is not None else f"above {above:g}" if above is not None else ""
    high = f"at most {most:g}" if most is not None else f"below {below:g}" if below is not None else ""
    return "".join(f" {one}" for one in (low, "and" if low and high else "", high) if one)


def _below(node: Node, step: Any, listed: bool) -> Iterator[Node]:
    """What stands below a key, or at a place of a list."""
    more = node.get("additionalProperties")
    if listed:
        yield from [node["items"]] if "items" in node else []
    elif str(step) in node.get("properties", ()):
        yield node["properties"][str(step)]
    elif isinstance(more, Mapping):
        yield more


def _meant(node: Node, here: Any) -> bool:
    """Of stages only the one that is named."""
    named = node.get("properties", {}).get("stage", {}).get("const")
    return named is None or not isinstance(here, Mapping) or here.get("stage", named) == named
