"""Quantization while training: weights and activations on grids, by ranges that move or are learned with them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from deepcompression.errors import InvariantError, StructureError
from deepcompression.network import names
from deepcompression.network.channel_axis import channel_axis
from deepcompression.network.edits.apply import apply_all
from deepcompression.network.edits.quantize_values import Site
from deepcompression.network.parametrized import SOURCE
from deepcompression.network.parametrized import VALUES as AFTER_MASK
from deepcompression.network.state import density
from deepcompression.quantization import products
from deepcompression.quantization.inputs import Inputs, inputs_of
from deepcompression.quantization.products import Products
from deepcompression.quantization.ranges import misfit
from deepcompression.quantization.ranges.range import Range
from deepcompression.quantization.sites import measured
from deepcompression.quantization.trained_grid import TrainedGrid
from deepcompression.quantization.trained_inputs import TrainedInputs
from deepcompression.structure.constraints import Structure, constraint, of_order
from deepcompression.structure.grid import OnGrid
from deepcompression.structure.hold import held_by, held_state, hold_by
from deepcompression.training.frozen_norms import FrozenNorms
from deepcompression.training.method import ACTIVATION, VALUES, Account, Claim, Context, Method, Now

log = logging.getLogger(__name__)
FEWEST_BITS, MOST_BITS = 2, 16
Bits = int | Mapping[str, int]


@dataclass(frozen=True)
class Weights:
    """How weights are quantized.

    Args:
        bits: 2 to 16, of all prunable tensors or by name pattern.
        range: a word of ``ranges.RANGES``.
        per: one scale for a ``tensor``, or for each output ``channel``; vectors have one.
        scheme: ``symmetric``: integers from -(2^(bits-1) - 1) to 2^(bits-1) - 1; ``asymmetric``: 2^bits of them around
            a 0 that moves, for the ranges minmax and learned.
    """

    bits: Bits = 8
    range: str = "lsq"
    per: Literal["tensor", "channel"] = "tensor"
    scheme: Literal["symmetric", "asymmetric"] = "symmetric"


@dataclass(frozen=True)
class Activations:
    """How what goes into layers is quantized: from 0 to 2^bits - 1 where no sample was below 0.

    Args:
        bits: 2 to 16, of the first input of all such layers, or by the names of their weights.
        range: a word of ``ranges.RANGES``.
        scheme: of what is below 0 too: ``symmetric``: from -2^(bits-1) to 2^(bits-1) - 1; ``asymmetric``: 2^bits
            integers around a 0 that moves, for the ranges minmax and learned.
        samples: how many of the training split the first ranges are made from.
        penalty: times the squares of pact's levels is added to the loss.
    """

    bits: Bits = 8
    range: str = "lsq"
    scheme: Literal["symmetric", "asymmetric"] = "symmetric"
    samples: int = 512
    penalty: float = 1e-4


@dataclass(frozen=True)
class QuantizedWeights:
    """A tensor on its grid: the least and the greatest of its steps, and the part of its integers that are not 0."""

    name: str
    bits: int
    per: str
    steps: tuple[float, float]
    density: float
    range: str


@dataclass(eq=False)
class QuantizedTraining(Method):
    """Weights, and what goes into layers, are integers times a scale while the model trains.

    Rounding passes gradients straight through; scales follow what there is, or are learned with the weights. Zeros stay
    zero. In the end weights are on their grids, and activations have an edit ``quantize_values`` with its scale in the
    state_dict. BatchNorm stays a module of its own.

    Args:
        weights: how, or their bits; None leaves them alone. Tensors that are zero throughout are left free, with a
            warning.
        activations: how, or their bits; needs samples. None leaves them alone.
        freeze_bn: the fraction of the training from which BatchNorm is as in evaluation: it uses its running statistics
            and leaves them as they are. None: never.
    """

    name: ClassVar[str] = "quantize"
    weights: Weights | Bits | None = None
    activations: Activations | Bits | None = None
    freeze_bn: float | None = None
    _bits: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _axes: dict[str, int | None] = field(default_factory=dict, init=False, repr=False)
    _inputs: list[TrainedInputs] = field(default_factory=list, init=False, repr=False)
    _ranges: list[Range] = field(default_factory=list, init=False, repr=False)
    _steps: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _products: Products = field(default_factory=dict, init=False, repr=False)
    _left: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _frozen: FrozenNorms | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Bits alone stand for the rest's defaults."""
        self._of_weights = self.weights if isinstance(self.weights, Weights) else _but(Weights, self.weights)
        given = self.activations
        self._of_inputs = given if isinstance(given, Activations) else _but(Activations, given)

    def claims(self, model: nn.Module, structure: Structure) -> set[Claim]:
        """The values of each tensor, and each site."""
        weights, activations = self._of_weights, self._of_inputs
        claimed = {(name, VALUES) for name in _resolved(model, weights)}
        return claimed | {(str(site), ACTIVATION) for site in _inputs(model, activations).sites}

    def words(self, model: nn.Module) -> dict[str, tuple[str, ...]]:
        """What will be true of tensors.

        Args:
            model: untouched.

        Raises:
            StructureError: a tensor has no axis of channels.
        """
        axes = {name: self._axis(model, name) for name in _resolved(model, self._of_weights)}
        return {name: (_word(bits, axes[name]),) for name, bits in _resolved(model, self._of_weights).items()}

    def refuse_other(self, model: nn.Module, structure: Structure) -> None:
        """Raise StructureError where tensors have to keep other values than those on its grids.

        Args:
            model: untouched.
            structure: what is true of its tensors.

        Raises:
            StructureError: the first such tensor.
        """
        for name, (word,) in self.words(model).items():
            other = [one for one in of_order(structure.get(name, ()), SOURCE, AFTER_MASK) if one != word]
            if other:
                raise StructureError(f"{name}: is {other[0]} already, which {word} would undo; leave it out of weights")

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Puts grids over weights and before layers; what they train, without weight decay.

        Raises:
            StructureError: impossible bits, range or scheme; a tensor has other values to keep, or no axis of channels;
                a site is quantized already; there are no samples to start activations from, or the forward never comes
                by a site.
        """
        bits, inputs = _resolved(model, self._of_weights), _inputs(model, self._of_inputs)
        self._check(bits)
        self._axes = {name: self._axis(model, name) for name in bits}
        self.refuse_other(model, context.structure)
        kept = {name: self._kept(name, width, model, context.structure) for name, width in bits.items()}
        self._left = inputs.left
        self._inputs = self._measured(model, context, inputs.sites)  # before weights are rounded
        self._hold(model, bits, kept)
        for one in self._inputs:
            one.install(model)
        if self.freeze_bn is not None:
            self._frozen = FrozenNorms(model)
            if not self._frozen.count:
                log.warning(
                    "quantize: freeze_bn: the model has no BatchNorm with running statistics: none stands still"
                )
        self._ranges = [grid.range for grid in self._grids(model).values()] + [one.range for one in self._inputs]
        learned = [parameter for one in self._ranges for parameter in one.parameters()]
        return [{"params": learned, "weight_decay": 0.0}] if learned else []

    def before_step(self, model: nn.Module, now: Now) -> None:
        """From its part of the training on, BatchNorm stands still."""
        if self._frozen is not None and self.freeze_bn is not None:
            self._frozen.now = now.fraction >= self.freeze_bn

    def loss(self, loss: Tensor, model: nn.Module, batch: Any, outputs: Any) -> Tensor:
        """The loss with the squares of clipping levels."""
        found = [one for one in (one.range.penalty() for one in self._inputs) if one is not None]
        return loss + self._of_inputs.penalty * torch.stack(found).sum() if found and self._of_inputs else loss

    def after_step(self, model: nn.Module, now: Now) -> None:
        """Keeps sizes above zero."""
        for one in self._ranges:
            one.keep_sound()

    def figures(self, model: nn.Module) -> dict[str, float]:
        """Bits of a weight on average, and of a quantized activation."""
        sizes = {name: names.parameters(model)[name].numel() for name in self._bits}
        features = sum(one.features for one in self._inputs)
        found = {}
        if sizes:
            found["bits"] = sum(self._bits[name] * size for name, size in sizes.items()) / sum(sizes.values())
        if features:
            found["activation_bits"] = sum(one.bits * one.features for one in self._inputs) / features
        return found

    def close(self, model: nn.Module) -> None:
        """Takes what quantizes activations and freezes BatchNorm out of the model; remembers steps."""
        self._steps = {name: grid.range.scale().cpu() for name, grid in self._grids(model).items()}
        for one in self._inputs:
            one.remove(model)
        if self._frozen is not None:
            self._frozen.remove()

    def finish(self, model: nn.Module) -> Account:
        """Grids of weights; edits for activations, made.

        Raises:
            InvariantError: a tensor was rounded to zero throughout.
        """
        state = held_state(model, self._bits)
        for name, weight in state.items():
            if not bool(weight.any()):
                raise InvariantError(f"{name}: every weight was rounded to zero; give it more bits, or a lower lr")
        apply_all(model, [one.record() for one in self._inputs])
        for one in self._inputs:
            one.fill(model)
        return Account(
            {name: (_word(self._bits[name], self._axes[name]),) for name in state},
            [one.record() for one in self._inputs],
            {
                "grids": [self._told(name, weight) for name, weight in state.items()],
                "sites": [one.told() for one in self._inputs],
            },
            notes=self._notes(),
        )

    def _grids(self, model: nn.Module) -> dict[str, TrainedGrid]:
        """Its own: another one may quantize other tensors."""
        return {name: grid for name, (grid, _) in held_by(model, TrainedGrid).items() if name in self._bits}

    def _notes(self) -> list[str]:
        """Where another range stands in for the one that was asked for; which inputs are left as they are."""
        wanted = self._of_inputs.range if self._of_inputs else ""
        other = [one for one in self._inputs if one.word != wanted]
        told = [f"{one.sites[0]}: values below 0 come by, so {one.word} stands in for {wanted}" for one in other]
        told += [f"activations: {one}" for one in products.told(self._products)]
        return [*told, *(f"{name}: its input is left as it is: {why}" for name, why in self._left.items())]

    def _told(self, name: str, weight: Tensor) -> QuantizedWeights:
        steps, per = self._steps[name], "tensor" if self._axes[name] is None else "channel"
        ends = float(steps.min()), float(steps.max())
        word = self._of_weights.range if self._of_weights else ""
        return QuantizedWeights(name, self._bits[name], per, ends, density({name: weight}, [name]), word)

    def _check(self, bits: Mapping[str, int]) -> None:
        """Raises StructureError for keys that are impossible, or do not go together."""
        for name, width in bits.items():
            if isinstance(width, bool) or not isinstance(width, int) or not FEWEST_BITS <= width <= MOST_BITS:
                raise StructureError(f"{name}: bits {width} is impossible, expected {FEWEST_BITS} to {MOST_BITS}")
        for what, one in (("weights", self._of_weights), ("activations", self._of_inputs)):
            if one is not None and (why := misfit(what, one.range, one.scheme)):
                raise StructureError(f"quantize: {what}: {why}")
        if self.freeze_bn is not None and not 0 <= self.freeze_bn <= 1:
            raise StructureError(f"quantize: freeze_bn {self.freeze_bn} is impossible, expected a fraction from 0 to 1")

    def _axis(self, model: nn.Module, name: str) -> int | None:
        per_channel = self._of_weights is not None and self._of_weights.per == "channel"
        return channel_axis(model, name) if per_channel else None

    def _kept(self, name: str, bits: int, model: nn.Module, structure: Structure) -> Tensor | None:
        """The scales that a tensor has on such a grid already; None where it is on none."""
        word = _word(bits, self._axes[name])
        on_it = word in structure.get(name, ())
        grid = constraint(word).held(held_state(model, [name])[name]) if on_it else None
        return grid.scale if isinstance(grid, OnGrid) else None

    def _measured(self, model: nn.Module, context: Context, sites: Mapping[Site, int]) -> list[TrainedInputs]:
        """The inputs of layers, by what samples are like."""
        how = self._of_inputs
        if how is None or not sites:
            return []
        groups = measured(model, context, sites, how.samples, products=self._products)
        return [TrainedInputs(one.sites, one.bits, one.seen, how.range, how.scheme) for one in groups]

    def _hold(self, model: nn.Module, bits: Mapping[str, int], kept: Mapping[str, Tensor | None]) -> None:
        """Puts grids over the tensors that a scale can be made from."""
        how, self._bits = self._of_weights, {}
        empty = [name for name in bits if not bool(held_state(model, [name])[name].any())] if how is not None else []
        if empty:
            log.warning(
                "%s is zero throughout: there is no step to quantize it with, and it trains freely", " and ".join(empty)
            )
        for name, width in bits.items() if how is not None else ():
            if name in empty:
                continue
            self._bits[name] = width
            make = partial(
                TrainedGrid, bits=width, axis=self._axes[name], word=how.range, scheme=how.scheme, scale=kept[name]
            )
            hold_by(model, {name: make})


def _word(bits: int, axis: int | None) -> str:
    return f"grid({bits})" if axis is None else f"grid({bits}, {axis})"


def _but(kind: type[Any], bits: Bits | None) -> Any:
    return None if bits is None else kind(bits)


def _inputs(model: nn.Module, how: Activations | None) -> Inputs:
    return Inputs({}, {}) if how is None else inputs_of(model, how.bits)


def _resolved(model: nn.Module, how: Weights | None) -> dict[str, int]:
    return {} if how is None else names.resolve(model, names.table_of(how.bits))
