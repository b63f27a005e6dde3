"""Weight sharing: each layer's non-zero weights take the values of a small codebook."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcompression.errors import StructureError
from deepcompression.network.state import normalised, replaced
from deepcompression.sharing.entropy_constrained import rate_codebook
from deepcompression.sharing.kmeans import Codebook, Init, kmeans1d
from deepcompression.sharing.nearest import uniform
from deepcompression.sharing.sklearn_kmeans import sklearn_kmeans

Solver = Literal["own", "sklearn", "uniform"]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class LayerSharing:
    """What sharing did to one tensor; ``root_mean_square_error`` is over the weights that were not zero before."""

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
    solver: Solver = "own",
    rate: Mapping[str, float] | float = 0.0,
    seed: int = 0,
    padding: Mapping[str, int] | None = None,
) -> SharedState:
    """``state`` with the non-zero weights of each named tensor clustered to at most 2**bits values.

    Zeros stay zeros, tensors keep their dtype (centroids are rounded to it). Without a rate no weight becomes zero;
    with one, values and zeros are those for which squared error + lambda x coded bits is least.

    Args:
        state: tensors by name, any shapes; not changed. float64 is clustered by its float32 values.
        bits: tensor name -> 1 to 16.
        init: ``linear``, ``density``, ``random`` (the paper's three), or ``optimal``; with a rate always the last.
        solver: what finds the values where there is no rate: ``own`` (``kmeans1d``), ``sklearn`` (its KMeans, for
            reference), or ``uniform``: evenly spaced between the least and the greatest, as ``linear`` begins.
        rate: see ``rate_codebook``; of all tensors, or by name.
        seed: of ``random``.
        padding: tensor name -> row that is left alone.

    Raises:
        StructureError: bits or rate out of range, unknown init; a tensor missing, not finite, or of another dtype, or
            one that its rate would empty.

    Section 3 of Han, Mao, Dally (2016), arXiv 1510.00149.
    """
    check_bits(bits)
    rates = rates_of(bits, rate)
    clean = normalised(state, bits)
    shared, layers = {}, []
    for number, (name, width) in enumerate(bits.items()):
        weight = clean[name]
        if weight.dtype not in DTYPES:
            raise StructureError(f"{name}: sharing takes float32, float16, bfloat16 and float64, got {weight.dtype}")
        chosen = weight != 0
        if name in (padding or {}):
            chosen[(padding or {})[name]] = False
        shared[name] = weight.clone()
        if chosen.any():
            drawn = _by_rate(name, weight, chosen, width, rates[name]) if rates[name] else None
            shared[name][chosen] = (
                _by_error(weight[chosen], width, init, solver, seed + number) if drawn is None else drawn
            )
        layers.append(account(name, width, weight[chosen], shared[name][chosen]))
    return SharedState(replaced(clean, shared), layers)


def check_bits(bits: Mapping[str, int]) -> None:
    """Raises StructureError unless each is a whole number from 1 to 16."""
    for name, width in bits.items():
        if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= 16:
            raise StructureError(f"{name}: bits {width!r} is impossible; expected a whole number from 1 to 16")


def rates_of(bits: Mapping[str, int], rate: Mapping[str, float] | float) -> dict[str, float]:
    """The rate of each tensor in ``bits``, 0 where none is given; StructureError for a negative one."""
    rates = {name: float(rate.get(name, 0.0) if isinstance(rate, Mapping) else rate) for name in bits}
    for name, value in rates.items():
        if not value >= 0:
            raise StructureError(f"{name}: rate {value} is impossible; expected 0 or more")
    return rates


def account(name: str, bits: int, before: Tensor, after: Tensor) -> LayerSharing:
    """The account of one tensor, from its weights that were not zero (m,), before and after.

    Args:
        name: of the tensor.
        bits: of its codes.
        before: its weights as they were.
        after: as they are.
    """
    used = after[after != 0]
    gap = after.double() - before.double()
    error, count = float(gap @ gap), max(gap.numel(), 1)
    return LayerSharing(name, bits, torch.unique(used).float().tolist(), used.numel(), error, (error / count) ** 0.5)


def _by_error(values: Tensor, bits: int, init: Init, solver: Solver, seed: int) -> Tensor:
    """The centroid of each value (m,), as the paper has it."""
    book = _book(values.float().numpy(), 2**bits, init, solver, seed)
    centroids = _without_zero(torch.from_numpy(book.centroids).to(values.dtype), values.double().numpy(), book.codes)
    return centroids[torch.from_numpy(book.codes.astype(np.int32))]


def _book(values: NDArray[np.float32], k: int, init: Init, solver: Solver, seed: int) -> Codebook:
    if solver == "uniform":
        return uniform(values, k)
    return (sklearn_kmeans if solver == "sklearn" else kmeans1d)(values, k, init=init, seed=seed)


def _by_rate(name: str, weight: Tensor, chosen: Tensor, bits: int, rate: float) -> Tensor:
    """The level of each chosen value (m,), which may be zero."""
    values = weight[chosen]
    wide = values.float().numpy()
    try:
        book = rate_codebook(wide, 2**bits, rate=rate, elements=weight.numel())
    except StructureError as error:
        raise StructureError(f"{name}: {error}") from None
    return torch.from_numpy(book.levels).to(values.dtype)[torch.from_numpy(book.codes(wide))]


def _without_zero(centroids: Tensor, values: NDArray[Any], codes: NDArray[Any]) -> Tensor:
    """A centroid that is zero would prune its weights: it takes the value of its smallest weight instead."""
    for code in (centroids == 0).nonzero().reshape(-1).tolist():
        members = values[codes == code]
        if len(members):
            centroids[code] = float(members[np.argmin(np.abs(members))])
    return centroids
