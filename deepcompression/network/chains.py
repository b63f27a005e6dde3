"""Layers whose units can be removed: what lies between one and the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

WHOLE = "the whole model"  # stands for a layer's name where the model cannot be read


@dataclass(frozen=True)
class Step:
    """One operation between two layers.

    ``call``: what it makes of units that are constant over samples and places, (1, units, 1, ...) to the same shape.
    ``borders``: whether a constant that is not 0 is another one at the borders, as where a pool averages padding.
    """

    call: Callable[[Tensor], Tensor]
    borders: bool = False


@dataclass(frozen=True)
class Chain:
    """Two layers and what lies between them; unit i is row i of the producer and a block of the consumer's columns.

    ``rows``: tensors with a place a unit; ``through``: the weights of depthwise convolutions among them.
    """

    producer: str
    consumer: str
    units: int
    dimensions: int
    rows: tuple[str, ...]
    columns: str
    bias: str | None
    padded: bool
    steps: tuple[Step, ...]
    through: tuple[str, ...] = ()

    @property
    def weight(self) -> str:
        """The producer's weight, (units, ...); ``rows`` has its name first, ``columns`` is the consumer's weight."""
        return self.rows[0]

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights of both layers, and of those between."""
        return self.weight, *self.through, self.columns

    @property
    def tensors(self) -> tuple[str, ...]:
        """All that a change of units touches."""
        return (*self.rows, self.columns, *([self.bias] if self.bias else []))

    def constants(self, state: Mapping[str, Tensor]) -> Tensor:
        """What reaches the consumer from each unit one of whose rows is zero, (units,) float64; NaN where it varies."""
        weight = state[self.weight]
        value = state.get(f"{self.producer}.bias", weight.new_zeros(self.units))
        value = value.double().reshape(1, self.units, *[1] * self.dimensions)
        steady = torch.ones(self.units, dtype=torch.bool, device=weight.device)
        for step in self.steps:
            if step.borders:
                steady &= value.reshape(-1) == 0
            value = step.call(value.clone())
        value = value.reshape(-1)
        if self.padded:
            steady &= value == 0
        return value.masked_fill(~steady | ~torch.isfinite(value), torch.nan)
