"""What a binarization reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BinarizedWeights:
    """A tensor in its few values: the least and the greatest scale of it, the part that is not 0 and that is above."""

    name: str
    kind: str
    bits: int
    scales: tuple[float, float]
    density: float
    positive: float


@dataclass(frozen=True)
class BinarizedInput:
    """A layer's input in its few values: the largest of them."""

    site: str
    kind: str
    bits: int
    largest: float
