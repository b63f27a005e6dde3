"""Patterns in which zeros lie, by their words: ``2:4``, ``1x4``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from deepcompression.errors import StructureError
from deepcompression.structure.n_m import NM

__all__ = ["NM", "Block", "pattern_of"]

N_M, BLOCK = re.compile(r"([1-9]\d*):([1-9]\d*)"), re.compile(r"([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True)
class Block:
    """So many rows and columns of a weight (out, all else); ``columns`` None: all places of a kernel, of one input."""

    rows: int
    columns: int | None

    def within(self, shape: Sequence[int]) -> tuple[int, int]:
        """Its rows and columns in a weight of this shape."""
        return self.rows, math.prod(shape[2:]) if self.columns is None else self.columns


def pattern_of(word: str) -> NM | Block:
    """What ``2:4``, ``1x4`` or ``kernel`` stands for.

    Raises:
        StructureError: no pattern, one that prunes nothing, or a block of one weight.
    """
    if word == "kernel":
        return Block(1, None)
    if (found := N_M.fullmatch(word)) and int(found[1]) < int(found[2]):
        return NM(int(found[1]), int(found[2]))
    if (found := BLOCK.fullmatch(word)) and int(found[1]) * int(found[2]) > 1:
        return Block(int(found[1]), int(found[2]))
    raise StructureError(
        f"prune: granularity {word!r} is no pattern; expected N:M with N below M, such as 2:4, or ROWSxCOLUMNS of more "
        "than one weight, such as 1x4, or kernel"
    )
