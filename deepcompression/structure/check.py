"""Whether structure only became coarser from one state to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcompression.errors import InvariantError
from deepcompression.network.state import bits_of, is_zero


@dataclass(frozen=True)
class Coarsened:
    """How structure grew: weights that became zero, and groups of equal weights that merged into others."""

    new_zeros: int
    merged_groups: int


def check(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], *, zeros: Sequence[str], shared: Sequence[str]
) -> Coarsened:
    """Makes sure that structure only became coarser, from one state_dict to the next.

    Args:
        before: tensors that had structure.
        after: the same tensors now.
        zeros: names whose zeros must still be zeros (the bit pattern +0.0).
        shared: names whose equal weights must still be equal.

    Raises:
        InvariantError: names the tensor in which a zero came alive, a group split, or everything became zero.
    """
    grown = sum(_new_zeros(name, is_zero(before[name]), is_zero(after[name])) for name in zeros)
    merged = sum(_merged_groups(name, bits_of(before[name]), bits_of(after[name])) for name in shared)
    return Coarsened(grown, merged)


def _new_zeros(name: str, was: Tensor, now: Tensor) -> int:
    alive = int((was & ~now).sum())
    if alive:
        raise InvariantError(f"{name}: {alive} pruned weights are no longer zero")
    if bool(now.all()) and not bool(was.all()):
        raise InvariantError(f"{name}: every weight became zero")
    return int(now.sum() - was.sum())


def _merged_groups(name: str, before: Tensor, after: Tensor) -> int:
    """How many groups of equal weights joined others; each group must still be one value, but for those now zero."""
    groups, index = torch.unique(before.reshape(-1), return_inverse=True)
    now = after.reshape(-1)
    stays = (now != 0) | (before.reshape(-1) == 0)
    index, now = index[stays], now[stays]
    leader = now.new_zeros(len(groups))
    leader[index] = now
    if not torch.equal(leader[index], now):
        raise InvariantError(f"{name}: weights that shared a value no longer do")
    return len(groups) - len(torch.unique(leader))
