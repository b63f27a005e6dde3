"""Memory of this process, by what is known to have been taken."""

from __future__ import annotations

import numpy as np
from torch import nn

from deepcompression.measure.memory import footprint, parameter_bytes

MB = 1 << 20


def test_what_is_loaded_and_what_is_needed_for_a_moment() -> None:
    """32 MB that stay are resident; 64 more that a call takes and gives back are in the peak alone."""

    def load() -> object:
        kept = np.ones(32 * MB, np.uint8)

        def run() -> int:
            return int(np.full(64 * MB, kept[0], np.uint8)[-1])

        return run

    found = footprint(load)  # type: ignore[arg-type]
    assert found.before > 10 * MB
    assert 30 * MB < found.resident < 48 * MB
    assert 90 * MB < found.peak < 128 * MB


def test_shared_weights_are_in_memory_once() -> None:
    """Tied layers, and a view of another tensor, take no bytes of their own."""
    net = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    assert parameter_bytes(net) == 800
    net[1].weight = net[0].weight
    net.register_buffer("view", net[0].weight.detach()[:5])
    assert parameter_bytes(net) == 400
