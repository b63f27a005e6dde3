"""One price of a bit for all layers, such that their coded bytes keep to a limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcompression.reconstruction.importance import Importance
from deepcompression.reconstruction.layer import Wanted, important
from deepcompression.reconstruction.values import Method
from deepcompression.structure.rows import rows_of

POINTS = 60  # prices that are tried
DAMPED = 0.05  # part of the mean variance that each input has at least
SOME = 1 << 16  # weights of a tensor that are looked at
FARTHEST = 16.0  # times as dear, or as cheap, as at first: steps of four times the size
PRIOR = 0.02  # of the limit: bytes that are taken to be as predicted before any layer is done


@dataclass(frozen=True)
class Curve:
    """Bytes of a tensor (p,) at prices (p,), rising, by the entropy of integers as fine as the price is worth."""

    prices: Tensor
    sizes: Tensor

    def at(self, price: float) -> float:
        """Bytes at a price, between those that were tried."""
        place = float(torch.searchsorted(self.prices, price))
        upper = min(max(int(place), 1), len(self.prices) - 1)
        low, high = (math.log(float(self.prices[one])) for one in (upper - 1, upper))
        part = min(max((math.log(price) - low) / (high - low), 0.0), 1.0)
        return float(self.sizes[upper - 1] * (1 - part) + self.sizes[upper] * part)


def curve(weights: Tensor, importance: Importance, prices: Tensor, bits: int, method: Method) -> Curve:
    """What a tensor takes at each price.

    Args:
        weights: (out, n) float64.
        importance: of its outputs.
        prices: (p,) of a bit, rising.
        bits: of an integer at most.
        method: linear, or kmeans, whose values take room in the file.
    """
    groups, inputs = importance.inputs.shape
    parts = weights.reshape(groups, -1, inputs)
    outputs = important(importance.outputs, len(weights)).reshape(groups, -1, 1)
    varied = importance.inputs + DAMPED * importance.inputs.mean()
    cost = math.exp(float((outputs * varied[:, None]).clamp_min(1e-300).log().mean()))
    widest = float(parts.abs().max())
    some = weights.reshape(-1)[:: max(weights.numel() // SOME, 1)]
    sizes = []
    for price in prices.tolist():
        step = min(max(math.sqrt(price * 6 / math.log(2) / cost), widest / ((1 << (bits - 1)) - 1)), 4 * widest)
        each = 4.0 if method == "kmeans" else 0.5
        sizes.append(_bytes((some / step).round(), weights.numel(), each))
    return Curve(prices, torch.tensor(sizes, dtype=torch.float64))


def _bytes(integers: Tensor, count: int, each: float) -> float:
    """Of so many like these, by entropy, and ``each`` of the values."""
    counts = torch.bincount((integers - integers.min()).long()).double()
    share = counts[counts > 0] / len(integers)
    return float(-(share * share.log2()).sum()) * count / 8 + len(share) * each + 8


@dataclass(frozen=True)
class Budget:
    """Bytes for some tensors together, and their curves by name."""

    limit: float
    curves: Mapping[str, Curve]

    def room(self, name: str, done: Mapping[str, tuple[float, float]]) -> float | None:
        """Bytes that are left for a tensor, if it is the last one of all.

        Args:
            name: of the tensor.
            done: as of ``price``.
        """
        spent = sum(size for one, (_, size) in done.items() if one in self.curves)
        return self.limit - spent if set(self.curves) - set(done) == {name} else None

    def price(self, done: Mapping[str, tuple[float, float]]) -> float:
        """Of a bit, for the tensors that are still to come.

        Args:
            done: by name, at which price others were coded, and how many bytes they take.
        """
        spent = sum(size for _, size in done.values())
        predicted = sum(self.curves[name].at(price) for name, (price, _) in done.items())
        factor = (spent + PRIOR * self.limit) / (predicted + PRIOR * self.limit)
        rest = [one for name, one in self.curves.items() if name not in done]
        prices = next(iter(self.curves.values())).prices
        low, high = math.log(float(prices[0])), math.log(float(prices[-1]))
        for _ in range(50):
            middle = (low + high) / 2
            if factor * sum(one.at(math.exp(middle)) for one in rest) > self.limit - spent:
                low = middle
            else:
                high = middle
        return self.bounded(math.exp(high), done)

    def bounded(self, price: float, done: Mapping[str, tuple[float, float]]) -> float:
        """A price not far from that of the first tensor: what is last, and small, cannot make up for all the others.

        Args:
            price: of a bit.
            done: as of ``price``.
        """
        first = next((known for name, (known, _) in done.items() if name in self.curves), price)
        return min(max(price, first / FARTHEST), first * FARTHEST)


def budget_of(
    weights: Mapping[str, Tensor], wanted: Mapping[str, Wanted], importances: Mapping[str, Importance], limit: float
) -> Budget:
    """What tensors take at every price, and may take together.

    Args:
        weights: by name, in their shapes.
        wanted: what becomes of them.
        importances: of their outputs.
        limit: bytes of all.
    """
    matrices = {
        name: rows_of(one, int(len(importances[name].outputs) != len(one))).double() for name, one in weights.items()
    }
    prices = ladder(matrices, importances)
    return Budget(
        limit,
        {
            name: curve(one, importances[name], prices, wanted[name].bits or 8, wanted[name].method)
            for name, one in matrices.items()
        },
    )


def ladder(weights: Mapping[str, Tensor], importances: Mapping[str, Importance]) -> Tensor:
    """Prices from one at which nothing is lost to one at which nothing is left."""
    costs = [
        float(importances[name].outputs.mean() * importances[name].inputs.mean() * one.square().mean())
        for name, one in weights.items()
    ]
    top = max(max(costs), 1e-30)
    return torch.logspace(math.log10(top) - 12, math.log10(top) + 1, POINTS, dtype=torch.float64)
