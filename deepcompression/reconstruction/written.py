"""A weight as the matrix that multiplies its layer's inputs, with what is true of it; and the weight again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deepcompression.quantization.integers import Integers
from deepcompression.quantization.linear import multiplied
from deepcompression.reconstruction.layer import Made, Wanted, book_size
from deepcompression.reconstruction.values import Coded
from deepcompression.structure.constraints import constraint
from deepcompression.structure.grid import Grid, recognised
from deepcompression.structure.rows import from_rows, rows_of
from deepcompression.structure.shared import Shared


@dataclass(frozen=True)
class Form:
    """A weight: the axis of its outputs; and the values that it has already (``coded``, (out, n)), over which parts."""

    axis: int
    coded: Coded | None = None
    part: Shared | Grid | None = None


@dataclass(frozen=True)
class Written:
    """A weight in its own dtype, and in words how it is held."""

    weight: Tensor
    how: str


def matrix_of(weight: Tensor, form: Form) -> Tensor:
    """(out, n) float64 on the CPU."""
    return rows_of(weight.detach(), form.axis).to("cpu", torch.float64)


def read(weight: Tensor, wanted: Wanted, words: tuple[str, ...], axis: int = 0) -> Form:
    """What a weight is by now: where no bits are wanted, the values that it shares or has on a grid stay its values.

    Args:
        weight: of a layer.
        wanted: what becomes of it.
        words: what is true of it.
        axis: of its outputs.
    """
    if wanted.bits is not None:
        return Form(axis)
    for word in words:
        part = constraint(word)
        if isinstance(part, Grid):
            return Form(axis, _of_grid(weight, part, axis), part)
        if isinstance(part, Shared):
            return Form(axis, _of_books(weight, part, axis), part)
    return Form(axis)


def _of_grid(weight: Tensor, grid: Grid, axis: int) -> Coded:
    scales, integers = recognised(weight, grid.axis, grid.group)
    whole = from_rows(torch.from_numpy(integers.astype(np.float64)), weight.shape, grid.axis)
    rows = rows_of(whole, axis)
    size = book_size(Shared(grid.axis, grid.group), *rows.shape)
    return Coded(rows, _books(rows, size), torch.from_numpy(scales.astype(np.float64)).reshape(-1))


def _of_books(weight: Tensor, part: Shared, axis: int) -> Coded:
    rows = rows_of(weight.detach().cpu().double(), axis)
    books = _books(rows, book_size(part, *rows.shape))
    values, codes = torch.unique(rows, return_inverse=True)
    pairs, index = torch.unique(books * len(values) + codes, return_inverse=True)
    return Coded((rows != 0).double(), index, values[pairs % len(values)])


def _books(rows: Tensor, size: int) -> Tensor:
    return torch.div(torch.arange(rows.numel()), size, rounding_mode="floor").reshape(rows.shape)


def written(weight: Tensor, made: Made, form: Form, wanted: Wanted) -> Written:
    """The weight in its shape and dtype, as the file format has it.

    Args:
        weight: before.
        made: the layer's new weights.
        form: of the weight.
        wanted: what became of it.
    """
    coded = made.coded
    if coded is None:
        return Written(_shaped(made.weights, weight, form.axis), "free values")
    linear = isinstance(form.part, Grid) or (form.part is None and wanted.method == "linear")
    if linear:
        return Written(_on_grid(coded, weight, form), "linear")
    unknown = coded.unknown.to(weight.dtype)
    values = torch.where(coded.factors == 0, torch.zeros((), dtype=weight.dtype), unknown[coded.index])
    return Written(_shaped(values, weight, form.axis), "kmeans")


def _shaped(rows: Tensor, weight: Tensor, axis: int) -> Tensor:
    new = from_rows(rows, weight.shape, axis).to(weight.dtype)
    return torch.where(new == 0, 0.0, new).to(weight.device, weight.dtype)


def _on_grid(coded: Coded, weight: Tensor, form: Form) -> Tensor:
    size = coded.factors.numel() // len(coded.unknown)
    integers = coded.factors.reshape(-1, size)
    scales = coded.unknown.abs().clamp_min(torch.finfo(torch.float32).tiny).float().numpy().reshape(-1, 1)
    signed = (integers * torch.where(coded.unknown < 0, -1.0, 1.0).reshape(-1, 1)).to(torch.int32).numpy()
    values = multiplied(Integers(signed, scales, scales, scales), weight.dtype)
    return _shaped(values.reshape(coded.factors.shape), weight, form.axis)


def as_fine(values: Tensor, before: Tensor) -> Tensor:
    """In the dtype of what was there before, and as finely: what a narrower one held exactly, it holds afterwards.

    Args:
        values: float64.
        before: that they take the place of.
    """
    for kind in (torch.float16, torch.bfloat16):
        rounded = values.to(kind)
        fits = bool(rounded.isfinite().all()) and torch.equal(before.to(kind).to(before.dtype), before)
        if fits and bool(before.any()):
            return rounded.to(before.dtype)
    return values.to(before.dtype)
