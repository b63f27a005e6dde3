"""Quantization while training as a method of a training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from tasks.execution.patterns import SELECTED
from tasks.execution.settings import ByName, MethodSettings, Strict

if TYPE_CHECKING:
    from deepcompression.training.method import Method

GridBits = Annotated[int, Field(ge=2, le=8)]


class Weights(Strict):
    """Grids of weights, symmetric, 0 in the middle."""

    bits: Annotated[GridBits | dict[str, GridBits], ByName, SELECTED] = 8
    per: Literal["tensor", "channel"] = Field("tensor", description="one step for a tensor, or for each output channel")
    range: Literal["lsq"] = Field("lsq", description="how a grid's step is found: lsq learns it")


class Activations(Strict):
    """Grids of what goes into layers: unsigned where nothing is below 0."""

    bits: Annotated[GridBits | dict[str, GridBits], ByName, SELECTED] = 8
    samples: int = Field(512, ge=1, description="of the training split, from which the first steps are made")
    range: Literal["lsq"] = Field("lsq", description="how a grid's step is found: lsq learns it")


class Settings(MethodSettings):
    """Weights and activations are integers times a step, which is learned (Esser et al. 2019)."""

    weights: Weights | None = None
    activations: Activations | None = None

    @model_validator(mode="after")
    def _something(self) -> Settings:
        if not (self.weights or self.activations):
            raise ValueError("expected weights, activations, or both, such as weights: {bits: 4}")
        return self

    def edits(self) -> Mapping[str, str]:
        """Activations are rounded by what is put before layers."""
        return {"quantize_values": "quantize.activations"} if self.activations else {}

    def make(self) -> Method:
        """The method."""
        from deepcompression.quantization.lsq import LearnedSteps

        weights, activations = self.weights, self.activations
        return LearnedSteps(
            weights.bits if weights else None,
            activations.bits if activations else None,
            weights.per if weights else "tensor",
            activations.samples if activations else 512,
        )
