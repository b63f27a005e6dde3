"""Allocations that are predicted to be good, tried: by how much each moves what the model gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from deepcompression.allocation.integer_program import Assignment, Choices, candidates, neighbours
from deepcompression.network.names import parameters


def outputs_moved(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], object],
    values: Sequence[Mapping[str, Tensor]],
) -> list[float]:
    """The sum of squared changes of the model's outputs, as a part of the sum of their squares.

    Args:
        model: put into eval mode meanwhile; afterwards as it was.
        batches: of samples.
        forward: the model's outputs for one.
        values: of some of its parameters by name; each in turn stands in their place.
    """
    noise, energy, mode = [0.0] * len(values), 0.0, model.training
    model.eval()
    with torch.no_grad():
        for batch in batches:
            wanted = _floats(forward(model, batch))
            energy += sum(float(one.double().square().sum()) for one in wanted)
            for place, some in enumerate(values):
                with _having(model, some):
                    noise[place] += _apart(wanted, _floats(forward(model, batch)))
    model.train(mode)
    return [one / energy if energy else 0.0 for one in noise]


def tried(
    tensors: Sequence[Choices],
    limit: float,
    moved: Callable[[Sequence[Assignment]], Sequence[float]],
    *,
    ordered: bool = False,
    rounds: int = 4,
) -> list[tuple[Assignment, float]]:
    """Allocations within a limit, the best as predicted first, each with what it moves outputs by.

    Predictions are of small changes, and of each tensor alone. So its neighbours on the front and the same bits
    everywhere are tried too, and then neighbours of what is best, as long as they are better.

    Args:
        tensors: what each can get, costs and is predicted to lose.
        limit: in the unit of the costs.
        moved: what allocations move outputs by.
        ordered: bits must not fall as the trace grows; then no further neighbours are tried.
        rounds: times that neighbours are tried at most.

    Raises:
        StructureError: nothing keeps to the limit, or to the order.
    """
    first = candidates(tensors, limit, ordered=ordered)
    found = list(zip(first, moved(first), strict=True))
    for _ in range(0 if ordered else rounds):
        best, least = min(found, key=lambda one: one[1])
        known = {tuple(one.bits.values()) for one, _ in found}
        fresh = [one for one in neighbours(tensors, best, limit) if tuple(one.bits.values()) not in known]
        if not fresh:
            break
        found += zip(fresh, moved(fresh), strict=True)
        if min(other for _, other in found) >= least:
            break
    return found


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


def _floats(outputs: object) -> list[Tensor]:
    return [one for one in _pytree.tree_leaves(outputs) if isinstance(one, Tensor) and one.is_floating_point()]


def _apart(wanted: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    return sum(float((a.double() - b.double()).square().sum()) for a, b in zip(wanted, got, strict=True))
