"""Callables named in a recipe, ``package.module:callable``: where they stand in its keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

SPEC = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def specs_in(value: Any) -> Iterator[str]:
    """Every text of that form at any depth, in its order: arguments may name code too."""
    if isinstance(value, str) and SPEC.fullmatch(value):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for one in value.values() if isinstance(value, Mapping) else value:
            yield from specs_in(one)


def factories_in(config: Mapping[str, Any]) -> Iterator[str]:
    """What a stage calls itself: its own callable, then the ``factory`` of each ``{factory, kwargs}`` in its keys."""
    if SPEC.fullmatch(str(config.get("stage", ""))):
        yield config["stage"]
    for value in config.values():
        if isinstance(value, Mapping):
            yield from [value["factory"]] if "factory" in value else factories_in(value)
