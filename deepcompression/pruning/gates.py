"""What gates of single weights have in common, however they learn: the noise of a step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor

RARE = 1e-6  # what is drawn keeps so far from 0 and 1


class Gates(Protocol):
    """Holds the ``noise`` of its gates, any shape, float32."""

    noise: Tensor


@torch.no_grad()
def draw(held: Iterable[Gates], seed: int, step: int) -> None:
    """Logistic noise for one step, logit of u, uniform: the same after a kill, and however often gates are looked at.

    Args:
        held: in an order that is always the same.
        seed: of the training.
        step: its number.
    """
    generators: dict[torch.device, torch.Generator] = {}
    for one in held:
        device = one.noise.device
        if device not in generators:
            generators[device] = torch.Generator(device).manual_seed((seed * 1_000_003 + step) % 2**63)
        one.noise.copy_(logistic(one.noise.shape, generators[device]))


def logistic(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Logit of uniform numbers, float32, on the generator's device.

    Args:
        shape: of the result.
        generator: that they are drawn from.
    """
    u = torch.rand(shape, generator=generator, device=generator.device).clamp_(RARE, 1 - RARE)
    return u.log() - (1 - u).log()
