"""Quantization while training as a method of a training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from deepcompression.quantization.ranges import RANGES, misfit
from tasks.execution.allocated import ALLOCATED
from tasks.execution.patterns import SELECTED
from tasks.execution.settings import Allocated, ByName, MethodSettings, Strict, table_of

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.quantization.in_training import QuantizedTraining
    from deepcompression.structure.constraints import Structure

GridBits = Annotated[int, Field(ge=2, le=16)]
Scheme = Literal["symmetric", "asymmetric"]
OfWeights = Literal[tuple(word for word, one in RANGES.items() if one.weights)]
OfActivations = Literal[tuple(RANGES)]
PENALTY = 1e-4


class Weights(Strict):
    """Grids of weights, on which 0 is."""

    bits: Annotated[GridBits | dict[str, GridBits] | Allocated, ByName, SELECTED] = 8
    per: Literal["tensor", "channel"] = Field(
        "tensor", description="one scale for a tensor, or for each output channel"
    )
    scheme: Scheme = Field("symmetric", description="asymmetric: 0 is where it wastes least; for minmax and learned")
    range: OfWeights = Field(  # type: ignore[valid-type]
        "lsq", description="minmax holds what there is; the scale (lsq, learned) or a power of two (tqt) is learned"
    )

    @model_validator(mode="after")
    def _fitting(self) -> Weights:
        return _checked(self, "weights")


class Activations(Strict):
    """Grids of what goes into layers: unsigned where nothing is below 0."""

    bits: Annotated[GridBits | dict[str, GridBits] | Allocated, ByName, SELECTED] = 8
    scheme: Scheme = Field("symmetric", description="of what is below 0 too; asymmetric is for minmax and learned")
    samples: int = Field(512, ge=1, description="drawn from the training split, from which the first ranges are made")
    range: OfActivations = Field(  # type: ignore[valid-type]
        "lsq",
        description="minmax: moving averages; lsq, tqt, learned as of weights; pact: a learned level at which values "
        "are cut, on both sides with pact2, which stands in for it where values are below 0",
    )
    penalty: float | None = Field(None, ge=0, description=f"of pact: times the squared levels; default {PENALTY:g}")

    @model_validator(mode="after")
    def _fitting(self) -> Activations:
        if self.penalty is not None and not self.range.startswith("pact"):
            raise ValueError(f"penalty is of range pact and pact2, not of {self.range}")
        return _checked(self, "activations")


Part = TypeVar("Part", Weights, Activations)


def _checked(part: Part, what: str) -> Part:
    if why := misfit(what, part.range, part.scheme):
        raise ValueError(why)
    return part


class Settings(MethodSettings):
    """Weights and activations are integers times a scale, while the model trains and after it."""

    weights: Weights | None = None
    activations: Activations | None = None
    freeze_bn: float | None = Field(
        None, ge=0, le=1, description="the fraction of the training from which BatchNorm's statistics stand still"
    )

    @model_validator(mode="after")
    def _something(self) -> Settings:
        if not (self.weights or self.activations):
            raise ValueError("expected weights, activations, or both, such as weights: {bits: 4}")
        return self

    def widths(self) -> list[int]:
        """All bits that are asked for, as far as they are known."""
        tables = [table_of(one.bits) for one in (self.weights, self.activations) if one is not None]
        return [bits for table in tables for bits in table.values() if bits != ALLOCATED]

    def edits(self) -> Mapping[str, str]:
        """Activations are rounded by what is put before layers."""
        return {"quantize_values": "quantize.activations"} if self.activations else {}

    def sites(self, model: nn.Module) -> Collection[str]:
        """Inputs of the layers that are meant."""
        from deepcompression.quantization.inputs import inputs_of

        return [str(site) for site in inputs_of(model, self.activations.bits).sites] if self.activations else []

    def follows(self, model: nn.Module, structure: Structure) -> None:
        """Tensors have no other values to keep."""
        self.make().refuse_other(model, structure)

    def leaves(self, model: nn.Module) -> Structure:
        """Grids."""
        return self.make().words(model)

    def make(self) -> QuantizedTraining:
        """The method."""
        from deepcompression.quantization import in_training

        weights, activations = self.weights, self.activations
        penalty = PENALTY if activations is None or activations.penalty is None else activations.penalty
        return in_training.QuantizedTraining(
            in_training.Weights(**dict(weights)) if weights else None,
            in_training.Activations(**{**dict(activations), "penalty": penalty}) if activations else None,
            self.freeze_bn,
        )
