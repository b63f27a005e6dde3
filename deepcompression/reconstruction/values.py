"""Values that weights may take: which is best at a bit's price, and which values are best for given codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from deepcompression.quantization.integers import integers_of
from deepcompression.reconstruction.sweep import Quadratic
from deepcompression.sharing.entropy_constrained import rate_codebook
from deepcompression.sharing.kmeans_groups import kmeans_groups

WINDOW = 2  # neighbours on either side that are looked at where a codebook is large
ALL = 24  # of a codebook with at most so many values, all are
STEPS = 200  # of conjugate gradients at most
ENOUGH = 1e-18  # of the squared residual they began with
WORTH = 16  # weights for which a value of a codebook that counts bits is there, at least
SELDOM = 0.1  # how often a value counts that no weight has yet

Method = Literal["kmeans", "linear"]


@dataclass(frozen=True)
class Coded:
    """Weights as factor x unknown: ``factors`` (..., n), the integers, or 1 and 0; ``index`` of the unknown that each
    weight has, into ``unknown`` (u,): scales, or centroids of all codebooks."""

    factors: Tensor
    index: Tensor
    unknown: Tensor

    @property
    def weights(self) -> Tensor:
        """What they are."""
        return self.factors * self.unknown[self.index]

    def along(self, change: Callable[[Tensor], Tensor]) -> Coded:
        """The same, arranged in another way."""
        return replace(self, factors=change(self.factors), index=change(self.index))

    def parted(self, layout: Any) -> Coded:
        """Of a matrix (out, n), as a layout parts it."""
        return self.along(layout.parted)


@dataclass(frozen=True)
class Levels:
    """Codebooks of a matrix: ``values`` (books, k) ascending; ``bits`` (k,), the length of each code; ``books``
    (groups, rows, n) int64, which codebook a weight has; ``price`` of a bit, in the unit of the error. Of integers,
    ``scales`` (books,), times which ``integers`` (k,) they are.
    """

    values: Tensor
    bits: Tensor
    books: Tensor
    price: float
    integers: Tensor | None = None

    @property
    def zero(self) -> bool:
        """Whether 0 is among the values of every codebook."""
        return bool((self.values == 0).any(1).all())

    def codes(self, wanted: Tensor, costs: Tensor, books: Tensor) -> Tensor:
        """The code of least cost for each value.

        Args:
            wanted: values, of any shape.
            costs: of their squared changes, which broadcast.
            books: which codebook each has.
        """
        tried = self._tried(wanted, books)
        total = (self._values_of(books[..., None], tried) - wanted[..., None]).square_()
        if self.price:
            total = total.mul_(costs[..., None]).add_(self.bits[tried], alpha=self.price)
        best = total.argmin(-1, keepdim=True)
        return tried.gather(-1, best).squeeze(-1)

    def choose(self, wanted: Tensor, costs: Tensor, column: int) -> Tensor:
        """The values of least cost for a column's weights.

        Args:
            wanted: of them (groups, rows).
            costs: of their squared changes.
            column: its number.
        """
        books = self.books[:, :, column]
        return self._values_of(books, self.codes(wanted, costs, books))

    def _values_of(self, books: Tensor, codes: Tensor) -> Tensor:
        return self.values[0][codes] if len(self.values) == 1 else self.values[books, codes]

    def coded(self, weights: Tensor) -> Coded:
        """Weights (groups, rows, n) that have these values, or are zero, by factors and unknowns."""
        if self.integers is not None:
            step = self.values[:, -1] / self.integers[-1]
            return Coded((weights / (step if len(step) == 1 else step[self.books])).round(), self.books, step)
        codes = self._codes_of(weights)
        count = self.values.shape[1]
        return Coded((weights != 0).double(), self.books * count + codes, self.values.reshape(-1))

    def _codes_of(self, weights: Tensor) -> Tensor:
        made = torch.empty_like(self.books)
        for column in range(weights.shape[2]):
            books = self.books[:, :, column]
            plain = replace(self, price=0.0)
            made[:, :, column] = plain.codes(weights[:, :, column], torch.ones(()), books)
        return made

    def _tried(self, wanted: Tensor, books: Tensor) -> Tensor:
        count = self.values.shape[1]
        if count <= (2 * WINDOW + 2 if self.integers is not None else ALL):
            return torch.arange(count).expand(*wanted.shape, count)
        if self.integers is not None:
            step = self.values[:, -1] / self.integers[-1]
            step = step if len(step) == 1 else step[books]
            near = (wanted / step).round().long() - int(self.integers[0])
        elif len(self.values) == 1:
            near = torch.searchsorted((self.values[0, 1:] + self.values[0, :-1]) / 2, wanted.contiguous())
        else:
            own = self.values[books.reshape(-1)]
            near = torch.searchsorted((own[:, 1:] + own[:, :-1]) / 2, wanted.reshape(-1, 1).contiguous())
            near = near.reshape(wanted.shape)
        window = torch.arange(-WINDOW, WINDOW + 1)
        zero = (self.values == 0).int().argmax(1)[books]
        return torch.cat([(near[..., None] + window).clamp(0, count - 1), zero[..., None]], -1)


@dataclass(frozen=True)
class Rows:
    """Weights by codebook (books, each), zero where they must be, and what squared changes of them cost."""

    values: Tensor
    costs: Tensor


def first_levels(rows: Rows, books: Tensor, bits: int, method: Method, price: float) -> Levels:
    """The values that weights may take at first.

    Args:
        rows: the weights.
        books: (groups, rows, n), which codebook each has.
        bits: 2**bits values of each codebook at most, or integers of so many bits.
        method: kmeans or linear.
        price: of a coded bit.
    """
    if method == "linear":
        return _integers(rows, books, bits, price)
    if price and len(rows.values) == 1:
        return _priced(rows, books, bits, price)
    return _centroids(rows, books, bits)


def _integers(rows: Rows, books: Tensor, bits: int, price: float) -> Levels:
    """Symmetric ones: the grids of least error, or, of priced bits, as coarse as these are worth."""
    most = (1 << (bits - 1)) - 1
    if price:
        # Of a fine grid a step's squared error is its square / 12, a bit worth 2 ln 2 of that.
        cost = rows.costs.log().mean(1).exp()
        widest = rows.values.abs().amax(1).clamp_min(1e-30)
        steps = torch.maximum((price * 6 / math.log(2) / cost).sqrt().minimum(widest), widest / most)
        most = min(most, int((widest / steps).ceil().max()) + 1)
    else:
        steps = torch.from_numpy(integers_of(rows.values.numpy(), bits, "symmetric", "mse").scales).double().reshape(-1)
    integers = torch.arange(-most, most + 1, dtype=torch.float64)
    near = (rows.values / steps[:, None]).round().clamp(-most, most).long() + most
    lengths = _lengths(near, len(integers)) if price else torch.zeros_like(integers)
    return Levels(steps[:, None] * integers, lengths, books, price, integers)


def _priced(rows: Rows, books: Tensor, bits: int, price: float) -> Levels:
    """Centroids and zero, such that squared error + coded bits is least where all changes cost the same."""
    values = rows.values[rows.values != 0]
    rate = price / float(rows.costs.mean() * values.square().mean())
    most = min(1 << bits, max(len(values) // WORTH, 2))  # a value takes room itself
    book = rate_codebook(values.numpy(), most, rate=rate, elements=rows.values.numel())
    own = torch.from_numpy(book.levels)
    levels = torch.from_numpy(np.unique(np.append(book.levels, 0.0)))
    lengths = torch.full_like(levels, math.log2(rows.values.numel() / SELDOM))
    lengths[torch.searchsorted(levels, own)] = torch.from_numpy(book.bits)
    return Levels(levels[None], lengths, books, price)


def _centroids(rows: Rows, books: Tensor, bits: int) -> Levels:
    """Of k-means over the weights of each codebook that are not zero."""
    sets = [row[row != 0].float().numpy() for row in rows.values]
    found = kmeans_groups([one for one in sets if len(one)], 1 << bits, init="optimal")
    most = max(len(one.centroids) for one in found)
    table, place = torch.zeros(len(sets), most, dtype=torch.float64), iter(found)
    for book, one in enumerate(sets):
        if len(one):
            own = torch.from_numpy(_without_zero(next(place).centroids.astype(np.float64), one))
            table[book] = torch.cat([own, own[-1:].expand(most - len(own))])
    return Levels(table, torch.zeros(most, dtype=torch.float64), books, 0.0)


def _without_zero(centroids: Any, values: Any) -> Any:
    """A centroid that is zero would prune: it takes the smallest of the values instead."""
    return np.where(centroids == 0, values[np.argmin(np.abs(values))], centroids)


def recounted(levels: Levels, coded: Coded) -> Levels:
    """The same codebooks with the values of coded weights, and the lengths of their codes."""
    if levels.integers is not None:
        codes = (coded.factors - levels.integers[0]).long()
        return replace(
            levels,
            values=coded.unknown[:, None] * levels.integers,
            bits=_lengths(codes, len(levels.integers)) if levels.price else levels.bits,
        )
    values, places = coded.unknown.reshape(levels.values.shape).sort(dim=1)
    if not levels.price:
        return replace(levels, values=values)
    zero = int((levels.values[0] == 0).int().argmax())
    codes = torch.where(coded.factors == 0, zero, coded.index)
    return replace(levels, values=values, bits=_lengths(codes, values.shape[1])[places[0]])


def _lengths(codes: Tensor, count: int) -> Tensor:
    counts = torch.bincount(codes.reshape(-1), minlength=count).double() + SELDOM
    return -(counts / counts.sum()).log2()


def fitted(problem: Quadratic, coded: Coded) -> Coded:
    """The same codes with the values of least error: the normal equations, by conjugate gradients.

    Args:
        problem: whose error is least.
        coded: its weights.
    """
    factors, index = coded.factors, coded.index.reshape(-1)
    count = len(coded.unknown)

    def gathered(slope: Tensor) -> Tensor:
        weighted = (factors * slope * problem.importance[:, :, None]).reshape(-1)
        return torch.zeros(count, dtype=torch.float64).index_add(0, index, weighted)

    def times(unknown: Tensor) -> Tensor:
        return gathered((factors * unknown[coded.index]) @ problem.hessian)

    diagonal = gathered(factors * problem.hessian.diagonal(dim1=1, dim2=2)[:, None])
    used = diagonal > 0
    scale = torch.where(used, 1 / diagonal.clamp_min(1e-300), 0.0)
    unknown = coded.unknown.clone()
    rest = gathered(problem.target @ problem.hessian) - times(unknown)
    step = scale * rest
    size = first = float(rest @ step)
    for _ in range(min(STEPS, 4 * count)):
        if not size > ENOUGH * first or size < 1e-300:
            break
        along = times(step)
        far = size / float(step @ along)
        unknown, rest = unknown + far * step, rest - far * along
        new = float(rest @ (scale * rest))
        step, size = scale * rest + new / size * step, new
    return replace(coded, unknown=torch.where(used & (unknown != 0), unknown, coded.unknown))
