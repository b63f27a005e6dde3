"""How each layer of a running model runs, and that as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HEAD = ("layer", "", "form", "bytes", "dense", "codes us", "dense us", "why")
RIGHT = (3, 4, 5, 6)


@dataclass(frozen=True)
class Layer:
    """How a layer runs: its form, the bytes of its weight in memory, and of the dense one, and why.

    Microseconds of a call from codes and of a dense one: None where they were not measured.
    """

    name: str
    kind: str
    form: str
    bytes: int
    dense_bytes: int
    codes_us: float | None
    dense_us: float | None
    why: str

    @property
    def from_codes(self) -> bool:
        """Whether no dense weight is held."""
        return self.form != "dense"


def table(layers: Sequence[Layer]) -> str:
    """A line for each layer, and one for all."""
    held, whole = sum(one.bytes for one in layers), sum(one.dense_bytes for one in layers)
    part = f"1/{whole / held:.1f} of dense" if held else ""
    rows = [HEAD, *map(_row, layers), ("all", "", "", f"{held:,}", f"{whole:,}", "", "", part)]
    wide = [max(len(row[at]) for row in rows) for at in range(len(HEAD))]
    return "\n".join("  ".join(_cells(row, wide)).rstrip() for row in rows)


def _cells(row: tuple[str, ...], wide: Sequence[int]) -> list[str]:
    return [
        cell.rjust(size) if at in RIGHT else cell.ljust(size)
        for at, (cell, size) in enumerate(zip(row, wide, strict=True))
    ]


def _row(one: Layer) -> tuple[str, ...]:
    times = ["" if time is None else f"{time:,.1f}" for time in (one.codes_us, one.dense_us)]
    return (one.name, one.kind, one.form, f"{one.bytes:,}", f"{one.dense_bytes:,}", *times, one.why)
