"""Memory of this process, by what is known to have been taken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import nn

from deepcompression.measure.memory import footprint, parameter_bytes

MB = 1 << 20


def test_what_is_loaded_and_what_is_needed_for_a_moment() -> None:
    """32 MB stay; a call takes 32 more, loading 64: each is in its own figure, and both in the greatest."""

    def load() -> Callable[[], object]:
        kept = np.ones(32 * MB, np.uint8) + np.ones(64 * MB, np.uint8)[0]
        return lambda: np.full(32 * MB, kept[0], np.uint8)[-1]

    found = footprint(load)
    assert 30 * MB < found.resident < 40 * MB
    assert 60 * MB < found.running < 72 * MB
    assert 90 * MB < found.peak < 140 * MB
    assert found.process > found.resident


def test_shared_weights_are_in_memory_once() -> None:
    """Tied layers, and a view of another tensor, take no bytes of their own."""
    net = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    assert parameter_bytes(net) == 800
    net[1].weight = net[0].weight
    net.register_buffer("view", net[0].weight.detach()[:5])
    assert parameter_bytes(net) == 400
