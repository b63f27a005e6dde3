"""Grids of what goes into layers, whose steps are learned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network.edits.quantize_values import InputQuantizer, Site, levels
from deepcompression.network.trace import resting
from deepcompression.quantization.steps import StepSize
from deepcompression.quantization.watching import Carried, watched
from deepcompression.training.method import Context


@dataclass(frozen=True)
class QuantizedSites:
    """Inputs of layers that are one value, on one grid; unsigned where none of the samples was below 0."""

    sites: tuple[str, ...]
    bits: int
    signed: bool
    step: float


@dataclass(frozen=True)
class LearnedInput(InputQuantizer):
    """Before a forward, while the step is learned."""

    def _grid(self, module: nn.Module, value: Tensor) -> tuple[Tensor, Tensor | int]:
        scale: Tensor = getattr(module, self.site.tensor("step"))()
        return scale, 0


class Group:
    """Sites that carry one value, and their step."""

    def __init__(self, sites: Sequence[Site], bits: int, seen: Seen) -> None:
        self.sites, self.bits, self.features = tuple(sites), bits, seen.features
        self.scheme = "symmetric" if seen.least < 0 else "asymmetric"
        most = levels(bits, self.scheme)[1]
        start = 2 * seen.total / max(seen.count, 1) / math.sqrt(most) or 1.0
        self.step = StepSize(torch.tensor(start, device=seen.device), seen.features, most)
        self._handles: list[Any] = []

    def install(self, model: nn.Module) -> None:
        """Puts the step, and what rounds by it, before the layers."""
        for site in self.sites:
            module = model.get_submodule(site.module)
            module.add_module(site.tensor("step"), self.step)
            hook = LearnedInput(site, "static", self.bits, self.scheme)
            self._handles.append(module.register_forward_pre_hook(hook))

    def remove(self, model: nn.Module) -> None:
        """Takes both out again."""
        while self._handles:
            self._handles.pop().remove()
        for site in self.sites:
            model.get_submodule(site.module)._modules.pop(site.tensor("step"), None)

    def record(self) -> dict[str, Any]:
        """The edit that does the same for good."""
        sites = [str(site) for site in self.sites]
        return {
            "kind": "quantize_values",
            "sites": sites,
            "range": "static",
            "bits": self.bits,
            "scheme": self.scheme,
        }

    def fill(self, model: nn.Module) -> None:
        """Gives the tensors that the edit brought the learned step."""
        for site in self.sites:
            scale: Tensor = getattr(model.get_submodule(site.module), site.tensor("scale"))
            scale.copy_(self.step().detach())

    def told(self) -> QuantizedSites:
        """What to report."""
        sites = tuple(str(site) for site in self.sites)
        return QuantizedSites(sites, self.bits, self.scheme == "symmetric", float(self.step().detach()))


@dataclass
class Seen:
    """What came by a site: sum of magnitudes, how many, the least value, values of one sample."""

    device: torch.device
    features: int
    total: float = 0.0
    count: int = 0
    least: float = math.inf

    def add(self, value: Tensor) -> None:
        """One more batch."""
        exact = value.detach().double() if value.device.type != "mps" else value.detach().float()
        self.total += float(exact.abs().sum())
        self.count += exact.numel()
        self.least = min(self.least, float(exact.min())) if exact.numel() else self.least


def measured(model: nn.Module, context: Context, sites: Mapping[Site, int], samples: int) -> list[Group]:
    """Sites by the value that they carry, each with its first step.

    Args:
        model: in which the sites are.
        context: whose samples are looked at.
        sites: and the bits of each.
        samples: about how many.

    Raises:
        StructureError: there are no samples, or the forward never comes by a site.
    """
    batches = context.batches("quantize: activations", samples)
    seen: dict[Site, Seen] = {}
    carried = Carried()

    def see(site: Site, value: Tensor) -> None:
        if site not in seen:
            seen[site] = Seen(value.device, max(value[:1].numel(), 1))
        seen[site].add(value)

    def see_first(site: Site, value: Tensor) -> None:
        carried.add(site, value)
        see(site, value)

    with resting(context.compute.place(model)), torch.no_grad():
        for number, batch in enumerate(batches):
            with watched(model, sites, see if number else see_first):
                context.forward(model, batch)
    for site in sites:
        if site not in seen:
            raise StructureError(
                f"{site}: the forward never comes by it with a tensor by position; name in activations the layers it "
                "does come by"
            )
    return [Group(some, width, seen[some[0]]) for some, width in carried.together(sites)]
