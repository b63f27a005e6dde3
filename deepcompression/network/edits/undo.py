"""All or nothing: a model is as it was where a change of it fails half-way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def whole_or_not(model: nn.Module) -> Iterator[None]:
    """Where the block fails, the modules of ``model`` are what they were: classes, tensors, hooks, attributes.

    Tensors are not copied: the block puts others in their places, and changes none.
    """
    kept = [(module, type(module), _copies(vars(module))) for module in model.modules()]
    try:
        yield
    except BaseException:
        for module, kind, attributes in kept:
            module.__class__ = kind
            _put_back(vars(module), attributes)
        raise


def _copies(attributes: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Each attribute's name, its object, and what that holds, where it can be changed in place."""
    return [
        (name, value, next((kind(value) for kind in (dict, list, set) if isinstance(value, kind)), None))
        for name, value in attributes.items()
    ]


def _put_back(attributes: dict[str, Any], kept: list[tuple[str, Any, Any]]) -> None:
    attributes.clear()
    for name, value, content in kept:
        attributes[name] = value
        if isinstance(value, list):
            value[:] = content
        elif isinstance(value, dict | set):
            value.clear()
            value.update(content)
