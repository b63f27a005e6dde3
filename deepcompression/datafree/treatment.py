"""What is done to one tensor: how many of its weights stay, and how many values they take."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepcompression.errors import StructureError

MOST_BITS = 12


@dataclass(frozen=True)
class Per:
    """What has a codebook of its own: the tensor, each of its rows, or so many consecutive elements of a row."""

    kind: str = "tensor"
    count: int = 0

    def __str__(self) -> str:
        return f"group:{self.count}" if self.count else self.kind

    def size(self, shape: tuple[int, ...]) -> int:
        """Elements that share a codebook in a tensor of this shape; 0 is all of them."""
        row = row_of(shape)
        if self.kind == "tensor" or len(shape) < 2:
            return 0
        return self.count if self.count and row % self.count == 0 else row


TENSOR = Per()


def row_of(shape: tuple[int, ...]) -> int:
    """Elements of a row: all that one output channel has."""
    size = 1
    for side in shape[1:]:
        size *= side
    return size


def per_of(text: str) -> Per:
    """What `tensor`, `row` or `group:N` says.

    Raises:
        StructureError: it is none of these.
    """
    if text in ("tensor", "row"):
        return Per(text)
    found = re.fullmatch(r"group:([1-9][0-9]{0,9})", text)
    if found is None:
        raise StructureError(f"per {text!r} is not known; expected tensor, row or group:N with N consecutive elements")
    return Per("group", int(found[1]))


@dataclass(frozen=True)
class Treatment:
    """What one tensor gets.

    Attributes:
        density: fraction of its weights that stays.
        bits: weights take 2**bits values, found by k-means; None leaves values as they are.
        per: what has a codebook of its own.
        why: why that is not what was asked for.
        step: in place of bits: weights that are nearest to the same multiple of it take one value, their mean; those
            nearest to 0 become zero.
        weight: what its relative error counts beside those of others, where bytes are allocated.
    """

    density: float = 1.0
    bits: int | None = None
    per: Per = TENSOR
    why: str = ""
    step: float | None = None
    weight: float = 1.0

    @property
    def lossless(self) -> bool:
        """Whether nothing is changed."""
        return self.density == 1 and self.bits is None and self.step is None

    def __str__(self) -> str:
        if self.lossless:
            return "kept"
        parts = [f"density {self.density:g}"] if self.density < 1 else []
        if self.bits is not None:
            parts.append(f"{self.bits} bits" + ("" if self.per.kind == "tensor" else f" a {self.per}"))
        if self.step is not None:
            parts.append(f"steps of {self.step:.2g}")
        return ", ".join(parts)


def check(density: float, bits: int | None) -> None:
    """Raises StructureError where one of these is impossible."""
    if not 0 < density <= 1:
        raise StructureError(f"density {density:g} is impossible; expected a fraction of the weights, above 0, up to 1")
    if bits is not None and (isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= MOST_BITS):
        raise StructureError(f"bits {bits} is impossible; expected a whole number from 1 to {MOST_BITS}")
