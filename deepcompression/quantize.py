"""Precision of codebooks and the rest; ``finetune`` with sharing held trains the centroids before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcompression.errors import StructureError
from deepcompression.structure import normalised, replaced

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Rounded:
    """A rounded state_dict; ``kept``: why tensors stayed, ``merged``: how many centroids became equal."""

    state: dict[str, Tensor]
    kept: dict[str, str]
    merged: dict[str, int]


def round_precision(
    state: Mapping[str, Tensor],
    *,
    shared: Iterable[str] = (),
    codebook: str = "float32",
    rest: str = "float32",
) -> Rounded:
    """``state`` with values that a narrower type holds exactly; tensors keep their own dtype.

    The file then stores them at that precision. Rounding never makes a value non-finite, zero or subnormal:
    such a tensor stays as it is.

    Args:
        state: tensors by name; not changed. Integers and float64 stay.
        shared: tensors whose values are centroids.
        codebook: float32, float16 or bfloat16, for the shared tensors.
        rest: the same, for every other float32 (or narrower) tensor.

    Raises:
        StructureError: an unknown precision, a shared tensor that is missing or not finite.
    """
    for precision in (codebook, rest):
        if precision not in PRECISIONS:
            raise StructureError(f"quantize: precision {precision!r}; expected one of {', '.join(PRECISIONS)}")
    shared = list(shared)
    clean, kept, merged = normalised(state, shared), {}, {}
    books = {id(clean[name]) for name in shared}  # by object: tied names are one codebook
    changed = {}
    for name, tensor in clean.items():
        target = PRECISIONS[codebook if id(tensor) in books else rest]
        if not _narrows(tensor, target):
            continue
        rounded = tensor.to(target).to(tensor.dtype)
        reason = _harm(tensor, rounded, target)
        if reason:
            kept[name] = reason
        else:
            changed[name] = rounded
        if name in shared and not reason:
            merged[name] = len(torch.unique(tensor)) - len(torch.unique(rounded))
    return Rounded(replaced(clean, changed), kept, merged)


def _narrows(tensor: Tensor, target: torch.dtype) -> bool:
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return False
    return torch.finfo(target).bits < torch.finfo(tensor.dtype).bits


def _harm(before: Tensor, after: Tensor, target: torch.dtype) -> str:
    """What rounding would do to a value that it must not do; empty if nothing."""
    finite = torch.isfinite(before)
    if bool((finite & ~torch.isfinite(after)).any()):
        return f"a value would overflow in {str(target).removeprefix('torch.')}"
    tiny = torch.finfo(target).smallest_normal
    if bool((finite & (before != 0) & (after.abs() < tiny)).any()):
        return f"a value would become zero or subnormal in {str(target).removeprefix('torch.')}"
    return ""
