"""Tensors by what they are: ``type:Conv2d``, ``min_size:10000``, ``package.module:callable``, and several by ``&``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from deepcompression import factory
from deepcompression.errors import StructureError, in_one_line

TYPE, LEAST = "type:", "min_size:"
CODE = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")
SHOWN = 8  # kinds of layers in a message


def is_code(part: str) -> bool:
    """Whether a part of a choice names a callable."""
    return CODE.fullmatch(part) is not None and not part.startswith(TYPE)


def parts_of(pattern: str) -> list[str]:
    """What all must be true of a tensor; empty where a pattern is an ordinary one, of names alone."""
    parts = [part.strip() for part in pattern.split("&")]
    apart = any(part.startswith((TYPE, LEAST)) or is_code(part) for part in parts)
    return parts if apart or len(parts) > 1 else []


def by_type(model: nn.Module, first: Mapping[str, str], name: str, pattern: str) -> list[str]:
    """The weights, of two axes or more, of all modules of a class or of its subclasses.

    Args:
        model: with tensors of these names.
        first: of each tensor's name the first one of the same tensor.
        name: of the class, without its module.
        pattern: for messages.

    Raises:
        StructureError: there is none; the classes that have weights are told.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    matrices = {one for one, tensor in model.named_parameters(remove_duplicate=False) if tensor.ndim > 1}
    held = {one.replace("parametrizations.", "").removesuffix(".original") for one in matrices}
    found = [one for one in first if one in matrices | held and _is_of(modules[one.rpartition(".")[0]], name)]
    if not found:
        kinds = sorted({type(modules[one.rpartition(".")[0]]).__name__ for one in first if one in matrices | held})
        raise StructureError(
            f"pattern {pattern!r}: no layer of type {name} has a weight in this model; there are "
            f"{', '.join(kinds[:SHOWN])}"
        )
    return list(dict.fromkeys(first[one] for one in found))


def _is_of(module: nn.Module, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(module).__mro__)


def by_size(tensors: Mapping[str, Tensor], names: Iterable[str], least: str, pattern: str) -> list[str]:
    """Those of some tensors that have so many elements.

    Args:
        tensors: by name.
        names: of those to choose from.
        least: a whole number, as it was written.
        pattern: for messages.

    Raises:
        StructureError: ``least`` is no number, or more than any of them has.
    """
    if not least.strip().isdecimal():
        raise StructureError(f"pattern {pattern!r}: expected a whole number of elements behind {LEAST}, got {least!r}")
    sizes = {name: tensors[name].numel() for name in names}
    found = [name for name, size in sizes.items() if size >= int(least)]
    if sizes and not found:
        raise StructureError(f"pattern {pattern!r}: the largest tensor has {max(sizes.values()):,} elements")
    return found


def by_callable(model: nn.Module, spec: str, pattern: str) -> Sequence[str]:
    """The names, or patterns, that a function of the user's gives for the model.

    Args:
        model: is given to it.
        spec: ``package.module:callable``.
        pattern: for messages.

    Raises:
        StructureError: it fails, or gives something else.
        FactoryError: it does not import.
    """
    choose: Callable[..., Any] = factory.load(spec)
    with in_one_line(f"pattern {pattern!r}: {spec}(model) failed", StructureError):
        given = choose(model)
        names = [] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if not names or not all(isinstance(one, str) for one in names):
        shown = f"{names!r:.80}" if names else "none" if isinstance(given, list | tuple | set) else repr(given)[:80]
        raise StructureError(
            f"pattern {pattern!r}: {spec}(model) should return a list of names of tensors or layers, one at least, "
            f"got {shown}"
        )
    return names
