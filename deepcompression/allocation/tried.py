"""Allocations that are predicted to be good, tried on samples."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.allocation.hawq import Loss
from deepcompression.allocation.integer_program import Assignment, Choices, candidates, neighbours
from deepcompression.network.names import parameters

CLEARLY = 0.5


def mean_losses(
    model: nn.Module, losses: Sequence[tuple[Loss, int]], values: Sequence[Mapping[str, Tensor]]
) -> list[float]:
    """What the model loses with other values of some of its parameters.

    Args:
        model: put into eval mode meanwhile; afterwards as it was.
        losses: means over some samples, and how many those are.
        values: by name of the parameter; each in turn stands in their place.
    """
    total, mode = sum(count for _, count in losses), model.training
    model.eval()
    found = []
    with torch.no_grad():
        for some in values:
            with _having(model, some):
                found.append(math.fsum(float(loss(model)) * count / total for loss, count in losses))
    model.train(mode)
    return found


def divergence(forward: Callable[[nn.Module, Any], Tensor], batch: Any, dense: Tensor, model: nn.Module) -> Tensor:
    """The Kullback-Leibler divergence of the softmax of a model's logits from that of the dense model's, 0-dim.

    Args:
        forward: logits (n, classes, ...) of a model for a batch.
        batch: of samples.
        dense: the dense model's logits for it.
        model: that is compared.
    """
    logits = forward(model, batch).log_softmax(1)
    return nn.functional.kl_div(logits, dense.log_softmax(1), log_target=True, reduction="batchmean")


def tried(
    tensors: Sequence[Choices],
    limit: float,
    lost: Callable[[Sequence[Assignment]], Sequence[float]],
    *,
    ordered: bool = False,
    rounds: int = 4,
) -> list[tuple[Assignment, float]]:
    """Allocations within a limit, the best as predicted first, each with what it loses.

    Predictions are of small changes, and of each tensor alone. So its neighbours on the front and the same bits
    everywhere are tried too, and then neighbours of what is best, as long as they are better.

    Args:
        tensors: what each can get, costs and is predicted to lose.
        limit: in the unit of the costs.
        lost: what allocations lose when they are tried.
        ordered: bits must not fall as the trace grows; then no further neighbours are tried.
        rounds: times that neighbours are tried at most.

    Raises:
        StructureError: nothing keeps to the limit, or to the order.
    """
    first = candidates(tensors, limit, ordered=ordered)
    found = list(zip(first, lost(first), strict=True))
    for _ in range(0 if ordered else rounds):
        best, least = min(found, key=lambda one: one[1])
        known = {tuple(one.bits.values()) for one, _ in found}
        fresh = [one for one in neighbours(tensors, best, limit) if tuple(one.bits.values()) not in known]
        if not fresh:
            break
        found += zip(fresh, lost(fresh), strict=True)
        if min(other for _, other in found) >= least:
            break
    return found


def taken(found: Sequence[tuple[Assignment, float]]) -> Assignment:
    """What is predicted best (the first), unless another loses less than half of it: what is nearer may be chance."""
    best, least = min(found, key=lambda one: one[1])
    return best if least < CLEARLY * found[0][1] else found[0][0]


@contextlib.contextmanager
def _having(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """While the block runs, parameters have other values."""
    own = {name: one for name, one in parameters(model).items() if name in values}
    before = {name: one.detach().clone() for name, one in own.items()}
    try:
        for name, one in own.items():
            one.copy_(values[name])
        yield
    finally:
        for name, one in own.items():
            one.copy_(before[name])
