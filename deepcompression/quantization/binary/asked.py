"""What is asked of a binarization: of weights, of activations, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Bits = int | Mapping[str, int]


@dataclass(frozen=True)
class Weights:
    """How weights are binarized.

    Args:
        kind: ``xnor``: signs times the mean magnitude of each output filter; ``dorefa``: of one bit signs times the
            layer's mean magnitude, of more 2^bits values from -1 to 1.
        bits: 1, of dorefa to 8; of all layers but the first and the last, or by name pattern.
    """

    kind: str = "xnor"
    bits: Bits = 1


@dataclass(frozen=True)
class Activations:
    """How what goes into layers is binarized.

    Args:
        kind: ``sign``: -1 or 1; ``dorefa``: 2^bits values from 0 to 1; ``scaled_threshold``: a learned scale above a
            learned threshold of each channel, else 0.
        bits: as of weights, by the names of the layers' weights.
        samples: how many of the training split are looked at, whether anything would be left of them.
    """

    kind: str = "sign"
    bits: Bits = 1
    samples: int = 512


@dataclass(frozen=True)
class Phases:
    """Fractions of the training from which on activations are binary, weights are, and nothing decays any more."""

    activations: float = 0.0
    weights: float = 0.0
    decay: float = 1.0
