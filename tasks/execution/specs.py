"""Callables named in a recipe, ``package.module:callable``: where they stand in its keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

TYPE = "type:"  # of layers of a class, not a callable
SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def specs_in(value: Any) -> Iterator[str]:
    """Every text of that form at any depth, in its order: arguments may name code too, and keys that choose tensors."""
    if isinstance(value, str):
        yield from _specs_of(value)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from specs_in(key)
            yield from specs_in(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from specs_in(one)


def _specs_of(text: str) -> Iterator[str]:
    """The callables of a choice of tensors, ``type:Conv2d & mine.choose:large``; or the one that a text is."""
    parts = [part.strip() for part in text.split("&")] if "&" in text else [text]
    yield from (part for part in parts if SPEC.fullmatch(part) and not part.startswith(TYPE))


def factories_in(config: Mapping[str, Any]) -> Iterator[str]:
    """What a stage calls itself: its own callable, then the ``factory`` of each ``{factory, kwargs}`` in its keys."""
    if SPEC.fullmatch(str(config.get("stage", ""))):
        yield config["stage"]
    for value in config.values():
        if isinstance(value, Mapping):
            yield from [value["factory"]] if "factory" in value else factories_in(value)
