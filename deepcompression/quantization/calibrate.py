"""Grids of what goes into layers, after training: from samples that come by once (static), or as values come (dynamic).

Memory is that of one forward and a histogram a value, however many samples there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.data.batch import samples_in
from deepcompression.errors import DataError, StructureError, ValuesError
from deepcompression.network.edits.integers import levels, on_grid
from deepcompression.network.edits.quantize_values import Site, read_site
from deepcompression.network.names import join
from deepcompression.network.trace import resting
from deepcompression.network.watching import Carried, watched
from deepcompression.quantization import products
from deepcompression.quantization.observers import OBSERVERS, bounds
from deepcompression.quantization.observers.histogram import Histogram
from deepcompression.quantization.observers.ranges import Wanted, grid
from deepcompression.quantization.output_errors import output_errors
from deepcompression.quantization.products import counted
from deepcompression.training.digest import content
from deepcompression.training.method import Context
from deepcompression.training.randomness import kept

WANTING = "activations"
AUTO = "auto"
APART = 4  # of so many batches one is kept apart, by which auto chooses
FEWEST = 2  # batches, so that one can be
Tell = Callable[[int], None]  # is told how many batches have come


@dataclass(frozen=True)
class Plan:
    """How ranges are found.

    ``scheme``: symmetric or asymmetric; where no value is below 0 integers are from 0 on, for either. ``range``:
    static, dynamic, dynamic_row or dynamic_token. ``observer``: one of ``OBSERVERS``, or auto: of each value the one
    whose grid changes the outputs of its layers least, on samples that are kept apart. ``samples``: how many.
    """

    scheme: str = "asymmetric"
    range: str = "static"
    observer: str = "mse"
    samples: int = 512
    percentile: float = 99.99
    steps: int = 16

    def wanted(self, bits: int) -> Wanted:
        """What observers are asked for."""
        return Wanted(bits, self.scheme, self.percentile, self.steps)


@dataclass(frozen=True)
class Calibrated:
    """Sites that carry one value, and its grid; ``clipped``: the share of values more than half a step beyond its ends.

    ``errors``: of auto, the change of the layers' outputs by each observer, as a part of their energy.
    """

    sites: tuple[str, ...]
    bits: int
    scheme: str
    range: str
    observer: str | None = None
    least: float | None = None
    most: float | None = None
    scale: float | None = None
    zero_point: int | None = None
    clipped: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The edit."""
        return {
            "kind": "quantize_values",
            "sites": list(self.sites),
            "range": self.range,
            "bits": self.bits,
            "scheme": self.scheme,
        }


@dataclass(frozen=True)
class Calibration:
    """Grids of values; how many samples they are from, and a digest of these, where they can be digested; what of the
    forward stays float, a sentence each.
    """

    found: list[Calibrated]
    samples: int
    digest: str | None
    floating: Sequence[str] = ()

    def state(self) -> dict[str, Tensor]:
        """The tensors that the edits bring into the state_dict, with their values; on one grid one tensor."""
        return {name: value for one in self.found for name, value in _tensors(one).items()}


def _tensors(one: Calibrated) -> dict[str, Tensor]:
    if one.scale is None:
        values = {"edit": torch.zeros((), dtype=torch.uint8)}
    else:
        values = {"scale": torch.tensor(one.scale, dtype=torch.float32)}
        if one.scheme == "asymmetric":
            values["zero_point"] = torch.tensor(one.zero_point, dtype=torch.int32)
    sites = [site for site in map(read_site, one.sites) if site]
    return {join(site.module, site.tensor(what)): value for site in sites for what, value in values.items()}


def calibrate(
    model: nn.Module, context: Context, sites: Mapping[Site, int], plan: Plan, tell: Tell | None = None
) -> Calibration:
    """Grids of the values at ``sites``; the model is as it was afterwards, but on the context's device.

    Static ranges take one pass over the samples, ``auto`` another one over a quarter of them, in which each layer also
    runs once for each range that an observer took. Dynamic ranges look only whether values come by.

    Args:
        model: as values are to be looked at: before weights are rounded.
        context: whose samples come by; not augmented, of the training split.
        sites: inputs of layers, with their bits.
        plan: how ranges are found.
        tell: is told after each batch.

    Raises:
        StructureError: there are no samples, or too few to keep some apart; a site never saw a value.
        DataError: a value is not finite, or each pass sees other samples.
    """
    passes = _Passes(context, plan, tell)
    with resting(context.compute.place(model)), torch.no_grad():
        if plan.range != "static":
            return Calibration(_dynamic(model, sites, passes), 0, None, products.told(passes.products))
        values = _observed(model, sites, passes)
        errors = _compared(model, values, passes) if plan.observer == AUTO else [{} for _ in values]
    found = [_calibrated(value, error) for value, error in zip(values, errors, strict=True)]
    return Calibration(found, passes.samples, passes.digest, products.told(passes.products))


def refuse_few(context: Context, plan: Plan, wanting: str = WANTING) -> None:
    """Raise where a calibration has too few samples, as far as the first batches tell; no model runs.

    Args:
        context: whose samples are looked at.
        plan: how ranges are found.
        wanting: who needs them, for messages.

    Raises:
        StructureError: there are none, or one batch, of which ``auto`` can keep none apart.
    """
    came = sum(1 for _ in islice(context.batches(wanting, plan.samples), FEWEST))
    _refuse_few(came, plan.range == "static" and plan.observer == AUTO, wanting)


def _refuse_few(batches: int, apart: bool, wanting: str = WANTING) -> None:
    if not batches:
        raise StructureError(f"{wanting}: no samples came to calibrate with; the training split is empty")
    if apart and batches < FEWEST:
        raise ValuesError(
            f"{wanting}: observer: auto keeps a quarter of the batches apart, and there is one batch; name an observer "
            "such as mse, ask for more samples than a batch of the DataLoader has, or let data.factory return more"
        )


@dataclass(frozen=True)
class _Value:
    """Sites that carry one value, its histogram, and scale and zero point by each observer that is asked."""

    sites: tuple[Site, ...]
    bits: int
    scheme: str
    seen: Histogram
    grids: Mapping[str, tuple[float, int]]

    def rounding(self, observer: str) -> Callable[[Tensor], Tensor]:
        """What an observer's grid does to the value."""
        scale, zero = self.grids[observer]
        low, high = levels(self.bits, self.scheme)
        return lambda value: on_grid(value.float(), torch.tensor(scale, device=value.device), zero, low, high).to(
            value.dtype
        )


class _Passes:
    """The same samples, pass by pass."""

    def __init__(self, context: Context, plan: Plan, tell: Tell | None) -> None:
        self.context, self.plan, self.tell = context, plan, tell
        self.samples, self.done, self.ran = 0, 0, False
        self.digest: str | None = None
        self.known = False  # whether there has been a pass
        self.products: products.Products = {}

    def forward(self, model: nn.Module, batch: Any) -> None:
        """Runs the model; the first time, what its functions multiply is counted."""
        with counted(model, self.products) if not self.ran else nullcontext():
            self.context.forward(model, batch)
        self.ran = True

    def batches(self, held_out: bool | None) -> Iterator[Any]:
        """The batches that are kept apart, or the others; None: all.

        Raises:
            StructureError: there are no samples.
            DataError: they are not those of the pass before.
        """
        digests, self.samples = [], 0
        with kept([]):  # a pass that draws an order draws the same
            for number, batch in enumerate(self.context.batches(WANTING, self.plan.samples)):
                digests.append(content(batch))
                self.samples += samples_in(batch)
                if held_out is None or held_out == (number % APART == 1):
                    yield batch
                    self.done += 1
                    if self.tell:
                        self.tell(self.done)
        _refuse_few(len(digests) if self.samples else 0, self.plan.observer == AUTO and held_out is not None)
        digest = None if None in digests else content(digests)
        if self.known and digest != self.digest:
            raise DataError(
                f"{WANTING}: the training split gave other samples at its second pass, so that none can be kept apart; "
                "name an observer instead of auto, or let the data give the same"
            )
        self.digest, self.known = digest, True


def _observed(model: nn.Module, sites: Mapping[Site, int], passes: _Passes) -> list[_Value]:
    """What came by, each value once."""
    histograms = {site: Histogram() for site in sites}
    missed: dict[Site, str] = {}
    groups: list[tuple[tuple[Site, ...], int]] = []
    for batch in passes.batches(False if passes.plan.observer == AUTO else None):
        carried = Carried()  # of the first batch; its values are let go with it
        watching = [some[0] for some, _ in groups] or sites
        with watched(model, watching, _adding(histograms, None if groups else carried), missed):
            passes.forward(model, batch)
        groups = groups or carried.together(sites)
    for some, _ in groups:
        if not histograms[some[0]].number:
            raise _unseen(some[0], missed, passes.samples)
    return [_value(some, bits, histograms[some[0]], passes.plan) for some, bits in groups]


def _adding(histograms: Mapping[Site, Histogram], carried: Carried | None) -> Callable[[Site, Tensor], None]:
    def see(site: Site, value: Tensor) -> None:
        if carried is not None:
            carried.add(site, value)
        try:
            histograms[site].add(value)
        except ValueError:
            raise DataError(
                f"{WANTING}: a value that comes by {site} is not finite (NaN, or infinite); look at the samples of the "
                "training split and at the model's weights, or leave the layer out"
            ) from None

    return see


def _unseen(site: Site, missed: Mapping[Site, str], samples: int) -> StructureError:
    why = missed.get(site) or f"no value came by it in {samples} samples: the forward never calls {site.module}"
    return StructureError(f"{WANTING}: {site} cannot be quantized: {why}; leave the layer out of activations")


def _value(some: tuple[Site, ...], bits: int, seen: Histogram, plan: Plan) -> _Value:
    wanted = plan.wanted(bits)
    asked = OBSERVERS if plan.observer == AUTO else [plan.observer]
    grids = {name: grid(*bounds(name, seen, wanted), wanted, seen) for name in asked}
    return _Value(some, bits, plan.scheme if seen.signed else "asymmetric", seen, grids)


def _compared(model: nn.Module, values: Sequence[_Value], passes: _Passes) -> list[dict[str, float]]:
    """How much the outputs of the layers behind each value change, by observer; grids that are the same run once."""
    firsts = [{grid: name for name, grid in reversed([*value.grids.items()])} for value in values]
    tried = {
        site: [value.rounding(name) for name in first.values()] if len(first) > 1 else []
        for value, first in zip(values, firsts, strict=True)
        for site in value.sites
    }
    forward = partial(passes.context.forward, model)
    errors = output_errors(model, passes.batches(True), forward, tried)
    return [
        dict(zip(first.values(), map(sum, zip(*(errors[site] for site in value.sites), strict=True)), strict=False))
        for value, first in zip(values, firsts, strict=True)
    ]


def _calibrated(value: _Value, errors: Mapping[str, float]) -> Calibrated:
    """The value on the grid of the observer with the least error."""
    observer = min(errors or value.grids, key=lambda name: errors.get(name, 0.0))
    scale, zero = value.grids[observer]
    sites = tuple(str(site) for site in value.sites)
    least, most, beyond = value.seen.least, value.seen.most, _beyond(value, scale, zero)
    return Calibrated(sites, value.bits, value.scheme, "static", observer, least, most, scale, zero, beyond, errors)


def _beyond(value: _Value, scale: float, zero: int) -> float:
    """The share of what came by that is more than half a step beyond the grid's ends."""
    if not value.seen.width:
        return 0.0
    low, high = levels(value.bits, value.scheme)
    middles, mass = value.seen.filled(1)
    beyond = (middles < (low - zero - 0.5) * scale) | (middles > (high - zero + 0.5) * scale)
    return float(mass[beyond].sum()) / value.seen.number


def _dynamic(model: nn.Module, sites: Mapping[Site, int], passes: _Passes) -> list[Calibrated]:
    """Each site by itself, once a value has come by it."""
    waiting: set[Site] = set(sites)
    missed: dict[Site, str] = {}
    for batch in passes.batches(None):
        with watched(model, [*waiting], lambda site, _: waiting.discard(site), missed):
            passes.forward(model, batch)
        if not waiting:
            break
    for site in sites:
        if site in waiting:
            raise _unseen(site, missed, passes.samples)
    plan = passes.plan
    return [Calibrated((str(site),), bits, plan.scheme, plan.range) for site, bits in sites.items()]
