"""N:M sparsity: of every M weights in a row along the inputs at most N are not zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from deepcompression.errors import InvariantError
from deepcompression.network.parametrized import MASK, Holder
from deepcompression.network.state import is_zero
from deepcompression.structure.zeros import ZeroMask


@dataclass(frozen=True)
class NM:
    """Of every ``m`` weights in a row along the inputs (dimension 1) at most ``n`` are not zero."""

    order: ClassVar[int] = MASK
    n: int
    m: int

    def held(self, weight: Tensor) -> Holder:
        """A mask of the zeros that ``weight`` has."""
        return ZeroMask(weight != 0)

    def check(self, name: str, before: Tensor, after: Tensor) -> int:
        """0: zeros are counted by ``zeros``.

        Raises:
            InvariantError: a group of ``m`` has more than ``n``.
        """
        alive = ~is_zero(after)
        inputs = alive.movedim(1, -1) if alive.ndim > 1 else alive
        rest = inputs.shape[-1] % self.m
        padded = torch.nn.functional.pad(inputs, (0, self.m - rest)) if rest else inputs
        most = int(padded.reshape(-1, self.m).sum(1).max()) if padded.numel() else 0
        if most > self.n:
            raise InvariantError(
                f"{name}: {most} of {self.m} weights in a row are not zero, {self.n}:{self.m} allows {self.n}"
            )
        return 0
