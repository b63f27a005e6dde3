"""Integers in and out: what a graph takes and gives as uint8, with scales and zero points in the file's metadata."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from deepcompression.export.exported import Array


class End(NamedTuple):
    """The grid of an input or an output: a value is ``(integer - zero) * scale``."""

    scale: float
    zero: int

    def integers(self, values: Array) -> Array:
        """As QuantizeLinear makes them: uint8.

        Args:
            values: float32, any shape.
        """
        steps = np.rint(values / np.float32(self.scale)) + np.float32(self.zero)
        return np.clip(steps, 0, 255).astype(np.uint8)

    def values(self, integers: Array) -> Array:
        """As DequantizeLinear makes them: float32.

        Args:
            integers: uint8, any shape.
        """
        return (integers.astype(np.float32) - np.float32(self.zero)) * np.float32(self.scale)


def tell(model: Any, ends: Mapping[str, End]) -> None:
    """Writes ``NAME.scale`` and ``NAME.zero_point`` of each into a model's metadata.

    Args:
        model: a ``ModelProto``.
        ends: by name.
    """
    for name, end in ends.items():
        for key, value in ((f"{name}.scale", repr(end.scale)), (f"{name}.zero_point", str(end.zero))):
            model.metadata_props.add(key=key, value=value)


def told(metadata: Mapping[str, str], names: Iterable[str]) -> dict[str, End]:
    """The grids that a file tells of its inputs and outputs of integers.

    Args:
        metadata: of the file.
        names: of inputs and outputs that are uint8.

    Raises:
        ValueError: one is no number.
    """
    found = {}
    for name in names:
        if f"{name}.scale" in metadata:
            try:
                end = End(float(metadata[f"{name}.scale"]), int(metadata[f"{name}.zero_point"]))
            except (KeyError, ValueError):
                raise ValueError(f"scale and zero point of {name} in the file are no numbers") from None
            if not (math.isfinite(end.scale) and end.scale > 0 and 0 <= end.zero <= 255):
                raise ValueError(f"scale {end.scale} and zero point {end.zero} of {name} are none")
            found[name] = end
    return found


def integers(ends: Mapping[str, End], names: Sequence[str], values: Sequence[Array]) -> list[Array]:
    """What inputs of integers take in the place of floats; what is uint8 already, and other inputs, as they are.

    Args:
        ends: by name.
        names: of the inputs.
        values: of each, any shape.
    """
    pairs = zip(names, values, strict=True)
    return [ends[name].integers(one) if name in ends and one.dtype != np.uint8 else one for name, one in pairs]


def floats(ends: Mapping[str, End], names: Sequence[str], values: Sequence[Array]) -> list[Array]:
    """What outputs of integers stand for; other outputs as they are.

    Args:
        ends: by name.
        names: of the outputs.
        values: of each, any shape.
    """
    pairs = zip(names, values, strict=True)
    return [ends[name].values(one) if name in ends else one for name, one in pairs]


def note(ends: Mapping[str, End], inputs: list[str]) -> str:
    """For people: how integers are made of values, and values of integers.

    Args:
        ends: by name.
        inputs: the names of those that go in.
    """
    into = [f"{name} = round(value / {end.scale:.9g}) + {end.zero}" for name, end in ends.items() if name in inputs]
    out = [f"value = ({name} - {end.zero}) * {end.scale:.9g}" for name, end in ends.items() if name not in inputs]
    return (
        f"takes uint8 from 0 to 255: {'; '.join(into)}; gives uint8: {'; '.join(out)}; scales and zero points are also "
        "in the file's metadata, as NAME.scale and NAME.zero_point"
    )
