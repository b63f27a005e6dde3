"""Filter pruning: whole channels are zeroed, or removed so that the model becomes thin."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from deepcompression import factory
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
from deepcompression.pruning.criteria import FILTERS
from deepcompression.pruning.prune import kept

Outputs = Callable[[nn.Module], Tensor]
Criterion = Callable[[Tensor], Tensor]  # filters (n, weights), float64 -> importance (n,)
HALVINGS, TINY = 10, 1e-9  # of the densities between which one is looked for; one channel of each group
TOLERANCE = 1e-3  # of the outputs' norm: a channel in the wrong place is far beyond it, the rounding of sums far below
NARROW_TOLERANCE = 0.05  # where a parameter is float16 or bfloat16


@dataclass(frozen=True)
class Choice:
    """Channels that belong together, and the numbers of those that stay, ascending."""

    group: Group
    kept: tuple[int, ...]


@dataclass(frozen=True)
class FilterDensity:
    """What became of one group: ``made_by`` are the weights that make its channels."""

    name: str
    made_by: tuple[str, ...]
    channels: int
    kept: int
    density: float


def fpgm(filters: Tensor) -> Tensor:
    """Mean distance of each filter to the others: one near the geometric median can be given by them.

    The paper's sum (He et al. 2019, arXiv 1811.00250, equation 6), divided by their number, so that weights with
    different numbers of filters compare.
    """
    return torch.cdist(filters, filters).sum(1) / max(len(filters) - 1, 1)


def l1(filters: Tensor) -> Tensor:
    """The sum of magnitudes (Li et al. 2017, arXiv 1608.08710)."""
    return filters.abs().sum(1)


def l2(filters: Tensor) -> Tensor:
    """The Euclidean norm (He et al. 2018, arXiv 1808.06866)."""
    return filters.square().sum(1).sqrt()


def criterion_of(name: str) -> Criterion:
    """The criterion of this name.

    Raises:
        StructureError: there is none.
    """
    if name not in FILTERS:
        raise StructureError(
            f"prune: criterion {name!r} is not known for filters; expected one of {', '.join(FILTERS)}"
        )
    found: Criterion = factory.load(FILTERS[name])
    return found


def choose(
    model: nn.Module, density: Mapping[str, float], criterion: Criterion, outputs: Outputs
) -> tuple[list[Choice], dict[str, str]]:
    """Which channels of ``model`` stay; one of each group at least.

    Args:
        model: not changed.
        density: name or pattern -> fraction of the channels that stays; ``default``: of all that is not named.
        criterion: what makes a filter important, see ``importance``.
        outputs: what the model gives for some samples.

    Returns:
        A choice for each group of channels that a density is for, and the layers that cannot lose any, with the reason.

    Raises:
        StructureError: as ``densities``; or a weight is NaN or infinite.
    """
    groups, left = channel_groups(model, outputs)
    chosen = densities(model, density, groups, left)
    state = plain_state(model)
    state = normalised(state, dict.fromkeys(one.tensor for group, _ in chosen for one in group.makers))
    choices = []
    for group, fraction in chosen:
        stays = kept({"": importance(group, state, criterion)}, {"": fraction}, "layer")[""]
        choices.append(Choice(group, tuple(stays.nonzero().flatten().tolist())))
    return choices, left


def choose_within(
    model: nn.Module, part: float, cost: Callable[[nn.Module], int], criterion: Criterion, outputs: Outputs
) -> tuple[list[Choice], dict[str, str]]:
    """The channels that stay at the largest density, one for all groups, at which a thin model costs no more.

    Args:
        model: not changed.
        part: of what it costs, in (0, 1).
        cost: of a model, such as its multiplications.
        criterion: what makes a filter important, see ``importance``.
        outputs: what the model gives for some samples.

    Raises:
        StructureError: no channels can be removed, or it costs more even with one channel in each group; or a weight
            is NaN or infinite.
    """
    groups, left = channel_groups(model, outputs)
    refuse_out_of_reach(model, part, cost, groups, left)
    state = plain_state(model)
    state = normalised(state, dict.fromkeys(one.tensor for group in groups for one in group.makers))
    worth = [importance(group, state, criterion) for group in groups]
    most = part * cost(model)

    def at(density: float) -> list[Choice]:
        stays = (kept({"": one}, {"": density}, "layer")[""] for one in worth)
        return [
            Choice(*both) for both in zip(groups, (tuple(x.nonzero().flatten().tolist()) for x in stays), strict=True)
        ]

    low, high, found = 0.0, 1.0, at(TINY)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = at(middle)
        if cost(thinned(model, tried)) <= most:
            low, found = middle, tried
        else:
            high = middle
    return found, left


def refuse_out_of_reach(
    model: nn.Module,
    part: float,
    cost: Callable[[nn.Module], int],
    groups: Sequence[Group],
    left: Mapping[str, str],
) -> None:
    """Raise where no thin model costs as little as is asked for.

    Args:
        model: not changed.
        part: of what it costs, in (0, 1).
        cost: of a model, such as its multiplications.
        groups: channels that can be removed, see ``network.channels``.
        left: why the channels of other layers cannot, by name.

    Raises:
        StructureError: no channels can be removed, or it costs more even with one channel in each group.
    """
    densities(model, {"default": part}, groups, left)
    least = cost(thinned(model, [Choice(one, (0,)) for one in groups])) / max(cost(model), 1)
    if least > part:
        raise StructureError(
            f"prune: flops: {part:g} is out of reach: with one channel in each group {least:.3g} of the "
            "multiplications stay"
        )


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


def importance(group: Group, state: Mapping[str, Tensor], criterion: Criterion) -> Tensor:
    """What each channel of a group is worth, (channels,) float64: the mean over all weights that make it.

    Where every weight makes every channel, as in most nets, the order is that of the sum. A channel of nothing but
    zeros is worth less than any other.

    Args:
        group: its members that make channels are looked at.
        state: tensors by name.
        criterion: of a weight matrix (filters, weights), what each filter is worth.
    """
    total, makers = (torch.zeros(group.channels, dtype=torch.float64) for _ in range(2))
    alive = torch.zeros(group.channels, dtype=torch.bool)
    for member in group.makers:
        channels, filters = filters_of(state[member.tensor], member)
        total[channels] += criterion(filters)
        makers[channels] += 1
        alive[channels] |= (filters != 0).any(1)
    return (total / makers.clamp(min=1)).masked_fill(~alive, -torch.inf)


def filters_of(weight: Tensor, member: Member) -> tuple[Tensor, Tensor]:
    """The channels that a weight makes, (n,), and all that makes each in a row, (n, weights) float64."""
    rows, index = weight.detach().movedim(member.axis, 0).flatten(1).double(), torch.tensor(member.index)
    channels = sorted({channel for channel in member.index if channel >= 0})
    filters = [rows[index == channel] for channel in channels]
    return torch.tensor(channels), pad_sequence(filters, batch_first=True).flatten(1)


def masked(model: nn.Module, choices: Sequence[Choice]) -> tuple[dict[str, Tensor], list[str]]:
    """The state_dict with +0.0 for all that belongs to channels that go, and the names of the weights that do so.

    Filters, what takes their channels in, and biases and scales between: the model then gives what it gives without
    them. Running statistics stay.
    """
    state, own = plain_state(model), dict(model.named_parameters())
    members = [(one, choice) for choice in choices for one in _changed(choice) if one.tensor in own]
    clean = normalised(state, dict.fromkeys(one.tensor for one, _ in members))
    zeroed: dict[str, Tensor] = {}
    for member, choice in members:
        gone = [place for place, one in enumerate(member.index) if one >= 0 and one not in choice.kept]
        before = zeroed.get(member.tensor, clean[member.tensor])
        zeroed[member.tensor] = before.index_fill(member.axis, torch.tensor(gone), 0.0)
    return replaced(clean, zeroed), list(dict.fromkeys(one.tensor for one, _ in members if one.role != "along"))


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
