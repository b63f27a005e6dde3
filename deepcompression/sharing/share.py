"""Weight sharing: the non-zero weights of a layer, or of each of its channels, take the values of a small codebook."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepcompression.errors import StructureError
from deepcompression.network.state import normalised, replaced
from deepcompression.sharing.entropy_constrained import rate_codebook
from deepcompression.sharing.kmeans import Codebook, Init
from deepcompression.sharing.kmeans_groups import kmeans_groups
from deepcompression.sharing.nearest import uniform
from deepcompression.sharing.sklearn_kmeans import sklearn_kmeans
from deepcompression.structure.rows import from_rows, rows_of
from deepcompression.structure.shared import Shared

Solver = Literal["own", "sklearn", "uniform"]
Solve = Callable[[list[NDArray[np.float32]], int], list[Codebook]]

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class LayerSharing:
    """What sharing did to one tensor; ``root_mean_square_error`` is over the weights that were not zero before.

    ``codebooks`` is how many it has, and ``small`` how many of them have no more weights than ``bits`` allow values.
    """

    name: str
    bits: int
    centroids: list[float]
    nonzero: int
    squared_error: float
    root_mean_square_error: float
    codebooks: int = 1
    small: int = 0


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
    per: Mapping[str, Shared] | None = None,
) -> SharedState:
    """``state`` with the non-zero weights of each named tensor, or of each of its parts, clustered to 2**bits values.

    Zeros stay zeros, tensors keep their dtype (centroids are rounded to it). Where there are no more weights than
    values, these stay as they are. Without a rate no weight becomes zero; with one, values and zeros are those for
    which squared error + lambda x coded bits is least.

    Args:
        state: tensors by name, any shapes; not changed. float64 is clustered by its float32 values.
        bits: tensor name -> 1 to 16.
        init: ``linear``, ``density``, ``random`` (the paper's three), or ``optimal``; with a rate always the last.
        solver: what finds the values where there is no rate: ``own`` (``kmeans1d``), ``sklearn`` (its KMeans, for
            reference), or ``uniform``: evenly spaced between the least and the greatest, as ``linear`` begins.
        rate: see ``rate_codebook``; of all tensors, or by name.
        seed: of ``random``.
        padding: tensor name -> row that is left alone.
        per: tensor name -> which parts of it have a codebook each (``sharing.groups``); else it is the tensor.

    Raises:
        StructureError: bits or rate out of range, unknown init; a tensor missing, not finite, or of another dtype, or
            one that its rate would empty; a rate where a tensor has several codebooks, or these do not divide it.

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
        part = (per or {}).get(name, Shared())
        if rates[name] and part.axis is not None:
            raise StructureError(f"{name}: rate {rates[name]:g} goes with one codebook; per: tensor, or rate: 0")
        shared[name], sizes = weight.clone(), [0]
        if chosen.any() and rates[name]:
            shared[name][chosen] = _by_rate(name, weight, chosen, width, rates[name])
        elif chosen.any():
            drawn, sizes = _in_parts(weight, chosen, part, 2**width, partial(_books, init, solver, seed + number))
            shared[name].copy_(drawn)
        made = account(name, width, weight[chosen], shared[name][chosen])
        small = sum(size <= 2**width for size in sizes)
        layers.append(made if part.axis is None else replace(made, codebooks=len(sizes), small=small))
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


def _in_parts(weight: Tensor, chosen: Tensor, part: Shared, k: int, solve: Solve) -> tuple[Tensor, list[int]]:
    """The weight with the centroid of each chosen value, and how many of these each part has that has any."""
    rows, taken = (rows_of(one, part.axis, part.group) for one in (weight, chosen))
    sizes = [size for size in taken.sum(dim=1).tolist() if size]
    sets = torch.split(rows[taken], sizes)
    books = solve([one.float().numpy() for one in sets], k)
    drawn = [_drawn(one, book) for one, book in zip(sets, books, strict=True)]
    rows = rows.masked_scatter(taken, torch.cat(drawn))
    return from_rows(rows, weight.shape, part.axis), sizes


def _drawn(values: Tensor, book: Codebook) -> Tensor:
    """The centroid of each value (m,), as the paper has it."""
    centroids = _without_zero(torch.from_numpy(book.centroids).to(values.dtype), values.double().numpy(), book.codes)
    return centroids[torch.from_numpy(book.codes.astype(np.int32))]


def _books(init: Init, solver: Solver, seed: int, sets: list[NDArray[np.float32]], k: int) -> list[Codebook]:
    """The codebook of each of some sets of values."""
    if solver == "uniform":
        return [uniform(one, k) for one in sets]
    if solver == "sklearn":
        return [sklearn_kmeans(one, k, init=init, seed=seed) for one in sets]
    return kmeans_groups(sets, k, init=init, seed=seed)


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
