"""What every target says of a file that it wrote, and how such a file is run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

Array = NDArray[Any]


class Session(Protocol):
    """A file, opened in its own runtime."""

    fixed_batch: int | None
    """How many samples a call takes; None where it takes any number."""

    def __call__(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs, in the order of the PyTorch model's tensors.

        Args:
            inputs: each (batch, ...), in the order of the model's arguments.
        """


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
        bytes: of the file, or of all in the folder; of sources, of the data that go to the machine.
        float_bytes: of the file that PyTorch's own exporter makes of the same model; of sources, of its parameters.
        max_difference: the largest difference of an output in the target's runtime to PyTorch's; NaN where that is not
            on this machine.
        tensors: those of the model's tensors that are large enough to be looked at.
        notes: what a user should know: which ops stayed float and why, what was left out.
        integers: whether it computes with integers, so that outputs differ by more than float rounding.
    """

    bytes: int
    float_bytes: int
    max_difference: float
    tensors: Sequence[Held]
    notes: Sequence[str] = ()
    integers: bool = False
