"""Compact weights: a penalty while training on tails that widen a grid, before or beside quantization."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network import names
from deepcompression.training.method import Context, Method

UNIFORM = 1.8  # kurtosis of evenly spread values, which a linear grid wastes nothing on; a normal distribution has 3
TINY = 1e-12


@dataclass(eq=False)
class Compact(Method):
    """The loss grows with the tails of weights: a grid of few bits then needs no wide steps for few large weights.

    What is zero counts for nothing. A tensor's weight in the penalty does not depend on its size.

    Args:
        penalty: added to the loss, times the mean over tensors; one for all prunable tensors, or by name pattern.
        by: ``kurtosis``: (kurtosis - target)^2. ``l2``: the mean square, as a multiple of what it was at first.
        target: of the kurtosis; 1.8 is that of a uniform distribution.

    Shkolnik et al. (2020), "Robust quantization: one model to rule them all", arXiv 2002.07686, section 4.
    """

    name: ClassVar[str] = "compact"
    penalty: float | Mapping[str, float] = 1.0
    by: Literal["kurtosis", "l2"] = "kurtosis"
    target: float = UNIFORM

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Takes the first mean squares.

        Raises:
            StructureError: impossible numbers, or a kind of penalty that is not known.
        """
        self._penalties = names.resolve(model, names.table_of(self.penalty))
        for name, penalty in self._penalties.items():
            if not 0 <= penalty < math.inf:
                raise StructureError(f"{name}: compact with penalty {penalty}; expected 0 or more")
        if self.by not in ("kurtosis", "l2"):
            raise StructureError(f"compact: by {self.by!r} is not known; expected kurtosis or l2")
        if not 1 <= self.target < math.inf:
            raise StructureError(f"compact: target {self.target}; no kurtosis is below 1")
        with torch.no_grad():
            self._first = {name: mean_square(_value(model, name)).clamp(min=TINY) for name in self._penalties}
        return []

    def loss(self, loss: Tensor, model: nn.Module, batch: Any, outputs: Any) -> Tensor:
        """The loss, and the mean penalty of all tensors."""
        for name, penalty in self._penalties.items():
            loss = loss + (penalty / len(self._penalties)) * self._of(name, _value(model, name)).to(loss.device)
        return loss

    def figures(self, model: nn.Module) -> dict[str, float]:
        """The mean kurtosis of the tensors, and what the penalties are without their factors."""
        with torch.no_grad():
            values = {name: _value(model, name) for name in self._penalties}
            each = [float(self._of(name, value)) for name, value in values.items()]
            tails = [float(kurtosis(value)) for value in values.values()]
        return {"kurtosis": sum(tails) / max(len(tails), 1), "penalty": sum(each) / max(len(each), 1)}

    def _of(self, name: str, weight: Tensor) -> Tensor:
        if self.by == "l2":
            return mean_square(weight) / self._first[name].to(weight.device)
        return (kurtosis(weight) - self.target).square()


def mean_square(weight: Tensor) -> Tensor:
    """Of the weights that are not zero; 0-dim float32, 0 where there is none."""
    alive = (weight != 0).float()
    return (weight.float().square()).sum() / alive.sum().clamp(min=1)


def kurtosis(weight: Tensor) -> Tensor:
    """The fourth standardised moment of the weights that are not zero; 0-dim float32, 0 where they do not differ."""
    value, alive = weight.float(), (weight != 0).float()
    count = alive.sum().clamp(min=1)
    apart = (value - value.sum() / count) * alive
    square = apart.square()
    variance = square.sum() / count
    return square.square().sum() / count / variance.square().clamp(min=TINY**2)


def _value(model: nn.Module, name: str) -> Tensor:
    """A weight as the forward sees it, with its graph."""
    prefix, _, attribute = name.rpartition(".")
    value: Tensor = getattr(model.get_submodule(prefix), attribute)
    return value
