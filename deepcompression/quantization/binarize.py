"""Binarization while training: weights and what goes into layers take two values, or few; in four stages or at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deepcompression.errors import InvariantError, StructureError, ValuesError
from deepcompression.network.edits.apply import apply_all
from deepcompression.network.edits.quantize_values import Site
from deepcompression.network.parametrized import MASK
from deepcompression.network.state import density
from deepcompression.network.trace import resting
from deepcompression.network.watching import watched
from deepcompression.quantization import binary
from deepcompression.quantization.binary.asked import Activations, Phases, Weights
from deepcompression.quantization.binary.dorefa_gradients import QuantizedGradient
from deepcompression.quantization.binary.inputs import OWN, BinaryInput, Training
from deepcompression.quantization.binary.latent import LIMIT, Latent
from deepcompression.quantization.binary.layers import Chosen, chosen, sites_of
from deepcompression.quantization.binary.planned import planned
from deepcompression.quantization.binary.told import BinarizedInput, BinarizedWeights
from deepcompression.quantization.sites import Seen, measured
from deepcompression.structure.constraints import Structure, of_order
from deepcompression.structure.hold import held_by, held_state, hold_by
from deepcompression.training.method import ACTIVATION, SPARSITY, UNITS, VALUES, Account, Claim, Context, Method, Now

log = logging.getLogger(__name__)
MOST_GRADIENT_BITS = 16
FLOAT_BITS = 32


@dataclass(eq=False)
class Binarize(Method):
    """Weights and what goes into layers take few values, two most of all, while the model trains.

    Gradients reach latent weights, which stay within -1 and 1; 0 counts as positive, but pruned weights stay 0. In the
    end weights are in their values, and activations have an edit ``binary`` or ``quantize_values``.

    Args:
        weights: how; None leaves them alone. Tensors that are zero throughout are left free, with a warning.
        activations: how; needs samples. None leaves them alone.
        gradients: bits of the gradients of binarized layers' outputs while training; None leaves them alone.
        keep: names or patterns of weights whose layers stay float; None: the first and the last layer, in the model's
            order, unless bits name them.
        phases: when each begins; at once by default.

    Rastegari et al. (2016), arXiv 1603.05279; Zhou et al. (2016), arXiv 1606.06160.
    """

    name: ClassVar[str] = "binarize"
    weights: Weights | None = field(default_factory=Weights)
    activations: Activations | None = None
    gradients: int | None = None
    keep: Sequence[str] | None = None
    phases: Phases = field(default_factory=Phases)
    _weights: dict[str, int] = field(default_factory=dict, init=False, repr=False)
    _inputs: dict[Site, BinaryInput] = field(default_factory=dict, init=False, repr=False)
    _left: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _words: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _gradient: QuantizedGradient | None = field(default=None, init=False, repr=False)
    _handles: list[RemovableHandle] = field(default_factory=list, init=False, repr=False)
    _ended: bool = field(default=False, init=False, repr=False)

    @property
    def settled(self) -> float:
        """From where on all is binary."""
        return max(self._starts())

    def claims(self, model: nn.Module, structure: Structure) -> set[Claim]:
        """The values of each tensor, and each site."""
        self._check()
        claimed = {(name, VALUES) for name in self._of_weights(model).bits}
        return claimed | {(str(site), ACTIVATION) for site in self._sites(model)[0]}

    def words(self, model: nn.Module, structure: Structure) -> dict[str, str]:
        """What will be true of each tensor, where none of its weights are pruned in the same training.

        Raises:
            StructureError: as ``attach``, for what is known without samples.
        """
        bits = self._of_weights(model).bits
        zeros = {name: bool(of_order(structure.get(name, ()), MASK)) for name in bits}
        makes = planned(model, self.weights, bits, structure, zeros)
        return {name: make(torch.zeros(())).word for name, make in makes.items()}

    def refuse_useless(self, model: nn.Module, run: Callable[[nn.Module], object]) -> None:
        """Raise StructureError where nothing would be left of what goes into a layer, as far as a model tells.

        Args:
            model: untouched; untrained as well, for what a ReLU leaves is not below 0 in any case.
            run: calls its argument on some samples.

        Raises:
            StructureError: the first such site.
        """
        sites, how = self._sites(model)[0], self.activations
        seen: dict[Site, Seen] = {}

        def see(site: Site, value: Tensor) -> None:
            seen.setdefault(site, Seen(value.device, 1)).add(value)

        with resting(model), torch.no_grad(), watched(model, sites, see):
            run(model)
        for site in seen:
            assert how is not None
            made = binary.inputs_of(how.kind)(sites[site], model.get_submodule(site.module))
            if why := made.useless(seen[site]):
                raise ValuesError(f"{site}: {why}")

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Puts latent weights behind binary ones, and what binarizes before layers; what that trains, without decay.

        Raises:
            StructureError: impossible kinds, bits or phases; a tensor has other values to keep, a site is quantized
                already; there are no samples to look at, or nothing would be left of them.
        """
        self._check()
        weights, (sites, self._left) = self._of_weights(model), self._sites(model)
        zeros = {name: self._zeros(name, context) for name in weights.bits}
        kinds = planned(model, self.weights, weights.bits, context.structure, zeros)
        self._put_before(model, context, sites)
        empty = [name for name in kinds if not bool(held_state(model, [name])[name].any())]
        if empty:
            told = "zero throughout, without a scale to binarize with: %s; these train freely"
            log.warning(told, ", ".join(empty))
        for name, make in kinds.items():
            if name not in empty:
                hold_by(model, {name: make})
                self._weights[name] = weights.bits[name]
        if self.gradients is not None:
            self._watch_gradients(model, sites)
        learned = [parameter for one in self._inputs.values() for parameter in one.parameters()]
        return [{"params": learned, "weight_decay": 0.0}] if learned else []

    def before_step(self, model: nn.Module, now: Now) -> None:
        """What begins in this step; near the end nothing decays any more."""
        done = (now.step + 1) / now.steps  # a step is of the phase in which it ends
        self._set(model, done > self.phases.activations, done > self.phases.weights)
        self._ended = done > self.settled
        if now.optimizer is not None and done > self.phases.decay:
            for group in now.optimizer.param_groups:
                group["weight_decay"] = 0.0

    def after_step(self, model: nn.Module, now: Now) -> None:
        """Keeps latent weights within -1 and 1."""
        with torch.no_grad():
            for latent, behind in held_by(model, Latent).values():
                if latent.active:
                    behind.clamp_(-LIMIT, LIMIT)

    def figures(self, model: nn.Module) -> dict[str, float]:
        """Bits of a binarized layer's weight on average, and of what goes into such layers, as it is now."""
        sizes = {name: (one.bits if one.active else FLOAT_BITS, behind.numel()) for name, (one, behind) in
                 held_by(model, Latent).items()}  # fmt: skip
        inputs = [one.bits if one.active else FLOAT_BITS for one in self._inputs.values()]
        found = {}
        if sizes:
            found["bits"] = sum(bits * size for bits, size in sizes.values()) / sum(size for _, size in sizes.values())
        if inputs:
            found["activation_bits"] = sum(inputs) / len(inputs)
        return found

    def close(self, model: nn.Module) -> None:
        """All is binary from here on; takes what stands before layers out of the model."""
        self._set(model, True, True)
        self._words = {name: latent.word for name, (latent, _) in held_by(model, Latent).items()}
        while self._handles:
            self._handles.pop().remove()
        for site in self._inputs:
            model.get_submodule(site.module)._modules.pop(site.tensor(OWN), None)

    def finish(self, model: nn.Module) -> Account:
        """What is true of weights; edits for activations, made.

        Raises:
            InvariantError: training ended before an input had a scale.
        """
        if not self._ended:
            log.warning("binarize: training ended before all was binary: what is so now was never trained so")
        records = [one.record(site) for site, one in self._inputs.items()]
        apply_all(model, records)
        for site, one in self._inputs.items():
            _fill(model, site, one)
        state = held_state(model, self._words)
        report = {
            "weights": [self._told(name, weight) for name, weight in state.items()],
            "inputs": [self._told_input(site, one) for site, one in self._inputs.items()],
        }
        words = {name: (word,) for name, word in self._words.items()}
        return Account(words, records, report, notes=self._notes(), left=self._reasons(model))

    def state_dict(self) -> dict[str, Any]:
        """Whether all was binary: a training that was killed behind its last step takes none any more."""
        return {"ended": self._ended}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what ``state_dict`` gave."""
        self._ended = bool(state["ended"])

    def _check(self) -> None:
        """Raises StructureError for keys that are impossible, or do not go together."""
        if self.weights is None and self.activations is None:
            raise StructureError("binarize: expected weights, activations, or both")
        starts = self.phases
        if not 0 <= starts.activations <= 1 or not 0 <= starts.weights <= 1 or not 0 <= starts.decay <= 1:
            raise StructureError(f"binarize: {starts} is impossible; expected fractions from 0 to 1")
        if self.settled >= 1:
            raise StructureError("binarize: a phase begins at 1, when the training ends; let it begin before")
        bits = self.gradients
        if bits is not None and not 1 <= bits <= MOST_GRADIENT_BITS:
            raise StructureError(f"binarize: gradients {bits} is impossible, expected 1 to {MOST_GRADIENT_BITS} bits")

    def _starts(self) -> list[float]:
        phases = [(self.weights, self.phases.weights), (self.activations, self.phases.activations)]
        return [start for what, start in phases if what is not None]

    def _of_weights(self, model: nn.Module) -> Chosen:
        return _chosen(model, self.weights, self.keep, "weights", binary.WEIGHTS)

    def _sites(self, model: nn.Module) -> tuple[dict[Site, int], dict[str, str]]:
        layers = _chosen(model, self.activations, self.keep, "activations", binary.ACTIVATIONS)
        return sites_of(model, layers.bits)

    def _zeros(self, name: str, context: Context) -> bool:
        """Whether weights of a tensor are pruned, before or in this training."""
        pruned = any((name, role) in context.claimed for role in (SPARSITY, UNITS))
        return pruned or bool(of_order(context.structure.get(name, ()), MASK))

    def _put_before(self, model: nn.Module, context: Context, sites: Mapping[Site, int]) -> None:
        how = self.activations
        if how is None or not sites:
            return
        found = measured(model, context, sites, how.samples, "binarize: activations", "name its layer in keep")
        seen = {site: one.seen for one in found for site in one.sites}
        for site, bits in sites.items():
            layer = model.get_submodule(site.module)
            made = binary.inputs_of(how.kind)(bits, layer)
            if why := made.useless(seen[site]):
                raise ValuesError(f"{site}: {why}")
            self._inputs[site] = made.to(seen[site].device)
        for site, one in self._inputs.items():
            layer = model.get_submodule(site.module)
            layer.add_module(site.tensor(OWN), one)
            self._handles.append(layer.register_forward_pre_hook(Training(site)))

    def _watch_gradients(self, model: nn.Module, sites: Mapping[Site, int]) -> None:
        """Gradients of the outputs of all layers that are binarized, in weights or in inputs."""
        assert self.gradients is not None
        self._gradient = QuantizedGradient(self.gradients)
        layers = {name.rpartition(".")[0] for name in self._weights} | {site.module for site in sites}
        for name in sorted(layers):
            self._handles.append(model.get_submodule(name).register_forward_hook(self._gradient))

    def _set(self, model: nn.Module, activations: bool, weights: bool) -> None:
        for one in self._inputs.values():
            one.active = activations
        for latent, _ in held_by(model, Latent).values():
            latent.active = weights
        if self._gradient is not None:
            self._gradient.active = weights if self.weights else activations

    def _told(self, name: str, weight: Tensor) -> BinarizedWeights:
        kind = self.weights.kind if self.weights else ""
        most = weight.abs().flatten(1).amax(1)  # of each place of the first axis
        ends = float(most.min()), float(most.max())
        above = float((weight > 0).float().mean())
        return BinarizedWeights(name, kind, self._weights[name], ends, density({name: weight}, [name]), above)

    def _told_input(self, site: Site, one: BinaryInput) -> BinarizedInput:
        kind = self.activations.kind if self.activations else ""
        largest = float(one.tensors().get("scale", torch.ones(()))) * (2**one.bits - 1)
        return BinarizedInput(str(site), kind, one.bits, largest)

    def _reasons(self, model: nn.Module) -> dict[str, str]:
        """Why tensors that this is for stay float."""
        how = self.weights or self.activations
        return _chosen(model, how, self.keep, "", {}).left

    def _notes(self) -> list[str]:
        return [f"{name}: its input is left as it is: {why}" for name, why in self._left.items()]


def _chosen(
    model: nn.Module, how: Weights | Activations | None, keep: Sequence[str] | None, key: str, table: dict[str, str]
) -> Chosen:
    if how is None:
        return Chosen({}, {})
    found = chosen(model, how.bits, keep, f"{key}.bits")
    for name, width in found.bits.items() if table else ():
        if why := binary.misfit(table, key, how.kind, width):
            raise StructureError(f"{name}: {why}")
    return found


def _fill(model: nn.Module, site: Site, one: BinaryInput) -> None:
    """Gives the tensors that an edit brought their values."""
    if getattr(one, "begun", None) is not None and not bool(one.begun):
        raise InvariantError(f"{site}: training ended before a batch gave it a scale; train longer")
    for what, value in one.tensors().items():
        tensor: Tensor = getattr(model.get_submodule(site.module), site.tensor(what))
        tensor.copy_(value)
