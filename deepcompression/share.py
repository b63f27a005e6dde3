"""Weight sharing: each layer's non-zero weights take the values of a small codebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcompression.errors import StructureError
from deepcompression.kmeans import Init, kmeans1d
from deepcompression.structure import normalised, replaced

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class LayerSharing:
    """What sharing did to one tensor; ``root_mean_square_error`` is over its non-zero weights."""

    name: str
    bits: int
    centroids: list[float]
    nonzero: int
    squared_error: float
    root_mean_square_error: float


@dataclass(frozen=True)
class SharedState:
    """A state_dict whose named tensors hold few values, and the account of each."""

    state: dict[str, Tensor]
    layers: list[LayerSharing]


def share(
    state: Mapping[str, Tensor],
    bits: Mapping[str, int],
    *,
    init: Init = "linear",
    seed: int = 0,
    padding: Mapping[str, int] | None = None,
) -> SharedState:
    """``state`` with the non-zero weights of each named tensor clustered to at most 2**bits values.

    Zeros stay zeros, no weight becomes zero, tensors keep their dtype (centroids are rounded to it).

    Args:
        state: tensors by name, float32, float16 or bfloat16, any shapes; not changed.
        bits: tensor name -> 1 to 16.
        init: ``linear``, ``density``, ``random`` (the paper's three), or ``optimal``.
        seed: of ``random``.
        padding: tensor name -> row that is left alone.

    Raises:
        StructureError: bits out of range, unknown init; a tensor missing, not finite, or of another dtype.

    Section 3 of Han, Mao, Dally (2016), arXiv 1510.00149.
    """
    for name, width in bits.items():
        if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= 16:
            raise StructureError(f"{name}: bits {width!r} is impossible; expected a whole number from 1 to 16")
    clean = normalised(state, bits)
    shared, layers = {}, []
    for number, (name, width) in enumerate(bits.items()):
        row = (padding or {}).get(name)
        shared[name], layer = _share_one(name, clean[name], width, init, seed + number, row)
        layers.append(layer)
    return SharedState(replaced(clean, shared), layers)


def _share_one(
    name: str, weight: Tensor, bits: int, init: Init, seed: int, padding_row: int | None
) -> tuple[Tensor, LayerSharing]:
    if weight.dtype not in DTYPES:
        raise StructureError(f"{name}: sharing takes float32, float16 and bfloat16, got {weight.dtype}")
    chosen = weight != 0
    if padding_row is not None:
        chosen[padding_row] = False
    values = weight[chosen]
    if values.numel() == 0:
        return weight, LayerSharing(name, bits, [], 0, 0.0, 0.0)
    wide = values.float().numpy()
    book = kmeans1d(wide, 2**bits, init=init, seed=seed)
    centroids = _without_zero(torch.from_numpy(book.centroids).to(weight.dtype), wide, book.codes)
    shared = weight.clone()
    shared[chosen] = centroids[torch.from_numpy(book.codes.astype(np.int32))]
    gap = shared[chosen].double() - values.double()
    error = float(gap @ gap)
    used = torch.unique(centroids).float().tolist()
    return shared, LayerSharing(name, bits, used, len(wide), error, (error / len(wide)) ** 0.5)


def _without_zero(centroids: Tensor, values: NDArray[Any], codes: NDArray[Any]) -> Tensor:
    """A centroid that is zero would prune its weights: it takes the value of its smallest weight instead."""
    for code in (centroids == 0).nonzero().reshape(-1).tolist():
        members = values[codes == code]
        if len(members):
            centroids[code] = float(members[np.argmin(np.abs(members))])
    return centroids
