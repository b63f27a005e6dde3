"""What every target says of a file that it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Held:
    """How one tensor lies in the file: in which form, in how many bytes, and in how many it would lie as it is."""

    tensor: str
    form: str
    bytes: int
    dense_bytes: int


@dataclass(frozen=True)
class Exported:
    """A file, and what was measured of it.

    Args:
        bytes: of the file.
        float_bytes: of the file that PyTorch's own exporter makes of the same model.
        max_difference: the largest difference of an output in the target's runtime to PyTorch's.
        tensors: those of the model's tensors that are large enough to be looked at.
    """

    bytes: int
    float_bytes: int
    max_difference: float
    tensors: Sequence[Held]
