"""Allocations that are predicted to be good, tried: by how much each moves what the model gives."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

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
