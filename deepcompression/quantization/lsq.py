"""Quantization while training: weights and activations on grids whose steps are learned (LSQ)."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from deepcompression.errors import InvariantError, StructureError
from deepcompression.network import names
from deepcompression.network.edits.apply import apply_all
from deepcompression.network.edits.quantize_values import Site, quantizers
from deepcompression.network.parametrized import SOURCE
from deepcompression.network.parametrized import VALUES as AFTER_MASK
from deepcompression.network.state import density
from deepcompression.quantization.sites import Group, measured
from deepcompression.quantization.steps import LearnedGrid
from deepcompression.structure.constraints import Structure, constraint, of_order
from deepcompression.structure.grid import OnGrid
from deepcompression.structure.hold import held_by, held_state, hold_by
from deepcompression.training.method import ACTIVATION, VALUES, Account, Claim, Context, Method, Now

log = logging.getLogger(__name__)
FEWEST_BITS, MOST_BITS = 2, 8
LEAST = 2.0**-10  # of its first value: what a step that learns cannot fall below


@dataclass(frozen=True)
class QuantizedWeights:
    """A tensor on its grid: the least and the greatest of its steps, and the part of its integers that are not 0."""

    name: str
    bits: int
    per: str
    steps: tuple[float, float]
    density: float


@dataclass(eq=False)
class LearnedSteps(Method):
    """Weights, and what goes into layers, are integers times a step while the model trains; steps are learned with it.

    Rounding passes gradients straight through. Integers of weights are from -(2^(bits-1) - 1) to 2^(bits-1) - 1, zeros
    stay zero; those of activations from 0 to 2^bits - 1 where no sample was below 0, else from -2^(bits-1) on. In the
    end weights are on their grids, and activations have an edit ``quantize_values`` with its scale in the state_dict.

    Args:
        weights: bits, 2 to 8, of all prunable tensors or by name pattern; None leaves weights alone. Tensors that are
            zero throughout are left free, with a warning.
        activations: bits of the input of all such layers, or by name pattern; needs samples. None leaves them alone.
        per: one step for a ``tensor``, or for each ``channel`` (dimension 0); vectors have one.
        samples: about how many of the training split the first steps of activations are made from.

    Esser et al. (2019), "Learned step size quantization", arXiv 1902.08153.
    """

    name: ClassVar[str] = "quantize"
    weights: int | Mapping[str, int] | None = None
    activations: int | Mapping[str, int] | None = None
    per: Literal["tensor", "channel"] = "tensor"
    samples: int = 512
    _bits: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _groups: list[Group] = field(default_factory=list, init=False, repr=False)
    _steps: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def claims(self, model: nn.Module, structure: Structure) -> set[Claim]:
        """The values of each tensor, and each site."""
        weights = {(name, VALUES) for name in _resolved(model, self.weights)}
        return weights | {(str(site), ACTIVATION) for site in _sites(model, self.activations)}

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Puts grids over weights and before layers; the steps, without weight decay.

        Raises:
            StructureError: impossible bits; a tensor has other values to keep, a site is quantized already; there are
                no samples to start activations from, or the forward never comes by a site.
        """
        bits, sites = _resolved(model, self.weights), _sites(model, self.activations)
        _check_bits({**bits, **{str(site): width for site, width in sites.items()}})
        kept = {name: self._kept(name, width, model, context.structure) for name, width in bits.items()}
        _refuse_quantized(model, sites)
        groups = measured(model, context, sites, self.samples) if sites else []  # before weights are rounded
        self._bits = self._learning(model, bits)
        for name, width in self._bits.items():
            axis = self._axis(names.parameters(model)[name])
            hold_by(model, {name: partial(LearnedGrid, bits=width, axis=axis, start=kept[name])})
        self._groups = groups
        for group in groups:
            group.install(model)
        steps = [grid.step for grid, _ in held_by(model, LearnedGrid).values()] + [group.step for group in groups]
        return [{"params": [step.times for step in steps], "weight_decay": 0.0}] if steps else []

    def after_step(self, model: nn.Module, now: Now) -> None:
        """Keeps steps above zero."""
        with torch.no_grad():
            for grid, _ in held_by(model, LearnedGrid).values():
                grid.step.times.clamp_(min=LEAST)
            for group in self._groups:
                group.step.times.clamp_(min=LEAST)

    def figures(self, model: nn.Module) -> dict[str, float]:
        """Bits of a weight on average, and of a quantized activation."""
        sizes = {name: names.parameters(model)[name].numel() for name in self._bits}
        features = sum(group.features for group in self._groups)
        found = {}
        if sizes:
            found["bits"] = sum(self._bits[name] * size for name, size in sizes.items()) / sum(sizes.values())
        if features:
            found["activation_bits"] = sum(group.bits * group.features for group in self._groups) / features
        return found

    def close(self, model: nn.Module) -> None:
        """Takes what quantizes activations out of the model; remembers steps."""
        self._steps = {name: grid.step().detach().cpu() for name, (grid, _) in held_by(model, LearnedGrid).items()}
        for group in self._groups:
            group.remove(model)

    def finish(self, model: nn.Module) -> Account:
        """Grids of weights; edits for activations, made.

        Raises:
            InvariantError: a tensor was rounded to zero throughout.
        """
        state = held_state(model, self._bits)
        for name, weight in state.items():
            if not bool(weight.any()):
                raise InvariantError(f"{name}: every weight was rounded to zero; give it more bits, or a lower lr")
        apply_all(model, [group.record() for group in self._groups])
        for group in self._groups:
            group.fill(model)
        return Account(
            {name: (self._word(name, weight),) for name, weight in state.items()},
            [group.record() for group in self._groups],
            {
                "grids": [self._told(name, weight) for name, weight in state.items()],
                "sites": [group.told() for group in self._groups],
            },
        )

    def _told(self, name: str, weight: Tensor) -> QuantizedWeights:
        steps = self._steps[name]
        per = "tensor" if self._axis(weight) is None else "channel"
        return QuantizedWeights(
            name, self._bits[name], per, (float(steps.min()), float(steps.max())), density({name: weight}, [name])
        )

    def _axis(self, weight: Tensor) -> int | None:
        return 0 if self.per == "channel" and weight.ndim > 1 else None

    def _word(self, name: str, weight: Tensor, bits: int = 0) -> str:
        axis = self._axis(weight)
        width = bits or self._bits[name]
        return f"grid({width})" if axis is None else f"grid({width}, {axis})"

    def _kept(self, name: str, bits: int, model: nn.Module, structure: Structure) -> Tensor | None:
        """The scales that a tensor has on such a grid already; None where it is on none.

        Raises:
            StructureError: it has to keep other values.
        """
        weight, word = held_state(model, [name])[name], self._word(name, names.parameters(model)[name], bits)
        words = structure.get(name, ())
        other = [one for one in of_order(words, SOURCE, AFTER_MASK) if one != word]
        if other:
            raise StructureError(f"{name}: is {other[0]} already, which {word} would undo; leave it out of weights")
        grid = constraint(word).held(weight) if word in words else None
        return grid.scale if isinstance(grid, OnGrid) else None

    def _learning(self, model: nn.Module, bits: Mapping[str, int]) -> dict[str, int]:
        """The tensors that a step can be made from."""
        found = {name: width for name, width in bits.items() if bool(held_state(model, [name])[name].any())}
        for name in bits.keys() - found.keys():
            log.warning("%s is zero throughout: there is no step to quantize it with, and it trains freely", name)
        return found


def _resolved(model: nn.Module, bits: int | Mapping[str, int] | None) -> dict[str, int]:
    return {} if bits is None else names.resolve(model, names.table_of(bits))


def _sites(model: nn.Module, bits: int | Mapping[str, int] | None) -> dict[Site, int]:
    """The first input of each layer whose weight is meant, and its bits.

    Raises:
        StructureError: a tensor is named that is no weight of a layer.
    """
    first, found = names.first_names(model), {}
    layers: dict[str, list[str]] = defaultdict(list)
    for prefix, module in model.named_modules():
        if names.is_layer(module) and (weight := names.join(prefix, "weight")) in first:
            layers[first[weight]].append(prefix)
    for name, width in _resolved(model, bits).items():
        if name not in layers:
            raise StructureError(f"{name}: is no weight of a Linear or Conv layer, whose input could be quantized")
        found.update({Site(prefix, "input", 0): width for prefix in layers[name]})
    return found


def _check_bits(bits: Mapping[str, int]) -> None:
    for name, width in bits.items():
        if isinstance(width, bool) or not isinstance(width, int) or not FEWEST_BITS <= width <= MOST_BITS:
            raise StructureError(f"{name}: bits {width} is impossible, expected {FEWEST_BITS} to {MOST_BITS}")


def _refuse_quantized(model: nn.Module, sites: Mapping[Site, int]) -> None:
    for site in sites:
        if any(one.site == site for one in quantizers(model.get_submodule(site.module))):
            raise StructureError(f"{site}: is quantized already; leave it out of activations")
