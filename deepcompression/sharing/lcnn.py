"""Dictionaries: a layer's kernels as sums of a few vectors that all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepcompression.errors import StructureError, ValuesError
from deepcompression.network.coverage import selected
from deepcompression.network.edits.apply import apply
from deepcompression.network.edits.dictionary import inputs_of, unfit
from deepcompression.network.names import resolve
from deepcompression.network.trace import Seen

Fit = Literal["kmeans", "learned"]
FITS = ("kmeans", "learned")
ENTRIES = 3  # of columns in layers that no number is named for
ROUNDS = 20  # of codes for a dictionary, and the best dictionary for these codes
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Wanted:
    """Of one layer: vectors in its dictionary, and how many of them a column of a kernel is the sum of, at most."""

    layer: str
    size: int
    nonzero: int


@dataclass(frozen=True)
class LayerLookup:
    """What became of one layer: a dictionary of ``size`` vectors of ``inputs``, and ``lookups`` entries that are not 0.

    ``error``: the distance of its kernels from before, as a part of their norm.
    """

    name: str
    inputs: int
    size: int
    columns: int
    lookups: int
    weights: int
    error: float


def wanted(
    model: nn.Module, size: Mapping[str, int | float], nonzero: Mapping[str, int], seen: Seen
) -> tuple[list[Wanted], dict[str, str]]:
    """The layers that get a dictionary, and of each other Linear and convolution why it gets none.

    A layer that is named gets one whatever it costs; of the rest those whose multiplications become fewer.

    Args:
        model: not changed.
        size: name or pattern -> vectors, a count or a fraction of the layer's inputs.
        nonzero: name or pattern -> vectors that a column is the sum of, at most.
        seen: shapes of what goes in and comes out of modules (``network.trace.shapes``).

    Raises:
        StructureError: no layer is left, a named one cannot be parted (with the reason), or an impossible number.
    """
    sizes = selected(model, size)
    named = resolve(model, {name: one for name, one in size.items() if name != "default"})
    entries = {**dict.fromkeys(sizes, ENTRIES), **resolve(model, nonzero)}
    found, left = [], {}
    for tensor, number in sizes.items():
        layer, _, own = tensor.rpartition(".")
        module = model.get_submodule(layer)
        why = unfit(model, module) if own == "weight" else "it is no layer's weight"
        if not why:
            one = _wanted(layer, inputs_of(module), number, entries[tensor])
            why = "" if tensor in named else _costly(one, module, seen)
        if why and tensor in named:
            raise StructureError(f"lcnn: {tensor} cannot have a dictionary: {why}")
        if why:
            left[layer or tensor] = why
        else:
            found.append(one)
    if not found:
        told = "; ".join(f"{name}: {why}" for name, why in list(left.items())[:3])
        raise StructureError(f"lcnn: no layer of the model gets a dictionary: {told}")
    return found, left


def _wanted(layer: str, inputs: int, number: int | float, nonzero: int) -> Wanted:
    size = max(round(number * inputs), 1) if isinstance(number, float) else number
    if not 1 <= size <= inputs or (isinstance(number, float) and number > 1):
        raise StructureError(f"lcnn: {layer}: size {number}: expected 1 to {inputs}, its inputs, or a fraction of them")
    return Wanted(layer, size, min(nonzero, size))


def _costly(one: Wanted, module: Any, seen: Seen) -> str:
    """Why a dictionary would save nothing; empty: it would, at the shapes that were seen."""
    if one.layer not in seen:
        return "samples do not come by it"
    taken, made = (_places(shape, module) for shape in seen[one.layer])
    columns = module.weight.numel() // inputs_of(module)
    dense, thin = made * module.weight.numel(), taken * one.size * inputs_of(module) + made * one.nonzero * columns
    return "" if thin < dense else f"with a dictionary it would multiply {thin / dense:.3g} times as often"


def _places(shape: tuple[int, ...], module: Any) -> int:
    """Vectors in what goes in or comes out of a layer, a sample."""
    own = shape[1:-1] if isinstance(module, nn.Linear) else shape[2 - module.weight.ndim :]
    return int(np.prod(own, dtype=np.int64))


def look_up(
    model: nn.Module, layers: list[Wanted], fit: Fit = "kmeans", seed: int = 0
) -> tuple[list[dict[str, Any]], list[LayerLookup]]:
    """Gives layers of ``model`` their dictionaries, in place; the edits that did it, and what became of each layer.

    Args:
        model: with ordinary parameters.
        layers: of ``wanted``.
        fit: of the dictionary: ``kmeans`` begins with centres of the kernels' columns, ``learned`` with scikit-learn's
            dictionary learning; then codes and dictionary are the best for each other in turns.
        seed: of what is drawn.

    Raises:
        StructureError: a weight is NaN or infinite.
    """
    records, rows = [], []
    for one in layers:
        layer: Any = model.get_submodule(one.layer)
        weight = layer.weight.detach()
        dictionary, lookup = parted(weight, one.size, one.nonzero, fit, seed)
        record = {"kind": "dictionary", "module": one.layer, "size": one.size}
        apply(model, record)
        made: Any = model.get_submodule(one.layer)
        with torch.no_grad():
            made.dictionary.weight.copy_(dictionary.reshape(made.dictionary.weight.shape))
            made.lookup.weight.copy_(lookup)
        records.append(record)
        rows.append(_row(one, weight, made))
    return records, rows


def _row(one: Wanted, weight: Tensor, made: Any) -> LayerLookup:
    columns = columns_of(weight.double())
    lookup, dictionary = columns_of(made.lookup.weight.detach().double()), made.dictionary.weight.detach().double()
    gap = (lookup @ dictionary.flatten(1) - columns).norm() / columns.norm().clamp(min=1e-30)
    count = int(made.lookup.weight.count_nonzero())
    return LayerLookup(one.layer, columns.shape[1], one.size, len(columns), count, weight.numel(), float(gap))


def columns_of(weight: Tensor) -> Tensor:
    """A weight (out, in, *kernel) as its kernels' columns: (out x places of the kernel, in)."""
    return weight.movedim(1, -1).reshape(-1, weight.shape[1])


def parted(weight: Tensor, size: int, nonzero: int, fit: Fit = "kmeans", seed: int = 0) -> tuple[Tensor, Tensor]:
    """A dictionary (size, in) and what looks up in it (out, size, *kernel), whose products are near the weight.

    Args:
        weight: (out, in, *kernel), floats.
        size: vectors in the dictionary.
        nonzero: entries that are not zero in each column of the lookup, at most.
        fit: as of ``look_up``.
        seed: of what is drawn.

    Raises:
        StructureError: the weight is NaN or infinite, or ``fit`` is not known.
    """
    if fit not in FITS:
        raise StructureError(f"lcnn: fit {fit!r} is not known; expected one of {', '.join(FITS)}")
    if not bool(weight.isfinite().all()):
        raise ValuesError("lcnn: a weight is NaN or infinite")
    columns: Matrix = columns_of(weight.detach().cpu().double()).numpy()
    dictionary = _start(columns, size, nonzero, fit, seed)
    codes = _codes(columns, dictionary, nonzero)
    for _ in range(ROUNDS):
        best: Matrix = np.linalg.lstsq(codes, columns, rcond=None)[0].astype(np.float64)
        dictionary = _unit(best, dictionary)
        codes = _codes(columns, dictionary, nonzero)
    shape = (weight.shape[0], *weight.shape[2:], size)
    lookup = torch.from_numpy(codes).reshape(shape).movedim(-1, 1)
    return torch.from_numpy(dictionary).to(weight), lookup.to(weight)


def _start(columns: Matrix, size: int, nonzero: int, fit: Fit, seed: int) -> Matrix:
    """The dictionary to begin with, its vectors of length 1."""
    axes: Matrix = np.eye(size, columns.shape[1])
    if fit == "learned":
        from sklearn.decomposition import MiniBatchDictionaryLearning

        how = {"transform_algorithm": "omp", "transform_n_nonzero_coefs": nonzero, "random_state": seed}
        return _unit(MiniBatchDictionaryLearning(size, **how).fit(columns).components_, axes)
    from sklearn.cluster import KMeans

    lines = _unit(columns, np.zeros_like(columns))
    lines *= np.where(lines @ _main(columns) < 0, -1, 1)[:, None]  # a column and its opposite are one vector
    distinct = np.unique(lines, axis=0)
    if len(distinct) <= size:
        return _unit(np.concatenate([distinct, axes])[:size], axes)
    return _unit(KMeans(size, n_init=4, random_state=seed).fit(lines).cluster_centers_, axes)


def _main(columns: Matrix) -> Matrix:
    """The direction in which columns are longest."""
    main: Matrix = np.linalg.eigh(columns.T @ columns)[1][:, -1].astype(np.float64)
    return main


def _unit(vectors: Matrix, instead: Matrix) -> Matrix:
    """Vectors of length 1; others where they have none."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(length > 1e-12, vectors / np.maximum(length, 1e-12), instead)


def _codes(columns: Matrix, dictionary: Matrix, nonzero: int) -> Matrix:
    """Each column as a sum of a few vectors (columns, size), by orthogonal matching pursuit."""
    import warnings

    from sklearn.decomposition import sparse_encode

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns that need fewer
        codes: Matrix = sparse_encode(columns, dictionary, algorithm="omp", n_nonzero_coefs=nonzero)
    return codes
