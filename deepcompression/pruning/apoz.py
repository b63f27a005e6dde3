"""Importance of channels by how often they are not zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network.names import is_layer
from deepcompression.network.resizing import Group, Member
from deepcompression.pruning.inputs import mean_inputs
from deepcompression.pruning.worth import by_channel, mean_over
from deepcompression.training.method import Context

TAKING = ("in", "depthwise")  # roles of members


class Apoz:
    """1 less the average part of zeros (APoZ) in what layers take in of a channel, on some samples.

    The mean where several layers take it in. Behind no ReLU nothing is zero, and all channels are alike.

    Hu, Peng, Tai, Tang (2016), "Network trimming", arXiv 1607.03250.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.alive: dict[str, Tensor] = {}

    def refresh(self, model: nn.Module) -> None:
        """Counts anew, with the model's present weights."""
        found = mean_inputs(model, self.context, "criterion apoz", lambda inputs: (inputs != 0).float())
        self.alive = {name: one.cpu() for name, one in found.items()}

    def fits(self, model: nn.Module, groups: Sequence[Group]) -> None:
        """Raises StructureError where no Linear or convolution takes in the channels of a group."""
        for group in groups:
            if not any(is_layer(model.get_submodule(one.module)) for one in group.members if one.role in TAKING):
                raise StructureError(
                    f"{group.makers[0].tensor}: no Linear or convolution takes its channels in, and criterion apoz "
                    "counts zeros there; name it with density: 1, or take another criterion"
                )

    def __call__(self, group: Group, state: Mapping[str, Tensor]) -> Tensor:
        """(channels,)."""
        return mean_over(group, {one: self._of(one, state[one.tensor]) for one in self._takers(group)})

    def _takers(self, group: Group) -> list[Member]:
        return [one for one in group.members if one.role in TAKING and one.tensor in self.alive]

    def _of(self, member: Member, weight: Tensor) -> Tensor:
        met = self.alive[member.tensor].expand(weight.shape).movedim(member.axis, 0)
        return by_channel(member, met.flatten(1).double().mean(1))
