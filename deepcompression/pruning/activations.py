"""What goes into layers, made sparse: a threshold for each input, so that a given part of its values becomes zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network.coverage import selected
from deepcompression.network.edits.quantize_values import Site, at_sites, uncalled
from deepcompression.network.edits.threshold import Thresholded
from deepcompression.network.names import is_layer, resolve
from deepcompression.network.trace import resting
from deepcompression.network.watching import watched
from deepcompression.training.method import Context

SHIFT = 15  # bits of a float32 that a bin does not tell apart: its edges are 0.4 % apart
BINS = 1 << (31 - SHIFT)


@dataclass(frozen=True)
class Inputs:
    """Inputs of layers with a number for each, by site, and why layers that only ``default`` means have none."""

    sites: Mapping[Site, float]
    left: Mapping[str, str]


def inputs_of(model: nn.Module, table: Mapping[str, float]) -> Inputs:
    """The first input of each layer whose weight is meant and whose number is not 0.

    Args:
        model: in which the layers are.
        table: of a number by name pattern of the weights.

    Raises:
        StructureError: a pattern matches nothing, or what is named is no layer with an input of its own, or has a
            threshold already.
    """
    named = resolve(model, {pattern: one for pattern, one in table.items() if pattern != "default"})
    sites, left = dict[Site, float](), dict[str, str]()
    for tensor, number in selected(model, table).items():
        site = Site(tensor.rpartition(".")[0], "input", 0)
        why = _unfit(model, tensor, site) if number else ""
        if why and tensor in named:
            raise StructureError(f"{tensor}: no values that go into it can become zero: {why}; leave it out")
        if why:
            left[tensor] = why
        elif number:
            sites[site] = number
    return Inputs(sites, left)


def _unfit(model: nn.Module, tensor: str, site: Site) -> str:
    module = model.get_submodule(site.module)
    if not is_layer(module) or not tensor.endswith("weight"):
        return "it is no weight of a Linear or Conv"
    if any(one.site == site for one in at_sites(module) if isinstance(one, Thresholded)):
        return "they have a threshold already"
    return uncalled(model, site)


class Magnitudes:
    """How often each magnitude came by, by bins of the leading bits of a float32, which ascend as the numbers do."""

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.finite = True

    def add(self, value: Tensor) -> None:
        """One more tensor of floats."""
        size = value.detach().float().abs().contiguous()
        self.finite &= bool(size.isfinite().all())
        bins = size.view(torch.int32) >> SHIFT
        self.counts += torch.bincount(bins.flatten(), minlength=BINS).cpu()

    def threshold(self, part: float) -> float:
        """The least magnitude up to which at least ``part`` of all values lie, 0.4 % at most above; never all of them,
        unless they are 0: where a part cannot be had without all, it is the largest below it.
        """
        total = self.counts.cumsum(0)
        first = int((total < part * float(total[-1])).sum())
        if int(total[first]) == int(total[-1]):
            below = (self.counts[:first] > 0).nonzero()
            first = int(below[-1]) if len(below) else 0
        return _edge(first) if first else 0.0


def _edge(number: int) -> float:
    """The largest float32 in a bin."""
    return float(torch.tensor(((number + 1) << SHIFT) - 1, dtype=torch.int32).view(torch.float32))


def thresholds(model: nn.Module, context: Context, sites: Mapping[Site, float], samples: int) -> dict[Site, float]:
    """For each input the threshold up to which the part that ``sites`` says of its values lies.

    Args:
        model: not changed; runs in eval mode.
        context: whose samples are looked at.
        sites: of ``inputs_of``: the part of each, from 0 to 1.
        samples: how many.

    Raises:
        StructureError: an impossible part, there are no samples, the forward never comes by an input, or with numbers
            that are not finite.
    """
    for site, part in sites.items():
        if not 0 < part < 1:
            raise StructureError(f"{site.module}: {part} of the values that go into it as zeros; expected 0 to below 1")
    found = {site: Magnitudes() for site in sites}
    with (
        resting(context.compute.place(model)),
        torch.no_grad(),
        watched(model, sites, lambda site, value: found[site].add(value)),
    ):
        for batch in context.batches("sparsify", samples, drawn=True):
            context.forward(model, batch)
    for site, one in found.items():
        if not bool(one.counts.any()):
            raise StructureError(f"{site}: the forward never comes by it with a tensor by position; leave it out")
        if not one.finite:
            raise StructureError(f"{site}: NaN or infinity came by it; look at the samples, or leave it out")
    return {site: one.threshold(sites[site]) for site, one in found.items()}


def edits_of(found: Mapping[Site, float]) -> list[dict[str, Any]]:
    """A record for each threshold."""
    return [{"kind": "threshold", "sites": [str(site)]} for site in found]


def put_in(model: nn.Module, found: Mapping[Site, float]) -> None:
    """Gives thresholds their values, in a model with the edits made."""
    for site, value in found.items():
        tensor: Any = getattr(model.get_submodule(site.module), f"{site.side}_{site.number}_threshold")
        tensor.fill_(value)


def zeros(model: nn.Module, sites: Iterable[Site], runs: Callable[[nn.Module], Iterable[object]]) -> dict[Site, float]:
    """What part of the values is zero that go into layers, as they multiply them; by site.

    Args:
        model: in whatever mode; runs in eval mode.
        sites: of ``inputs_of``; one that the forward never comes by is left out.
        runs: gives what runs the model once a step.
    """
    counts: dict[Site, list[int]] = {}

    def see(site: Site, value: Tensor) -> None:
        zero, total = counts.setdefault(site, [0, 0])
        counts[site] = [zero + value.numel() - int(value.count_nonzero()), total + value.numel()]

    with resting(model), torch.no_grad(), watched(model, sites, see):
        for _ in runs(model):
            pass
    return {site: zero / total for site, (zero, total) in counts.items() if total}
