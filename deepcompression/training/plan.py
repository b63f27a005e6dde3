"""How a model is to train, how far it is, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deepcompression.training.device import Compute


@dataclass(frozen=True)
class Progress:
    """How far a training loop is; ``loss`` and ``metric`` are the last known ones."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    metric: float | None


@dataclass(frozen=True)
class Fit:
    """What a training loop did. The model has the state of ``best_epoch``."""

    history: list[dict[str, float]]
    best_epoch: int
    best_metric: float
    stopped: str


@dataclass(frozen=True)
class Plan:
    """How a model trains.

    ``optimizer`` is ``{factory, kwargs}``: the factory gets the parameters and the kwargs, such as lr. ``schedule`` is
    constant, cosine or linear (to zero, by step), ``{shape, start, power}`` where it falls from ``start`` on, or
    ``{factory, kwargs}`` of a torch scheduler (by epoch). ``warmup``
    counts epochs in which the rate rises linearly, not for a scheduler by factory. ``patience`` stops after so many
    epochs without a better validation metric; ``gradient_clip`` is the largest norm of the whole gradient;
    ``accumulate`` counts batches whose gradients make one step, by their mean; ``seed`` is that of batch order,
    augmentation, dropout and methods.
    """

    epochs: int
    optimizer: Mapping[str, Any]
    schedule: str | Mapping[str, Any] = "cosine"
    warmup: float = 0
    patience: int | None = None
    gradient_clip: float | None = None
    seed: int = 0
    compute: Compute = field(default_factory=Compute)
    accumulate: int = 1
