"""What stands in for classes that a torch checkpoint names: values of numpy are read, and code never runs.

Of such a class nothing is imported or called; its name in the file leads to one of those here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_NUMBERS = "biufc?"


class Beside:
    """Something that is no tensor and is not looked at: a path, a namespace of options."""

    def __new__(cls, *_: object, **__: object) -> Beside:
        """One for whatever it would have been made of."""
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Takes nothing in."""


class Dtype:
    """A dtype of numpy, by its code and byte order."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        """The second of its values is the byte order."""
        self.order = str(state[1]).replace("|", "=")

    def plain(self) -> np.dtype[Any]:
        """The dtype itself.

        Raises:
            ValueError: it is none of numbers.
        """
        found = np.dtype(self.code).newbyteorder(self.order)  # type: ignore[arg-type]
        if found.kind not in _NUMBERS:
            raise ValueError(f"numpy values of {found}, which are no numbers")
        return np.dtype(found)


class Array:
    """An array of numpy, filled when its state comes."""

    def __init__(self) -> None:
        self.values: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        """Version, shape, dtype, whether the first axis runs fastest, and bytes."""
        _, shape, dtype, fortran, raw = state
        flat = np.frombuffer(raw, dtype.plain())
        self.values = flat.reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: object) -> Array:
    return Array()


def _scalar(dtype: Dtype, raw: bytes) -> Array:
    """A number of numpy, as an array without axes."""
    made = Array()
    made.values = np.frombuffer(raw, dtype.plain(), 1).reshape(())
    return made


_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")
_BESIDE = (
    *("argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.timedelta", "uuid.UUID"),
    *(f"pathlib{part}.{kind}" for part in ("", "._local") for kind in ("PosixPath", "WindowsPath", "Path")),
)
STAND_INS: tuple[tuple[Any, str], ...] = (
    *((_reconstruct, f"{core}._reconstruct") for core in _CORES),
    *((_scalar, f"{core}.scalar") for core in _CORES),
    (Dtype, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    *((Beside, name) for name in _BESIDE),
)
