"""Whether structure only became coarser from one state to the next, and what was left alone stayed as it was."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcompression.errors import InvariantError
from deepcompression.network.state import bits_of
from deepcompression.structure.constraints import SHARED, ZEROS, Structure, constraint, kind_of


@dataclass(frozen=True)
class Coarsened:
    """How structure grew: weights that became zero, and groups of equal weights that merged into others."""

    new_zeros: int
    merged_groups: int


def check(before: Mapping[str, Tensor], after: Mapping[str, Tensor], structure: Structure) -> Coarsened:
    """Makes sure that structure only became coarser, from one state_dict to the next.

    Args:
        before: tensors that had structure.
        after: the same tensors now.
        structure: what must be true of ``after``; zeros and sharing are those that ``before`` has.

    Raises:
        InvariantError: names the tensor in which a zero came alive, a group split, everything became zero, or another
            constraint is broken.
    """
    grown = dict.fromkeys((ZEROS, SHARED), 0)
    for name, words in structure.items():
        for word in words:
            counted = constraint(word).check(name, before[name], after[name])
            grown[kind_of(word)] = grown.get(kind_of(word), 0) + counted
    return Coarsened(grown[ZEROS], grown[SHARED])


def refuse_changes(before: Mapping[str, Tensor], after: Mapping[str, Tensor], selected: Collection[str]) -> None:
    """Makes sure that every tensor but the ``selected`` ones has the bits that it had.

    Args:
        before: the state that a stage was given.
        after: the one that it made; a tied tensor is one object under all of its names.
        selected: names that it was to change; what is tied to them changes with them.

    Raises:
        InvariantError: names a tensor that changed, came or went.
    """
    strange = sorted(set(before) ^ set(after))
    if strange:
        raise InvariantError(f"{strange[0]}: is in only one of the states before and after the stage")
    meant = {id(after[name]) for name in selected if name in after}
    for name, tensor in before.items():
        if id(after[name]) not in meant and not _same(tensor, after[name]):
            raise InvariantError(f"{name}: changed, although the stage did not select it")


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and torch.equal(bits_of(one), bits_of(other))
