"""What goes into layers before training: which of it is one value, and what it is like."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError, ValuesError
from deepcompression.network.edits.quantize_values import Site
from deepcompression.network.trace import resting
from deepcompression.network.watching import Carried, watched
from deepcompression.quantization.products import Products, counted
from deepcompression.training.method import Context

WHO = "quantize: activations"
OTHERWISE = "leave it out of activations"


@dataclass(frozen=True)
class Group:
    """Sites that carry one value, its bits, and what it is like."""

    sites: tuple[Site, ...]
    bits: int
    seen: Seen


@dataclass
class Seen:
    """What came by a site: sums of magnitudes and squares, how many, the ends, values of one sample."""

    device: torch.device
    features: int
    total: float = 0.0
    squares: float = 0.0
    count: int = 0
    least: float = math.inf
    most: float = -math.inf

    def add(self, value: Tensor) -> None:
        """One more batch."""
        exact = value.detach().double() if value.device.type != "mps" else value.detach().float()
        if not exact.numel():
            return
        self.total += float(exact.abs().sum())
        self.squares += float(exact.square().sum())
        self.count += exact.numel()
        self.least = min(self.least, float(exact.min()))
        self.most = max(self.most, float(exact.max()))


def measured(
    model: nn.Module,
    context: Context,
    sites: Mapping[Site, int],
    samples: int,
    who: str = WHO,
    otherwise: str = OTHERWISE,
    products: Products | None = None,
) -> list[Group]:
    """Sites by the value that they carry, each with what came by.

    Args:
        model: in which the sites are.
        context: whose samples are looked at.
        sites: and the bits of each.
        samples: how many.
        who: wants them, for messages.
        otherwise: what can be done about a site that is no good, for messages.
        products: gets what functions of the forward multiply.

    Raises:
        StructureError: there are no samples, the forward never comes by a site, or with no value, or with one that is
            not finite.
    """
    batches = context.batches(who, samples, drawn=True)
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
            counting = nullcontext() if number or products is None else counted(model, products)
            with watched(model, sites, see if number else see_first), counting:
                context.forward(model, batch)
    for site in sites:
        if site not in seen:
            raise StructureError(f"{site}: the forward never comes by it with a tensor by position; {otherwise}")
        _refuse_useless(site, seen[site], otherwise)
    return [Group(tuple(some), width, seen[some[0]]) for some, width in carried.together(sites)]


def _refuse_useless(site: Site, seen: Seen, otherwise: str) -> None:
    """Raises StructureError where nothing can be learned from what came by."""
    if not seen.count:
        raise ValuesError(f"{site}: all that came by it was empty; {otherwise}")
    if not math.isfinite(seen.squares):
        raise ValuesError(f"{site}: NaN, infinity or more than 1e154 came by it; look at the samples, or {otherwise}")
