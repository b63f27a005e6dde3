"""Binarization as a method of a training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from deepcompression.quantization.binary import ACTIVATIONS, MOST_BITS, WEIGHTS
from tasks.execution.patterns import NAMED, SELECTED
from tasks.execution.settings import ByName, MethodSettings, Strict, TensorName, table_of

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.quantization.binarize import Binarize
    from deepcompression.quantization.binary.asked import Phases
    from deepcompression.structure.constraints import Structure
    from tasks.execution.run import Run

FewBits = Annotated[int, Field(ge=1, le=max(MOST_BITS.values()))]
ByBits = Annotated[FewBits | dict[str, FewBits], ByName, SELECTED]
OfWeights = Literal[tuple(WEIGHTS)]
OfActivations = Literal[tuple(ACTIVATIONS)]


class Weights(Strict):
    """Weights of two values, or few."""

    kind: OfWeights = Field(  # type: ignore[valid-type]
        "xnor", description="signs times the mean magnitude of each filter (xnor) or of the layer (dorefa)"
    )
    bits: ByBits = Field(1, description="dorefa takes up to 8: 2^bits values from -1 to 1")

    @model_validator(mode="after")
    def _fitting(self) -> Weights:
        return _checked(self)


class Activations(Strict):
    """What goes into layers, of two values or few."""

    kind: OfActivations = Field(  # type: ignore[valid-type]
        "sign",
        description="-1 or 1; from 0 to 1 (dorefa); or a learned scale above a learned threshold of each channel",
    )
    bits: ByBits = Field(1, description="dorefa takes up to 8: 2^bits values from 0 to 1")
    samples: int = Field(512, ge=1, description="drawn from the training split, that are looked at before")

    @model_validator(mode="after")
    def _fitting(self) -> Activations:
        return _checked(self)


class Gradients(Strict):
    """Gradients of the outputs of binarized layers (DoReFa-Net)."""

    bits: int = Field(6, ge=1, le=16)


Part = TypeVar("Part", Weights, Activations)


def _checked(part: Part) -> Part:
    most = MOST_BITS[part.kind]
    for width in table_of(part.bits).values():
        if width > most:
            raise ValueError(f"bits {width} is impossible for {part.kind}, expected {most}; dorefa takes up to 8")
    return part


class Binary(Strict):
    """What is binarized, and how."""

    weights: Weights | None = None
    activations: Activations | None = None
    gradients: Gradients | None = Field(None, description="of few bits too, while training")
    keep: Annotated[list[TensorName] | None, NAMED] = Field(
        None, description="layers that stay float, by name or pattern; default: the first and the last"
    )

    @model_validator(mode="after")
    def _something(self) -> Binary:
        if not (self.weights or self.activations):
            raise ValueError("expected weights, activations, or both, such as weights: {kind: xnor}")
        return self

    def fits(self, run: Run, model: nn.Module) -> None:
        """There are layers left to binarize, and something is left of what goes into them."""
        from tasks.execution.samples import outputs

        method = self.method()
        method.claims(model, {})
        if self.activations is not None:
            method.refuse_useless(model, lambda one: _tried(run, one, outputs))

    def sites(self, model: nn.Module) -> Collection[str]:
        """Inputs of the layers that are meant."""
        return [target for target, role in self.method().claims(model, {}) if role == "activation"]

    def follows(self, model: nn.Module, structure: Structure) -> None:
        """Binary weights go with what earlier stages make true."""
        self.method().words(model, structure)

    def leaves(self, model: nn.Module) -> Structure:
        """Binary weights."""
        return {name: (word,) for name, word in self.method().words(model, {}).items()}

    def kinds_of_edits(self, who: str) -> Mapping[str, str]:
        """By what binarizes activations: two values, or a grid of more."""
        if self.activations is None:
            return {}
        widths = table_of(self.activations.bits).values()
        made = {"binary": any(width == 1 for width in widths), "quantize_values": any(width > 1 for width in widths)}
        return {kind: f"{who}.activations" for kind, is_made in made.items() if is_made}

    def method(self, phases: Phases | None = None) -> Binarize:
        """The library's method; all begins at once where no phases are said."""
        from deepcompression.quantization import binarize as library
        from deepcompression.quantization.binary import asked

        weights, activations = self.weights, self.activations
        return library.Binarize(
            asked.Weights(weights.kind, weights.bits) if weights else None,
            asked.Activations(activations.kind, activations.bits, activations.samples) if activations else None,
            self.gradients.bits if self.gradients else None,
            self.keep,
            phases or asked.Phases(),
        )


def _tried(run: Run, model: nn.Module, outputs: Callable[[Run, nn.Module], object]) -> None:
    """Runs a model on samples; where it fails, the trial of the recipe's parts says so, and which."""
    with suppress(Exception):
        outputs(run, model)


class Settings(Binary, MethodSettings):
    """Weights and activations take two values, or few (Rastegari et al. 2016, Zhou et al. 2016)."""

    def edits(self) -> Mapping[str, str]:
        """Activations are changed by what is put before layers."""
        return self.kinds_of_edits("binarize")

    def make(self) -> Binarize:
        """The method."""
        return self.method()
