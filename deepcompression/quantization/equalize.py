"""Cross-layer equalization: channels of one range, so that one scale for a tensor serves them all (no data needed).

Nagel, van Baalen, Blankevoort, Welling (2019), "Data-free quantization through weight equalization and bias
correction", arXiv 1906.04721, section 4.1. BatchNorm stays a module here, which gives one freedom more than the folded
layers of the paper have: before it the range of a channel's weights is any that one likes, if its statistics go along.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepcompression.errors import InvariantError
from deepcompression.network.resizing import Member
from deepcompression.network.state import plain_state, replaced
from deepcompression.network.trace import resting
from deepcompression.quantization.links import Link, Maker, Run, State, alike, before_norm, find, scaled

TURNS = 20  # at most: links that have a layer in common move each other
ENOUGH = 1.01  # a factor that changes nothing any more
WIDEST = 1024.0  # of a factor: what is smaller by more is as good as dead


@dataclass(frozen=True)
class Equalized:
    """How many times the range of a tensor's smallest channel its largest is: ``before``, and ``after``."""

    tensor: str
    before: float
    after: float


@dataclass(frozen=True)
class Made:
    """The state, what was done to each weight, and why other layers were left, by name."""

    state: dict[str, Tensor]
    layers: list[Equalized]
    left: dict[str, str]


def equalize(model: nn.Module, run: Run, fixed: Mapping[str, str] | None = None) -> Made:
    """Channels scaled so that their ranges are alike, in a state that gives what the model gives, but for rounding.

    At every link (``links``) s = sqrt(r1 / r2) with r1 the range of the channel as it is made, that of its weights, or
    |beta| + 3 |gamma| of its BatchNorm, and r2 that of the weights that take it in. Weights before a BatchNorm all get
    the range of their largest channel.

    Args:
        model: with ordinary parameters; not changed.
        run: what a model gives for a few samples, a tensor.
        fixed: why tensors cannot be scaled, by name: they are on a grid, or share values.

    Raises:
        InvariantError: the outputs are other ones after all.
    """
    fixed, found = fixed or {}, find(model, run)
    links = [link for link in found.links if not any(one.tensor in fixed for one in _touched(link))]
    normed = [maker for maker in found.normed if maker.weight.tensor not in fixed]
    before = plain_state(model)
    now = dict(before)
    for _ in range(TURNS):
        _make_even(model, now, normed)
        if max((_balanced(now, link) for link in links), default=1.0) < ENOUGH:
            break
    _make_even(model, now, normed)
    done = replaced(before, {name: one for name, one in now.items() if one is not before[name]})
    _refuse_other(model, done, run)
    weights = [*(maker.weight for maker in normed), *(one for link in links for one in _touched(link))]
    scaled_by = {one.tensor: one for one in reversed(weights)}
    rows = [Equalized(name, _spread(before[name], one), _spread(done[name], one)) for name, one in scaled_by.items()]
    kept = {one.tensor: fixed[one.tensor] for link in found.links for one in _touched(link) if one.tensor in fixed}
    return Made(done, rows, _left(found.left, kept, scaled_by))


def _left(left: Mapping[str, str], kept: Mapping[str, str], done: Collection[str]) -> dict[str, str]:
    """Why weights were left alone, by their names."""
    named = {name if name in kept else f"{name}.weight": why for name, why in {**left, **kept}.items()}
    return {name: why for name, why in named.items() if name not in done}


def _touched(link: Link) -> list[Member]:
    return [*(one.weight for one in link.makers), *link.takers]


def _make_even(model: nn.Module, state: dict[str, Tensor], normed: Sequence[Maker]) -> None:
    """Gives weights before a BatchNorm one range, and the BatchNorm the statistics that undo it, in ``state``."""
    for maker in normed:
        ranges = _ranges(state[maker.weight.tensor], maker.weight, max(maker.weight.index) + 1)
        factors = torch.where(ranges > 0, ranges.max() / ranges, 1.0).clamp(max=WIDEST)
        state.update(before_norm(model, state, maker, factors))


def _balanced(state: dict[str, Tensor], link: Link) -> float:
    """Scales the channels of a link in ``state``; the largest factor, up or down."""
    made = torch.stack([_made_range(state, one, link.channels) for one in link.makers]).amax(0)
    taken = torch.stack([_ranges(state[one.tensor], one, link.channels) for one in link.takers]).amax(0)
    alive = (made > 0) & (taken > 0)
    factors = torch.where(alive, (made / taken.where(alive, torch.ones_like(taken))).sqrt(), 1.0)
    middle = factors[alive].log().mean().exp() if bool(alive.any()) else torch.tensor(1.0)
    factors = torch.where(alive, factors / middle, 1.0).clamp(1 / WIDEST, WIDEST)
    state.update(scaled(state, link, factors))
    return float(torch.maximum(factors, 1 / factors).max())


def _made_range(state: State, maker: Maker, channels: int) -> Tensor:
    if maker.norm is None:
        return _ranges(state[maker.weight.tensor], maker.weight, channels)
    found = torch.zeros(channels, dtype=torch.float64)
    for member in maker.scaled:
        times = 3.0 if member.tensor == f"{maker.norm}.weight" else 1.0
        found += times * _ranges(state[member.tensor], member, channels)
    return found


def _ranges(tensor: Tensor, member: Member, channels: int) -> Tensor:
    """The largest magnitude of each channel (channels,), float64."""
    rows = tensor.double().abs().movedim(member.axis, 0)
    index = torch.tensor(member.index)
    each = rows.reshape(len(rows), -1).amax(1)[index >= 0]
    return torch.zeros(channels, dtype=torch.float64).scatter_reduce(0, index[index >= 0], each, "amax")


def _spread(tensor: Tensor, member: Member) -> float:
    ranges = _ranges(tensor, member, max(member.index) + 1)
    alive = ranges[ranges > 0]
    return float(alive.max() / alive.min()) if len(alive) else 1.0


def _refuse_other(model: nn.Module, state: State, run: Run) -> None:
    """Raises InvariantError where the model gives something else with this state."""
    own = plain_state(model)
    with resting(model), torch.no_grad():
        expected = run(model).double()
        try:
            model.load_state_dict(dict(state))
            came = run(model).double()
        finally:
            model.load_state_dict(own)
    if not alike(came, expected):
        gap = float((came - expected).norm() / expected.norm())
        raise InvariantError(f"equalize: the model gives other outputs than before, by {gap:.2g}; use equalize: false")
