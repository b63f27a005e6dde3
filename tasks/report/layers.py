"""The tensors of a file, what each takes, and of what that is made."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple


class Bits(NamedTuple):
    """Bits for each weight that is not zero; None where there is none.

    ``fixed`` is with codes and gaps of fixed width, ``coded`` as they stand in the file.
    """

    fixed_weight: float | None
    coded_weight: float | None
    fixed_index: float | None
    coded_index: float | None
    entropy: float | None


@dataclass(frozen=True)
class Layer:
    """A tensor, or all of them, in the file."""

    name: str
    shape: str
    method: str
    weights: int
    kept: int
    bits: Bits
    overhead_bytes: int
    bytes: int
    ratio: float | None
    same_as: str | None = None
    axes: int = 1
    dense_bytes: int = 0

    @property
    def is_vector(self) -> bool:
        """Whether it is no weight of a layer: a bias, a norm's, a counter."""
        return self.axes < 2

    @property
    def density(self) -> float | None:
        """The share of weights that are not zero."""
        return self.kept / self.weights if self.weights else None


def layer_table(
    coded: Mapping[str, Any], fixed: Mapping[str, Any], summary: Mapping[str, Any]
) -> tuple[list[Layer], Layer]:
    """A row a tensor, and the row of the whole file: its bytes are the rows' and the header's.

    Args:
        coded: what ``deepcompression.inspect`` says of the file.
        fixed: the same of the same tensors without Huffman coding.
        summary: has ``ratio``.
    """
    pairs = list(zip(coded["tensors"], fixed["tensors"], strict=True))
    layers = [_layer(after, before) for after, before in pairs]
    own = [(after, before) for after, before in pairs if after["same_as"] is None]
    kept = sum(_kept(after) for after, _ in own)
    total = Layer(
        "all tensors",
        "",
        "",
        sum(math.prod(after["shape"]) for after, _ in own),
        kept,
        _bits([(before, after) for after, before in own], kept),
        _overhead([after for after, _ in own]) + coded["header_bytes"],
        coded["file_bytes"],
        summary["ratio"],
    )
    return layers, total


def _layer(after: Mapping[str, Any], before: Mapping[str, Any]) -> Layer:
    from deepcompression.codec.dtypes import DTYPES

    kind, count = DTYPES[after["dtype"]], math.prod(after["shape"])
    dense = count * (min(kind.itemsize, 4) if kind.floating else kind.itemsize)
    return Layer(
        after["name"],
        " × ".join(map(str, after["shape"])) or "scalar",
        after["method"],
        count,
        _kept(after),
        _bits([(before, after)], 0 if after["same_as"] is not None else _kept(after)),
        _overhead([after]),
        after["bytes"],
        dense / after["bytes"] if after["bytes"] else None,
        after["same_as"],
        len(after["shape"]),
        dense,
    )


def _bits(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], kept: int) -> Bits:
    """Of (fixed, coded) descriptions of tensors that have ``kept`` non-zero weights together."""
    counts = [
        *(sum(pair[which][part] for pair in pairs) for part in ("values", "positions") for which in (0, 1)),
        sum(coded["entropy_bytes"] for _, coded in pairs),
    ]
    return Bits(*(8 * count / kept if kept else None for count in counts))


def _kept(tensor: Mapping[str, Any]) -> int:
    return round(float(tensor["density"]) * int(math.prod(tensor["shape"])))


def _overhead(tensors: Sequence[Mapping[str, Any]]) -> int:
    return sum(int(one["codebook"] + one["table"]) for one in tensors)


def fixed_width(file: Path) -> dict[str, Any]:
    """What ``inspect`` says of the file's tensors without Huffman coding."""
    import deepcompression

    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "packed.dcz"
        deepcompression.save(deepcompression.load(file, raw=True), packed, coder="packed")
        return deepcompression.inspect(packed)
