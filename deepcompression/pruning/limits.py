"""How many channels may stay so that a thin model costs no more than is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from deepcompression.errors import StructureError
from deepcompression.network.channels import channel_groups
from deepcompression.network.resizing import Group
from deepcompression.network.state import normalised, plain_state
from deepcompression.pruning.filters import Choice, Limit, Outputs, chosen, densities, thinned
from deepcompression.pruning.units import Find
from deepcompression.pruning.worth import Worth, ranked

HALVINGS, TINY = 10, 1e-9  # of the densities between which one is looked for; one channel of each group


def choose_within(
    model: nn.Module, limit: Limit, worth: Worth, outputs: Outputs, find: Find = channel_groups, multiple: int = 1
) -> tuple[list[Choice], dict[str, str]]:
    """The channels that stay at the largest density, one for all groups, at which a thin model costs no more.

    Args:
        model: not changed.
        limit: what it may cost.
        worth: what makes channels important, see ``pruning.worth``.
        outputs: what the model gives for some samples.
        find: what goes whole, see ``pruning.units``.
        multiple: as of ``filters.chosen``.

    Raises:
        StructureError: no channels can be removed, or it costs more even with one channel in each group; or a weight
            is NaN or infinite.
    """
    groups, left = find(model, outputs)
    refuse_out_of_reach(model, limit, groups, left, outputs, multiple)
    state = plain_state(model)
    found = {id(one): ranked(one, normalised(state, [each.tensor for each in one.makers]), worth) for one in groups}
    density = density_within(model, limit, groups, lambda group, _: found[id(group)], outputs, multiple)
    return chosen(state, [(group, density) for group in groups], lambda group, _: found[id(group)], multiple), left


def density_within(
    model: nn.Module, limit: Limit, groups: Sequence[Group], worth: Worth, outputs: Outputs, multiple: int = 1
) -> float:
    """The largest density, one for all groups, at which a thin model costs no more than it may.

    Args:
        model: not changed.
        limit: what it may cost; within reach.
        groups: of its channels.
        worth: what makes channels important.
        outputs: what a model gives for some samples.
        multiple: as of ``filters.chosen``.
    """
    state, most = plain_state(model), limit.part * limit.cost(model, outputs)
    low, high = 0.0, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        tried = chosen(state, [(group, middle) for group in groups], worth, multiple)
        low, high = (middle, high) if limit.cost(thinned(model, tried), outputs) <= most else (low, middle)
    return max(low, TINY)


def refuse_out_of_reach(
    model: nn.Module,
    limit: Limit,
    groups: Sequence[Group],
    left: Mapping[str, str],
    outputs: Outputs,
    multiple: int = 1,
) -> None:
    """Raise where no thin model costs as little as is asked for.

    Args:
        model: not changed.
        limit: what it may cost.
        groups: channels that can be removed, see ``network.channels``.
        left: why the channels of other layers cannot, by name.
        outputs: what a model gives for some samples.
        multiple: as of ``filters.chosen``.

    Raises:
        StructureError: no channels can be removed, or it costs more even with as few as can be in each group.
    """
    densities(model, {"default": limit.part}, groups, left)
    thinnest = thinned(model, [Choice(one, tuple(range(min(multiple, one.channels)))) for one in groups])
    least = limit.cost(thinnest, outputs) / max(limit.cost(model, outputs), 1)
    if least > limit.part:
        few = "one channel" if multiple == 1 else f"{multiple} channels"
        raise StructureError(
            f"prune: {limit.key}: {limit.part:g} is out of reach: with {few} in each group {least:.3g} of the "
            f"{limit.unit} stay"
        )
