"""Importance of channels by the scales of the normalisation behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from deepcompression.errors import StructureError
from deepcompression.network.names import first_names, join
from deepcompression.network.resizing import Group, Member
from deepcompression.pruning.worth import by_channel, mean_over
from deepcompression.training.method import Context


def scales_of(model: nn.Module) -> list[str]:
    """The first names of all scales of BatchNorm (and InstanceNorm) layers of a model."""
    first = first_names(model)
    norms = [prefix for prefix, module in model.named_modules() if isinstance(module, _NormBase)]
    return list(dict.fromkeys(first[name] for name in (join(one, "weight") for one in norms) if name in first))


class BnScale:
    """Magnitudes of the scales that channels are multiplied by; the mean where several layers normalise them.

    Liu et al. (2017), "Network slimming", arXiv 1708.06519; best where ``bn_l1`` has drawn scales to zero before.
    """

    def __init__(self, context: Context) -> None:
        self.names: frozenset[str] = frozenset()

    def refresh(self, model: nn.Module) -> None:
        """Finds the scales."""
        self.names = frozenset(scales_of(model))

    def fits(self, model: nn.Module, groups: Sequence[Group]) -> None:
        """Raises StructureError where nothing scales the channels of a group."""
        self.refresh(model)
        for group in groups:
            if not self._scales(group):
                raise StructureError(
                    f"{group.makers[0].tensor}: no BatchNorm scales its channels; name it with density: 1, or take "
                    "another criterion than bn_scale"
                )

    def __call__(self, group: Group, state: Mapping[str, Tensor]) -> Tensor:
        """(channels,)."""
        return mean_over(group, {one: by_channel(one, state[one.tensor].abs()) for one in self._scales(group)})

    def _scales(self, group: Group) -> list[Member]:
        return [one for one in group.members if one.role == "along" and one.tensor in self.names]
