"""Binarization in four phases: float, activations, weights too, and a falling rate without decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from tasks.execution.bench import Bench, Product, trained
from tasks.execution.settings import Factory, Stage, Strict, Training
from tasks.methods.binarize import Activations as OfActivations
from tasks.methods.binarize import Binary
from tasks.methods.binarize import Weights as OfWeights

if TYPE_CHECKING:
    from deepcompression.quantization.binarize import Binarize


class Phases(Strict):
    """The fractions of the training at which each begins; float until the first."""

    activations: float = Field(0.11, ge=0, lt=1, description="activations are binary")
    weights: float = Field(0.33, ge=0, lt=1, description="weights are binary too")
    decay: float = Field(0.67, ge=0, lt=1, description="the rate falls to zero, weight decay is 0")

    @model_validator(mode="after")
    def _in_turn(self) -> Phases:
        if not self.activations <= self.weights <= self.decay:
            raise ValueError("expected activations, weights and decay to begin in this order")
        return self


class Settings(Binary, Training, Stage):
    """Binary weights and activations (XNOR-Net, DoReFa-Net, NNCF's thresholds), in the four phases of NNCF."""

    stage: Literal["binarize"]
    epochs: int = Field(30, ge=1)
    lr: float = Field(1e-3, gt=0)
    schedule: Literal["constant", "cosine", "linear"] | Factory = Field(
        "constant", description="of the rate, which the last phase's fall is a factor of"
    )
    weights: OfWeights | None = OfWeights()
    activations: OfActivations | None = OfActivations()
    phases: Phases = Phases()
    power: float = Field(2.0, gt=0, description="of the polynomial by which the rate falls in the last phase")

    @model_validator(mode="after")
    def _by_shape(self) -> Settings:
        if isinstance(self.schedule, Factory):
            raise ValueError("schedule: expected constant, cosine or linear: the fall of the last phase is part of it")
        return self

    def plain_schedule(self) -> dict[str, Any]:
        """A shape, and its fall in the last phase."""
        return {"shape": self.schedule, "start": self.phases.decay, "power": self.power}

    def edits(self) -> Mapping[str, str]:
        """Activations are changed by what is put before layers."""
        return self.kinds_of_edits("binarize")

    def made(self) -> Binarize:
        """The method, with its phases."""
        from deepcompression.quantization.binary import asked

        phases = self.phases
        return self.method(asked.Phases(phases.activations, phases.weights, phases.decay))


def work(bench: Bench, settings: Settings) -> Product:
    """Weights and what goes into layers take two values, in four phases."""
    return trained(bench, settings, [settings.made()])
