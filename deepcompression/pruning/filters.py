"""Filter pruning: whole channels are zeroed, or removed so that the model becomes thin."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.errors import InvariantError, StructureError
from deepcompression.network.chains import WHOLE
from deepcompression.network.channel_proof import undrawn
from deepcompression.network.channels import channel_groups
from deepcompression.network.coverage import selected
from deepcompression.network.edits import resize as edit
from deepcompression.network.edits.apply import apply
from deepcompression.network.names import resolve
from deepcompression.network.resizing import Group, Member, resize
from deepcompression.network.state import normalised, plain_state, replaced
from deepcompression.network.trace import resting
from deepcompression.pruning.prune import kept
from deepcompression.pruning.units import Find
from deepcompression.pruning.worth import Worth, ranked

Outputs = Callable[[nn.Module], Tensor]
TOLERANCE = 1e-3  # of the outputs' norm: a channel in the wrong place is far beyond it, the rounding of sums far below
NARROW_TOLERANCE = 0.05  # where a parameter is float16 or bfloat16


@dataclass(frozen=True)
class Choice:
    """Channels that belong together, and the numbers of those that stay, ascending."""

    group: Group
    kept: tuple[int, ...]


@dataclass(frozen=True)
class Limit:
    """The part, in (0, 1), of what a model costs that it may still cost; ``key`` and ``unit`` are said in messages.

    ``cost`` is of a model, and of what runs it: such as ``measure.flops.macs_in``.
    """

    part: float
    cost: Callable[[nn.Module, Outputs], int]
    key: str = "flops"
    unit: str = "multiplications"


@dataclass(frozen=True)
class FilterDensity:
    """What became of one group: ``made_by`` are the weights that make its channels."""

    name: str
    made_by: tuple[str, ...]
    channels: int
    kept: int
    density: float


def choose(
    model: nn.Module,
    density: Mapping[str, float],
    worth: Worth,
    outputs: Outputs,
    find: Find = channel_groups,
    multiple: int = 1,
) -> tuple[list[Choice], dict[str, str]]:
    """Which channels of ``model`` stay; one of each group at least.

    Args:
        model: not changed.
        density: name or pattern -> fraction of the channels that stays; ``default``: of all that is not named.
        worth: what makes channels important, see ``pruning.worth``.
        outputs: what the model gives for some samples.
        find: what goes whole, see ``pruning.units``.
        multiple: of which as many stay in each group, where it has so many.

    Returns:
        A choice for each group of channels that a density is for, and the layers that cannot lose any, with the reason.

    Raises:
        StructureError: as ``densities``; or a weight is NaN or infinite.
    """
    groups, left = find(model, outputs)
    return chosen(plain_state(model), densities(model, density, groups, left), worth, multiple), left


def chosen(
    state: Mapping[str, Tensor], wanted: Sequence[tuple[Group, float]], worth: Worth, multiple: int = 1
) -> list[Choice]:
    """Which channels of some groups stay, at the density of each; one at least.

    Args:
        state: tensors by name.
        wanted: groups and densities.
        worth: what makes channels important; not asked where all stay.
        multiple: of which as many stay in each group, where it has so many.

    Raises:
        StructureError: a weight is NaN or infinite.
    """
    state = normalised(state, dict.fromkeys(one.tensor for group, _ in wanted for one in group.makers))
    parts = [(group, _in_multiples(group.channels, density, multiple)) for group, density in wanted]
    return [Choice(group, _kept(group, state, part, worth)) for group, part in parts]


def _in_multiples(channels: int, density: float, multiple: int) -> float:
    """The density at which the nearest multiple stays: one at least, and no more than there are."""
    if multiple == 1:
        return density
    return min(max(round(density * channels / multiple), 1) * multiple, channels) / channels


def _kept(group: Group, state: Mapping[str, Tensor], density: float, worth: Worth) -> tuple[int, ...]:
    if density == 1:
        return tuple(range(group.channels))
    stays = kept({"": ranked(group, state, worth)}, {"": density}, "layer")[""]
    return tuple(stays.nonzero().flatten().tolist())


def refuse_unfit(worth: Worth, model: nn.Module, groups: Sequence[Group]) -> None:
    """Raise where what channels are worth cannot be told of some of them.

    Args:
        worth: see ``pruning.worth``.
        model: that they are of.
        groups: of channels.

    Raises:
        StructureError: with the first of them, and what to do.
    """
    fits = getattr(worth, "fits", None)
    if fits is not None:
        fits(model, groups)


def parameters_of(model: nn.Module, outputs: Outputs | None = None) -> int:
    """How many parameters a model has; tied ones count once. It need not run."""
    return sum(one.numel() for one in model.parameters())


def thinned(model: nn.Module, choices: Sequence[Choice]) -> nn.Module:
    """A copy without the channels that go; its remaining values are the model's."""
    places = cut(model, choices)
    copied = copy.deepcopy(model)
    if places is not None:
        apply(copied, edit_of(model, places))
        copied.load_state_dict(cut_state(plain_state(model), places))
    return copied


def densities(
    model: nn.Module, table: Mapping[str, float], groups: Sequence[Group], left: Mapping[str, str]
) -> list[tuple[Group, float]]:
    """The density of each group that ``table`` means: a name of one of its layers goes before ``default``.

    Args:
        model: whose channels these are.
        table: density by name pattern.
        groups: channels that can be removed, see ``network.channels``.
        left: why the channels of other layers cannot, by name.

    Raises:
        StructureError: a pattern means no channels that can be removed (with the reason), or no channels can be at
            all; layers of one group are named with two densities.
    """
    makers = {maker.tensor for group in groups for maker in group.makers}
    patterns = {pattern: value for pattern, value in table.items() if pattern != "default"}
    for pattern, value in patterns.items():
        meant = list(resolve(model, {pattern: value}))
        if makers.isdisjoint(meant):
            raise StructureError(f"{meant[0]}: its channels cannot be removed: {_reason(meant[0], left)}")
    if not makers:
        told = "; ".join(f"{name}: {why}" for name, why in list(left.items())[:3])
        raise StructureError(f"no channels of the model can be removed: {told or 'it has no layers'}")
    named, every = resolve(model, patterns) if patterns else {}, selected(model, table)
    found = [(group, _common(group, named) or _common(group, every)) for group in groups]
    return [(group, value) for group, value in found if value is not None]


def _common(group: Group, table: Mapping[str, float]) -> float | None:
    own = {maker.tensor: table[maker.tensor] for maker in group.makers if maker.tensor in table}
    if len(set(own.values())) > 1:
        (one, first), (other, second) = next((a, b) for a in own.items() for b in own.items() if a[1] != b[1])
        raise StructureError(
            f"{one} and {other} make the same channels: give both one density, not {first} and {second}"
        )
    return next(iter(own.values()), None)


def _reason(tensor: str, left: Mapping[str, str]) -> str:
    layer = tensor.rpartition(".")[0] or WHOLE
    return left.get(tensor) or left.get(layer) or left.get(WHOLE) or "it makes no channels"


def masked(model: nn.Module, choices: Sequence[Choice]) -> tuple[dict[str, Tensor], list[str]]:
    """The state_dict with +0.0 for all that belongs to channels that go, and the names of the weights that do so.

    Filters, what takes their channels in, and biases and scales between: the model then gives what it gives without
    them. Running statistics stay.
    """
    state, own = plain_state(model), dict(model.named_parameters())
    members = [one for choice in choices for one in _changed(choice) if one.tensor in own]
    clean = normalised(state, dict.fromkeys(one.tensor for one in members))
    stays = staying({name: tuple(one.shape) for name, one in own.items()}, choices)
    zeroed = {name: torch.where(keep, clean[name], torch.zeros_like(clean[name])) for name, keep in stays.items()}
    return replaced(clean, zeroed), list(dict.fromkeys(one.tensor for one in members if one.role != "along"))


def staying(
    shapes: Mapping[str, tuple[int, ...]], choices: Sequence[Choice], makers: bool = False
) -> dict[str, Tensor]:
    """Where tensors do not belong to channels that go, bool, of all that some do.

    Args:
        shapes: of the tensors that are looked at, by name.
        choices: groups, and what stays of each.
        makers: whether only what makes channels counts, not what takes them in or lies between.
    """
    found: dict[str, Tensor] = {}
    members = [(one, choice) for choice in choices for one in _changed(choice) if one.tensor in shapes]
    for member, choice in [pair for pair in members if not makers or pair[0] in pair[1].group.makers]:
        gone = [place for place, one in enumerate(member.index) if one >= 0 and one not in choice.kept]
        before = found.get(member.tensor)
        before = torch.ones(shapes[member.tensor], dtype=torch.bool) if before is None else before
        found[member.tensor] = before.index_fill(member.axis, torch.tensor(gone), False)
    return found


def _changed(choice: Choice) -> Sequence[Member]:
    return choice.group.members if len(choice.kept) < choice.group.channels else ()


def cut(model: nn.Module, choices: Sequence[Choice]) -> dict[str, Any] | None:
    """Which places of which tensors stay (``network.resizing.resize``); None where all do."""
    fewer = [(one.group, one.kept) for one in choices if len(one.kept) < one.group.channels]
    return resize(model, fewer) if fewer else None


def edit_of(model: nn.Module, places: Mapping[str, Any]) -> dict[str, Any]:
    """The edit ``resize`` of what ``cut`` gave."""
    return edit.record_of(model, places)


def cut_state(state: Mapping[str, Tensor], places: Mapping[str, Any]) -> dict[str, Tensor]:
    """A state_dict without the places that go."""
    return edit.cut_state(state, places)


def refuse_unlike(thin: nn.Module, masked: nn.Module, outputs: Outputs) -> float:
    """Makes sure that a thin model gives what the masked one gives; how far apart they are, of the outputs' norm.

    Args:
        thin: with channels removed.
        masked: with zeros for them.
        outputs: what a model gives for some samples.

    Raises:
        InvariantError: they differ by more than rounding.
    """
    with undrawn(), resting(thin), resting(masked), torch.no_grad():
        came, expected = outputs(thin).double(), outputs(masked).double()
    if came.shape != expected.shape:
        raise InvariantError(f"the thin model's outputs are {tuple(came.shape)} instead of {tuple(expected.shape)}")
    gap, norm = float((came - expected).norm()), float(expected.norm())
    narrow = any(one.is_floating_point() and one.itemsize < 4 for one in masked.parameters())
    if not gap <= (NARROW_TOLERANCE if narrow else TOLERANCE) * norm:
        raise InvariantError(
            f"the thin model gives other outputs than the masked one (by {gap:.2g} of {norm:.2g}); use remove: false"
        )
    return gap / norm if norm else 0.0


def account_of(choices: Sequence[Choice]) -> list[FilterDensity]:
    """What became of each group."""
    rows = []
    for one in choices:
        made_by = tuple(dict.fromkeys(maker.tensor for maker in one.group.makers))
        channels, stay = one.group.channels, len(one.kept)
        rows.append(FilterDensity(made_by[0], made_by, channels, stay, stay / channels))
    return rows
