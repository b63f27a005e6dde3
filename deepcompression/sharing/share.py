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

from deepcompression.codec.dtypes import Bits, to_array
from deepcompression.errors import StructureError
from deepcompression.formats.state_dict import to_raw
from deepcompression.network.state import PIECE, normalised, replaced
from deepcompression.sharing.entropy_constrained import rate_codebook
from deepcompression.sharing.kmeans import Codebook, Init, Nearest, check_finite, nearest1d
from deepcompression.sharing.kmeans_groups import LONG, kmeans_groups
from deepcompression.sharing.moved import Moved, moved_together
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
    alone = len({id(clean[name]) for name in bits}) == len(bits)
    shared, layers = {}, []
    for number, (name, width) in enumerate(bits.items()):
        weight = clean[name]
        if weight.dtype not in DTYPES:
            raise StructureError(f"{name}: sharing takes float32, float16, bfloat16 and float64, got {weight.dtype}")
        row, part, books = (padding or {}).get(name), (per or {}).get(name, Shared()), (init, solver, seed + number)
        if rates[name] and part.axis is not None:
            raise StructureError(f"{name}: rate {rates[name]:g} goes with one codebook; per: tensor, or rate: 0")
        plain = solver == "own" and row is None and part.axis is None and not rates[name]
        if plain and alone and weight.is_contiguous() and int(torch.count_nonzero(weight)) > LONG:
            shared[name], layer = weight, _share_whole(name, weight, width, init, seed + number)
        else:
            shared[name], layer = _share_parts(name, weight, width, rates[name], row, part, partial(_books, *books))
        layers.append(layer)
    return SharedState(replaced(clean, shared), layers)


def _share_whole(name: str, weight: Tensor, bits: int, init: Init, seed: int) -> LayerSharing:
    """Shares `weight` in place, by one codebook: hardly any memory beside it."""
    raw = to_raw(weight)
    values = moved_together(raw.bits.reshape(-1), raw.dtype)
    for piece in values.pieces():
        check_finite(piece)  # float64 may be beyond float32
    nearest = nearest1d(values, 2**bits, init=init, seed=seed)
    centroids = _never_zero(torch.from_numpy(nearest.centroids).to(weight.dtype), values, nearest)
    table = to_raw(centroids).bits
    levels, counts, errors = to_array(table, raw.dtype).astype(np.float64), np.zeros(len(table), np.int64), []

    def shared(some: NDArray[np.float32]) -> Bits:
        codes = nearest.codes(some)
        gaps = some - levels.take(codes)
        errors.append(float(np.square(gaps, out=gaps).sum()))  # no BLAS, whose threads spin
        np.add(counts, np.bincount(codes, minlength=len(table)), out=counts)
        return table.take(codes)

    values.put_back(shared)
    count, error = len(values), sum(errors)
    kept = torch.unique(centroids[torch.from_numpy(counts > 0)]).float().tolist()
    return LayerSharing(name, bits, kept, count, error, (error / count) ** 0.5)


def _never_zero(centroids: Tensor, values: Moved, nearest: Nearest) -> Tensor:
    """As `_without_zero`, of values in pieces."""
    for code in (centroids == 0).nonzero().reshape(-1).tolist():
        members = (piece[nearest.codes(piece) == code].astype(np.float64) for piece in values.pieces())
        least = [part[np.argmin(np.abs(part))] for part in members if len(part)]
        if least:
            centroids[code] = float(min(least, key=abs))
    return centroids


def _share_parts(
    name: str, weight: Tensor, bits: int, rate: float, padding: int | None, part: Shared, solve: Solve
) -> tuple[Tensor, LayerSharing]:
    """A copy of `weight` that shares values by a rate, or in each of its parts; and its account."""
    chosen = weight != 0
    if padding is not None:
        chosen[padding] = False
    shared, sizes = weight.clone(), [0]
    if chosen.any() and rate:
        shared[chosen] = _by_rate(name, weight, chosen, bits, rate)
    elif chosen.any():
        drawn, sizes = _in_parts(weight, chosen, part, 2**bits, solve)
        shared.copy_(drawn)
    made = account(name, bits, weight[chosen], shared[chosen])
    small = sum(size <= 2**bits for size in sizes)
    return shared, made if part.axis is None else replace(made, codebooks=len(sizes), small=small)


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
    pieces = list(zip(torch.split(before, PIECE), torch.split(after, PIECE), strict=True))
    gaps = (new.double() - old.double() for old, new in pieces)
    error, count = sum(float(gap @ gap) for gap in gaps), max(before.numel(), 1)
    used = torch.unique(torch.cat([torch.unique(new[new != 0]) for _, new in pieces]))
    alive = int(torch.count_nonzero(after))
    return LayerSharing(name, bits, used.float().tolist(), alive, error, (error / count) ** 0.5)


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
        raise type(error)(f"{name}: {error}") from None
    return torch.from_numpy(book.levels).to(values.dtype)[torch.from_numpy(book.codes(wide))]


def _without_zero(centroids: Tensor, values: NDArray[Any], codes: NDArray[Any]) -> Tensor:
    """A centroid that is zero would prune its weights: it takes the value of its smallest weight instead."""
    for code in (centroids == 0).nonzero().reshape(-1).tolist():
        members = values[codes == code]
        if len(members):
            centroids[code] = float(members[np.argmin(np.abs(members))])
    return centroids
