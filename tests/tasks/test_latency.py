"""What is said of how long an export takes."""

from __future__ import annotations

import time
from typing import Any, cast

import torch
from torch import nn

from deepcompression.measure.latency import Timing
from tasks import latency


class Waiting(nn.Module):
    """Three milliseconds in which it does not work, as where others have the processor."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Nothing changes."""
        time.sleep(0.003)
        return x


class Session:
    """An export that gives back what it gets."""

    fixed_batch = None

    def __call__(self, arrays: Any) -> Any:
        """Takes no time."""
        return arrays


def test_a_busy_machine_is_told() -> None:
    """Milliseconds that passed while others had the processor are not taken for what a net needs."""
    told = latency.beside_dense(cast(Any, Session()), Waiting(), [torch.zeros(2, 3)])["latency_how"]
    assert "; the machine was busy: of the dense net's" in told
    assert latency._busy(Timing(0.003, 0.003, None, 0.0, 0.002, 3, (0.003,))) == ""
