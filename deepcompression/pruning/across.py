"""Channels of all layers beside each other: those go that are worth least for what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from deepcompression.network.channels import channel_groups
from deepcompression.network.resizing import Group
from deepcompression.network.state import normalised, plain_state
from deepcompression.pruning.filters import Choice, Limit, Outputs, thinned
from deepcompression.pruning.limits import refuse_out_of_reach
from deepcompression.pruning.units import Find
from deepcompression.pruning.worth import Worth, ranked


def choose_across(
    model: nn.Module, limit: Limit, worth: Worth, outputs: Outputs, find: Find = channel_groups, multiple: int = 1
) -> tuple[list[Choice], dict[str, str]]:
    """The channels that stay where all of them compete, by their worth as a part of what a model without them saves.

    A channel that several layers add to is worth what it is in each. One of each group stays.

    Args:
        model: not changed.
        limit: what it may cost.
        worth: what makes channels important, see ``pruning.worth``; it should compare between layers, as ``taylor``
            does, which is a part of the loss.
        outputs: what the model gives for some samples.
        find: what goes whole, see ``pruning.units``.
        multiple: as of ``filters.chosen``.

    Returns:
        As of ``limits.choose_within``.

    Raises:
        StructureError: likewise.
    """
    groups, left = find(model, outputs)
    refuse_out_of_reach(model, limit, groups, left, outputs, multiple)
    state, whole = plain_state(model), limit.cost(model, outputs)
    values = [_value(group, state, worth) / _cost(model, group, limit, outputs, whole) for group in groups]
    steps = sorted({one for value in values for one in value.tolist()})
    low, high = -1, len(steps) - 1  # of steps: all is too costly, what is above the last is not
    while high - low > 1:
        middle = (low + high) // 2
        cost = limit.cost(thinned(model, _above(groups, values, steps[middle], multiple)), outputs)
        low, high = (low, middle) if cost <= limit.part * whole else (middle, high)
    return _above(groups, values, steps[high], multiple), left


def _above(groups: Sequence[Group], values: Sequence[Tensor], step: float, multiple: int) -> list[Choice]:
    """Of each group as many channels as are worth more than a step, in whole multiples; at least one of these."""
    choices = []
    for group, value in zip(groups, values, strict=True):
        count = max(round(int((value > step).sum()) / multiple), 1) * multiple
        best = value.argsort(descending=True, stable=True)[:count]
        choices.append(Choice(group, tuple(sorted(best.tolist()))))
    return choices


def _value(group: Group, state: Mapping[str, Tensor], worth: Worth) -> Tensor:
    """What each channel is worth, over all layers that add to it, (channels,) float64."""
    makers = sum(member.role == "out" for member in group.makers)
    return ranked(group, normalised(state, [one.tensor for one in group.makers]), worth) * max(makers, 1)


def _cost(model: nn.Module, group: Group, limit: Limit, outputs: Outputs, whole: int) -> float:
    """What a channel of a group costs: a model without half of them, beside the whole one."""
    half = group.channels // 2
    less = limit.cost(thinned(model, [Choice(group, tuple(range(half)))]), outputs)
    return max(whole - less, 1) / (group.channels - half)
