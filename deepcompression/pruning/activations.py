"""What goes into layers, made sparse: a threshold for each input, so that a given part of its values becomes zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError, ValuesError
from deepcompression.network.coverage import selected
from deepcompression.network.edits.apply import apply_all
from deepcompression.network.edits.quantize_values import Site, at_sites, uncalled
from deepcompression.network.edits.threshold import THRESHOLD, Thresholded
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


def put_thresholds(
    model: nn.Module, context: Context, sites: Mapping[Site, float], samples: int
) -> tuple[dict[Site, float], list[dict[str, Any]]]:
    """Gives each input the threshold up to which the part that ``sites`` says of its values lies, while those before it
    are in force; the thresholds, and the edits that did it.

    Args:
        model: changed in place; runs in eval mode where the context has models run.
        context: whose samples are looked at, in one pass.
        sites: of ``inputs_of``: the part of each, from 0 to 1.
        samples: how many.

    Raises:
        StructureError: an impossible part, there are no samples, the forward never comes by an input, or with numbers
            that are not finite.
    """
    for site, part in sites.items():
        if not 0 < part < 1:
            raise StructureError(f"{site.module}: {part} of the values that go into it as zeros; expected 0 to below 1")
    edits = [{"kind": "threshold", "sites": [str(site)]} for site in sites]
    apply_all(model, edits)
    context.compute.place(model)
    found = {site: Finding(site, part) for site, part in sites.items()}
    with ExitStack() as stack, resting(model), torch.no_grad():
        for site, one in found.items():
            module = model.get_submodule(site.module)
            stack.callback(module.register_forward_pre_hook(one, prepend=True).remove)
        for batch in context.batches("sparsify", samples, drawn=True):
            context.forward(model, batch)
    for site, one in found.items():
        if not bool(one.seen.counts.any()):
            raise StructureError(f"{site}: the forward never comes by it with a tensor by position; leave it out")
        if not one.seen.finite:
            raise ValuesError(f"{site}: NaN or infinity came by it; look at the samples, or leave it out")
    return {site: float(one.threshold_in(model.get_submodule(site.module))) for site, one in found.items()}, edits


class Finding:
    """A hook before that of a threshold, which it sets by all that came by so far."""

    def __init__(self, site: Site, part: float) -> None:
        self.site, self.part, self.seen = site, part, Magnitudes()

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        """Looks at an input."""
        value = arguments[self.site.number] if len(arguments) > self.site.number else None
        if isinstance(value, Tensor) and value.is_floating_point():
            self.seen.add(value)
            if self.seen.finite:
                self.threshold_in(module).fill_(self.seen.threshold(self.part))

    def threshold_in(self, module: nn.Module) -> Tensor:
        """The module's threshold, 0-dim."""
        found: Tensor = getattr(module, self.site.tensor(THRESHOLD))
        return found


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
