"""Sparse scales of BatchNorm while a model trains, by which channels are pruned afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.pruning.bn_scale import scales_of
from deepcompression.structure.hold import held_state
from deepcompression.training.method import Account, Context, Method

SMALL = 0.01  # of the largest scale of its layer: smaller ones are told as such


@dataclass(eq=False)
class BnL1(Method):
    """The loss grows by ``penalty`` times the sum of the magnitudes of all scales of BatchNorm layers.

    Scales of channels that matter little go to zero, or near it: ``prune`` with ``criterion: bn_scale`` finds these,
    in a stage behind or beside it.

    Args:
        penalty: 0 or more.

    Liu et al. (2017), "Network slimming", arXiv 1708.06519, equation 1.
    """

    name: ClassVar[str] = "bn_l1"
    penalty: float = 1e-4

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Finds the scales.

        Raises:
            StructureError: there are none, or the penalty is impossible.
        """
        if not 0 <= self.penalty < math.inf:
            raise StructureError(f"bn_l1: penalty {self.penalty}; expected 0 or more")
        self._names = scales_of(model)
        if not self._names:
            raise StructureError("bn_l1: the model has no BatchNorm with scales; leave it out")
        return []

    def loss(self, loss: Tensor, model: nn.Module, batch: Any, outputs: Any) -> Tensor:
        """The loss, and the penalty."""
        scales = [model.get_submodule(name.rpartition(".")[0]).weight for name in self._names]
        total = torch.stack([one.abs().sum().to(loss.device) for one in scales]).sum()  # type: ignore[operator]
        return loss + self.penalty * total

    def figures(self, model: nn.Module) -> dict[str, float]:
        """The part of all scales that are small beside the largest one of their layer."""
        scales = [one.abs() for one in held_state(model, self._names).values()]
        small = sum(int((one <= SMALL * one.max()).sum()) for one in scales)
        return {"small": small / sum(one.numel() for one in scales)}

    def finish(self, model: nn.Module) -> Account:
        """How many scales are small."""
        return Account(report=self.figures(model))
