"""Code named in a recipe: ``package.module:callable``; and models that hubs have: ``timm:resnet18``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from inspect import Parameter, signature
from typing import Any

from deepcompression.errors import FactoryError, InputError, one_line

HUBS = ("torchvision", "timm", "transformers")
EXTRAS = {  # of this package, by what they bring
    "hub": (*HUBS, "torchmetrics"),
    "data": ("PIL", "pandas", "pyarrow", "tokenizers"),
    "torch": ("torch", "sklearn", "scipy"),
}


def load(spec: str) -> Callable[..., Any]:
    """The callable that ``spec`` names.

    Args:
        spec: ``package.module:callable``; the callable may be an attribute of an attribute. Of ``torchvision``,
            ``timm`` and ``transformers`` also a model's name.

    Raises:
        FactoryError: malformed; the module does not import (its own error is shown); no such attribute; not
            callable.
    """
    module_name, sign, attribute = spec.partition(":")
    if "/" in spec or "\\" in spec:
        raise FactoryError(
            f"factory {spec!r}: is a path; expected package.module:callable, with the package's folder in python_path"
        )
    if not (sign and module_name and attribute):
        raise FactoryError(f"factory {spec!r}: expected package.module:callable")
    if module_name in HUBS:
        from deepcompression.models.hub import load as by_name  # which imports torch

        return by_name(spec)
    try:
        found: Any = import_module(module_name)
    except Exception as error:
        missing = str(error.name).partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        extra = next((extra for extra, packages in EXTRAS.items() if missing in packages), None)
        hint = f"pip install 'deep-compression[{extra}]'" if extra else "is its folder in python_path?"
        raise FactoryError(
            f"factory {spec!r}: {module_name} does not import: {type(error).__name__}: {one_line(error)}; {hint}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise FactoryError(f"factory {spec!r}: {module_name} has no attribute {attribute!r}")
        found = getattr(found, part)
    if not callable(found):
        raise FactoryError(f"factory {spec!r}: {attribute} is a {type(found).__name__}, expected a callable")
    return found  # type: ignore[no-any-return]


def build(spec: str, kwargs: Mapping[str, Any] | None = None) -> Any:
    """What the callable returns for ``kwargs``.

    Raises:
        FactoryError: as ``load``; or the call itself fails, with its error shown. An ``InputError`` passes.
    """
    call = load(spec)
    try:
        return call(**(kwargs or {}))
    except InputError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={_shown(value)}" for key, value in (kwargs or {}).items())
        raise FactoryError(f"factory {spec}({given}): {type(error).__name__}: {one_line(error)}") from error


def function(spec: str, kwargs: Mapping[str, Any] | None = None, *, arguments: int = 2) -> Callable[..., Any]:
    """A function of so many positional arguments: the callable itself, or what it returns.

    ``step(model, batch)`` may be named directly; a factory of such functions is called with ``kwargs`` first.

    Args:
        spec: `package.module:callable`.
        kwargs: bound to it.
        arguments: how many more it is called with.

    Raises:
        FactoryError: as ``build``; or neither the callable nor what it returns can be called so.
    """
    call, given = load(spec), dict(kwargs or {})
    if not isinstance(call, type) and still_needs(call, given) == arguments:
        return partial(call, **given) if given else call
    made = build(spec, given)
    if not callable(made):
        raise FactoryError(
            f"factory {spec}: expected a function of {arguments} arguments, or a factory of one; "
            f"it returned {type(made).__name__}"
        )
    return made  # type: ignore[no-any-return]


def still_needs(call: Callable[..., Any], given: Mapping[str, Any]) -> int:
    """Positional arguments without a default that ``given`` leaves open."""
    try:
        parameters = signature(call).parameters.values()
    except (TypeError, ValueError):
        return 0
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in positional and one.default is one.empty and one.name not in given for one in parameters)


def _shown(value: Any) -> str:
    """Numbers as they are; texts could be secrets."""
    return repr(value) if value is None or isinstance(value, bool | int | float) else "..."
