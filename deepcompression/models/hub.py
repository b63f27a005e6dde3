"""Models by the name that a hub gives them: ``torchvision:NAME``, ``timm:NAME``, ``transformers:CLASS``.

Such a name builds an untrained network, offline; ``hub:default`` as a recipe's ``model.weights.path`` is the checkpoint
that the hub publishes for it, of a local cache where that has it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from deepcompression.errors import FactoryError, InputError, WeightsError
from deepcompression.models.hub_common import DEFAULT, Preparation
from deepcompression.models.hub_timm import Timm
from deepcompression.models.hub_torchvision import Torchvision
from deepcompression.models.hub_transformers import Transformers

PUBLISHED = "hub:"  # of a path of weights: what follows is a hub's word for one of its checkpoints


class Hub(Protocol):
    """One library of models."""

    def factory(self, name: str) -> Callable[..., Any] | None:
        """What builds the untrained model of a name; None where the library has none of it."""

    def names(self) -> Sequence[str]:
        """Names that it has."""

    def weights(self, name: str, kwargs: Mapping[str, Any], which: str) -> Path:
        """The file, or folder, of a published checkpoint.

        Args:
            name: the model's.
            kwargs: its arguments.
            which: of its checkpoints.

        Raises:
            InputError: there is none, or it is out of reach.
        """

    def preparation(self, name: str, kwargs: Mapping[str, Any], which: str) -> Preparation:
        """How the published model takes pictures.

        Args:
            name: the model's.
            kwargs: its arguments.
            which: of its checkpoints.

        Raises:
            FactoryError: nothing says so.
        """


HUBS: Mapping[str, Hub] = {"torchvision": Torchvision(), "timm": Timm(), "transformers": Transformers()}


def of(spec: str) -> tuple[Hub, str] | None:
    """The hub and the name that a factory names; None where it names code."""
    package, _, name = spec.partition(":")
    return (HUBS[package], name) if package in HUBS else None


def load(spec: str) -> Callable[..., Any]:
    """What builds the model of a hub's name, or the package's own callable of that name.

    Args:
        spec: ``torchvision:``, ``timm:`` or ``transformers:`` and a name.

    Raises:
        FactoryError: the package is missing, or has no such model; with the nearest names.
    """
    found = of(spec)
    assert found is not None
    hub, name = found
    try:
        made = hub.factory(name)
    except FactoryError as error:
        raise FactoryError(f"factory {spec!r}: {error}") from None
    package = spec.partition(":")[0]
    made = made or getattr(import_module(package), name, None)
    if callable(made):
        return made
    near = difflib.get_close_matches(name, list(hub.names()), 3)
    hint = f"the nearest are {', '.join(near)}" if near else "its documentation lists them"
    raise FactoryError(f"factory {spec!r}: {package} has no model {name!r}; {hint}")


def weights_of(spec: str, kwargs: Mapping[str, Any], path: str) -> Path:
    """Where the checkpoint lies that ``hub:WHICH`` means for a model; fetched, with a warning, where no cache has it.

    Args:
        spec: the model's factory.
        kwargs: its arguments.
        path: ``hub:default``, or the hub's own word: torchvision's ``IMAGENET1K_V2``, timm's tag, a revision.

    Raises:
        WeightsError: the model is of no hub, the hub has no such checkpoint, or it is neither here nor to be had.
    """
    found = of(spec)
    if found is None:
        raise WeightsError(
            f"model.weights.path {path}: goes with a factory of {', '.join(HUBS)}, not {spec}; name the checkpoint's "
            "file"
        )
    try:
        return found[0].weights(found[1], kwargs, path.removeprefix(PUBLISHED) or DEFAULT)
    except InputError as error:
        raise WeightsError(f"model.weights.path {path}: {error}") from None


def preparation_of(spec: str, kwargs: Mapping[str, Any], which: str = DEFAULT) -> Preparation:
    """How a hub's model takes pictures.

    Args:
        spec: its factory.
        kwargs: its arguments.
        which: of its checkpoints, whose pictures these were.

    Raises:
        FactoryError: the hub does not say.
    """
    found = of(spec)
    if found is None:
        raise FactoryError(f"{spec}: expected a model of {', '.join(HUBS)}")
    return found[0].preparation(found[1], kwargs, which)
