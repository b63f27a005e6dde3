"""Attention transfer: a student looks where its teacher looks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deepcompression.distillation.layers import Features, Layers, Watched
from deepcompression.errors import StructureError
from deepcompression.training.method import Context, Method

MODES = ("linear", "bilinear", "trilinear")


@dataclass(eq=False)
class Attention(Method):
    """The loss grows by weight x the mean squared difference of attention maps, summed over pairs of layers.

    A layer's map is the sum over channels of absolute values to a power, a unit vector for each sample. Of two maps of
    unlike sizes the larger is interpolated. Layers that give (batch, units) have units in the place of places.

    Args:
        layers: the student's to the teacher's, by names or patterns; or names that are the same in both.
        weight: above 0; the authors' code has 1000.
        power: above 0; 2 in the paper.
        axis: of channels, -1 where tokens come first.

    Zagoruyko, Komodakis (2017), arXiv 1612.03928, section 3.1.
    """

    name: ClassVar[str] = "attention"
    learns: ClassVar[bool] = True
    layers: Layers = ()
    weight: float = 1000.0
    power: float = 2.0
    axis: int = 1

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Finds the layers, and tries them.

        Raises:
            StructureError: impossible numbers, no teacher, a layer that there is not, or maps that do not go together.
        """
        if not (0 < self.weight < math.inf and 0 < self.power < math.inf):
            raise StructureError(f"attention: expected weight and power above 0, got {self.weight} and {self.power}")
        self._watched = Watched(model, context, self.layers, self.axis, self.name)
        self._sum, self._count = torch.zeros(()), 0
        for pair, features in zip(self._watched.pairs, self._watched.tried(model, context), strict=True):
            shapes = [tuple(one.shape[2:]) or tuple(one.shape[1:]) for one in features]
            unlike = len({one.ndim for one in features}) > 1
            if unlike or (features.student.ndim == 2 and shapes[0] != shapes[1]) or features.student.ndim > 5:
                raise StructureError(
                    f"attention: {pair.student} gives {tuple(features.student.shape)}, the teacher's {pair.teacher} "
                    f"{tuple(features.teacher.shape)}: their maps cannot be compared; name layers with as many axes"
                )
        return []

    def loss(self, loss: Tensor, model: nn.Module, batch: Any, outputs: Any) -> Tensor:
        """The loss, and how far apart student and teacher look."""
        apart = torch.stack([distance(one, self.power) for one in self._watched.take(batch)]).sum()
        self._sum, self._count = self._sum.to(apart.device) + apart.detach(), self._count + 1
        return loss + self.weight * apart.to(loss.device)

    def figures(self, model: nn.Module) -> dict[str, float]:
        """The mean difference of maps since the last epoch, not weighted."""
        mean = float(self._sum) / max(self._count, 1)
        self._sum, self._count = torch.zeros(()), 0
        return {"loss": mean}

    def close(self, model: nn.Module) -> None:
        """Takes hooks away."""
        if hasattr(self, "_watched"):
            self._watched.close()


def distance(features: Features, power: float) -> Tensor:
    """The mean squared difference of two layers' maps; 0-dim float32.

    Args:
        features: (batch, channels, ...) each, with as many axes; or (batch, units).
        power: of absolute values.
    """
    one, other = (_summed(values, power) for values in features)
    smaller = one.shape[1:] if one[0].numel() <= other[0].numel() else other.shape[1:]
    units = [nn.functional.normalize(_resized(values, smaller).flatten(1), dim=1) for values in (one, other)]
    return (units[0] - units[1]).square().mean()


def _summed(values: Tensor, power: float) -> Tensor:
    strength = values.float().abs().pow(power)
    return strength.mean(1) if strength.ndim > 2 else strength


def _resized(values: Tensor, size: torch.Size) -> Tensor:
    if values.shape[1:] == size:
        return values
    mode = MODES[len(size) - 1]
    return nn.functional.interpolate(values[:, None], size=tuple(size), mode=mode, align_corners=False)[:, 0]
