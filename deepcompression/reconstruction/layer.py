"""One layer reconstructed: its weights pruned and rounded for the least error of its outputs on what goes into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from deepcompression.reconstruction.moments import Moments
from deepcompression.reconstruction.sweep import BLOCK, Quadratic, descended, factor, swept
from deepcompression.reconstruction.values import Coded, Levels, Method, Rows, first_levels, fitted, recounted
from deepcompression.structure.shared import Shared

ROUNDS = 2  # times that all weights are rounded, with values and code lengths that follow from the time before
PASSES = 1  # over all columns of the last round
FEW = 6.0  # places are worth so many inputs' moments: with fewer, moments between inputs are trusted less
LEAST = 0.1  # part of the mean importance that each output has

Order = Literal["energy", "natural"]


@dataclass(frozen=True)
class Wanted:
    """What becomes of a layer's weights.

    ``density``: of them, None: none is pruned. ``bits``: of their values, None: they stay as they are, but for those
    that share or are on a grid already, whose values are fitted. ``method``: kmeans or linear; ``part``: of the weight
    that has a codebook or a scale. ``rate``: what a coded bit is worth, as a part of the weights' mean square; or
    ``price``, in the unit of importance. ``damping``: a part of the inputs' mean square.
    """

    density: float | None = None
    bits: int | None = None
    method: Method = "kmeans"
    part: Shared = field(default_factory=Shared)
    rate: float = 0.0
    price: float | None = None
    damping: float = 0.05
    order: Order = "energy"


@dataclass(frozen=True)
class Made:
    """The weights (out, n) float64 with their codes, if they have some; ``error``, how far outputs on the samples are
    from the best that these inputs allow, as a part of their energy; ``shift``, what their constant gains (out,)."""

    weights: Tensor
    coded: Coded | None
    error: float
    shift: Tensor


@dataclass(frozen=True)
class Inputs:
    """What goes into a layer, by its statistics: moments in mean, damped (``hessian``) and not (``plain``), and those
    of the dense net's inputs with them; means of both. All (groups, n ...), float64."""

    hessian: Tensor
    plain: Tensor
    cross: Tensor
    mean: Tensor
    dense: Tensor


def inputs_of(moments: Moments, damping: float, centred: bool) -> Inputs:
    """The statistics of a layer's inputs.

    Args:
        moments: of them.
        damping: a part of the mean square that is added to each.
        centred: whether constants of the outputs are free: then only what varies counts.
    """
    plain, cross = moments.second / moments.count, moments.cross / moments.count
    mean, dense = moments.first / moments.count, moments.dense / moments.count
    if centred:
        plain = plain - mean[:, :, None] * mean[:, None]
        cross = cross - dense[:, :, None] * mean[:, None]
    diagonal = plain.diagonal(dim1=1, dim2=2)
    count = plain.shape[1]
    trust = FEW * moments.count / (FEW * moments.count + count)
    width = diagonal.mean(1, keepdim=True)
    added = (1 - trust) * diagonal + damping * width + 1e-3 * damping * width.mean() + 1e-30
    return Inputs(trust * plain + torch.diag_embed(added), plain, cross, mean, dense)


def reconstructed(
    matrix: Tensor,
    moments: Moments,
    wanted: Wanted,
    importance: Tensor | None = None,
    *,
    coded: Coded | None = None,
    alive: Tensor | None = None,
    centred: bool = True,
) -> Made:
    """A layer's weights after pruning and rounding, which keep its outputs on the moments' inputs as they were.

    Args:
        matrix: (out, n) float64, whose outputs are aimed at.
        moments: of what goes in.
        wanted: what becomes of it.
        importance: (out,) of outputs; None: all are alike.
        coded: the values that weights have already, which only are fitted.
        alive: (out, n), which weights may be other than zero; None: those that are.
        centred: whether the outputs' constants may change.
    """
    layout = Layout.of(matrix, moments)
    inputs = inputs_of(moments, wanted.damping, centred)
    weights = layout.parted(matrix)
    target = weights + torch.linalg.solve(inputs.hessian, weights @ (inputs.cross - inputs.plain), left=False)
    outputs = layout.outputs(important(importance, len(matrix)))
    alive = matrix != 0 if alive is None else alive
    problem = Quadratic(target, inputs.hessian, outputs, layout.parted(alive))
    made, found = _solved(problem, layout, wanted, coded)
    shift = (weights * inputs.dense[:, None]).sum(2) - (made * inputs.mean[:, None]).sum(2)
    shift = layout.summed(shift) if centred else torch.zeros(len(matrix), dtype=torch.float64)
    return Made(layout.whole(made), found and found.along(layout.whole), _error(target, made, inputs.plain), shift)


def important(importance: Tensor | None, outputs: int) -> Tensor:
    """What each output is worth (outputs,), none next to nothing; all the same where that is not known."""
    if importance is None or not bool(importance.sum() > 0):
        return torch.ones(outputs, dtype=torch.float64)
    return (1 - LEAST) * importance + LEAST * importance.mean()


def _error(target: Tensor, made: Tensor, plain: Tensor) -> float:
    """The outputs' error as a part of their energy."""
    energy = ((target @ plain) * target).sum()
    off = made - target
    return float(((off @ plain) * off).sum() / energy) if bool(energy > 0) else 0.0


@dataclass(frozen=True)
class Layout:
    """How a matrix (out, n) lies beside moments (groups, width, width): by groups of rows, or by blocks of columns."""

    groups: int
    blocks: int
    out: int
    inputs: int

    @classmethod
    def of(cls, matrix: Tensor, moments: Moments) -> Layout:
        """That of a matrix and moments that fit."""
        groups = len(moments.second) // moments.blocks
        return cls(groups, moments.blocks, *matrix.shape)

    def parted(self, matrix: Tensor) -> Tensor:
        """(groups or blocks, rows, width)."""
        if self.blocks == 1:
            return matrix.reshape(self.groups, -1, self.inputs)
        width = -(-self.inputs // self.blocks)
        padded = torch.nn.functional.pad(matrix, (0, width * self.blocks - self.inputs))
        return padded.reshape(self.out, self.blocks, width).transpose(0, 1).contiguous()

    def whole(self, parts: Tensor) -> Tensor:
        """(out, n)."""
        if self.blocks == 1:
            return parts.reshape(self.out, self.inputs)
        return parts.transpose(0, 1).reshape(self.out, -1)[:, : self.inputs].contiguous()

    def outputs(self, values: Tensor) -> Tensor:
        """Values (out,) of outputs for each row (groups or blocks, rows)."""
        return values.reshape(self.groups, -1) if self.blocks == 1 else values.expand(self.blocks, self.out)

    def summed(self, values: Tensor) -> Tensor:
        """(out,) of rows (groups or blocks, rows)."""
        return values.reshape(-1) if self.blocks == 1 else values.sum(0)

    def books(self, size: int) -> Tensor:
        """The number of the codebook of each weight (groups, rows, width), one for each ``size``."""
        places = torch.arange(self.out * self.inputs).reshape(self.out, self.inputs)
        return self.parted(torch.div(places, size, rounding_mode="floor"))


def book_size(part: Shared, out: int, inputs: int) -> int:
    """How many consecutive weights of a matrix have one codebook.

    Args:
        part: of the weight that has one.
        out: rows of the matrix.
        inputs: columns.
    """
    return out * inputs if part.axis is None else part.group or inputs


def _solved(problem: Quadratic, layout: Layout, wanted: Wanted, coded: Coded | None) -> tuple[Tensor, Coded | None]:
    if coded is not None:
        found = fitted(problem, coded.parted(layout))
        return found.weights, found
    order = _order(problem, wanted.order)
    turned = _turned(problem, order)
    root = factor(turned.hessian)
    size = book_size(wanted.part, layout.out, layout.inputs)
    count = None if wanted.density is None else max(round(wanted.density * layout.out * layout.inputs), 1)
    keep = _keeping(turned, root, count)
    back = order.argsort(dim=1)
    if wanted.bits is None:
        return _along(_free(turned, swept(turned, root, lambda values, _, __: values, keep)), back), None
    costs = turned.importance[:, :, None] / root.diagonal(dim1=1, dim2=2)[:, None].square()
    alive = torch.where(problem.alive, problem.target, 0.0)
    rows = Rows(layout.whole(alive).reshape(-1, size), layout.whole(_along(costs, back)).reshape(-1, size))
    price = _price(problem, costs, wanted)
    levels = first_levels(rows, _along(layout.books(size), order), wanted.bits, wanted.method, price)
    found = _rounded(turned, root, wanted, levels, keep)
    return _along(found.weights, back), found.along(lambda one: _along(one, back))


def _free(problem: Quadratic, weights: Tensor) -> Tensor:
    """The weights that are not zero at the values of least error."""
    own = torch.arange(weights.numel()).reshape(weights.shape)
    return fitted(problem, Coded((weights != 0).double(), own, weights.reshape(-1))).weights


def _rounded(
    problem: Quadratic, root: Tensor, wanted: Wanted, levels: Levels, keep: Callable[[Tensor, Tensor, slice], Tensor]
) -> Coded:
    """Weights with few values: swept with those that fit what was swept before, in the end descended."""
    found = None
    for number in range(ROUNDS):
        weights = swept(problem, root, levels.choose, keep)
        if number == ROUNDS - 1 and not problem.apart:
            held = problem if wanted.density is None else replace(problem, alive=weights != 0)
            weights = descended(held, weights, levels.choose, PASSES)
        found = fitted(problem, levels.coded(weights))
        levels = recounted(levels, found)
    assert found is not None
    return found


def _price(problem: Quadratic, costs: Tensor, wanted: Wanted) -> float:
    """Of a coded bit, in the unit of the error."""
    if wanted.price is not None:
        return wanted.price
    square = problem.target.square().mean() * costs.mean()
    return wanted.rate * float(square)


def _order(problem: Quadratic, order: Order) -> Tensor:
    """In which order columns are rounded (groups, n): those with most energy first, which others then make up for."""
    diagonal = problem.hessian.diagonal(dim1=1, dim2=2)
    if order == "energy":
        return diagonal.argsort(dim=1, descending=True, stable=True)
    return torch.arange(diagonal.shape[1]).expand(diagonal.shape)


def _along(values: Tensor, order: Tensor) -> Tensor:
    """Columns of (groups, rows, n) in another order."""
    return values.gather(2, order[:, None].expand(values.shape))


def _turned(problem: Quadratic, order: Tensor) -> Quadratic:
    hessian = problem.hessian.gather(1, order[:, :, None].expand(problem.hessian.shape))
    hessian = _along(hessian, order)
    return Quadratic(_along(problem.target, order), hessian, problem.importance, _along(problem.alive, order))


def _keeping(problem: Quadratic, root: Tensor, count: int | None) -> Callable[[Tensor, Tensor, slice], Tensor]:
    """Which weights stay: of each block of columns as many as are among the most important at first."""
    if count is None:
        return lambda values, costs, block: problem.alive[:, :, block]
    spread = root.diagonal(dim1=1, dim2=2)[:, None].square()
    worth = problem.target.square() * problem.importance[:, :, None] / spread
    worth = torch.where(problem.alive, worth, -1.0)
    first = _most(worth, count) & problem.alive
    counts = [int(first[:, :, start : start + BLOCK].sum()) for start in range(0, first.shape[2], BLOCK)]

    def keep(values: Tensor, costs: Tensor, block: slice) -> Tensor:
        alive = problem.alive[:, :, block]
        return _most(torch.where(alive, costs, -1.0), counts[block.start // BLOCK]) & alive

    return keep


def _most(worth: Tensor, count: int) -> Tensor:
    """Where the ``count`` greatest are; the earlier of equal ones."""
    flat = worth.reshape(-1)
    order = flat.argsort(descending=True, stable=True)[:count]
    return torch.zeros_like(flat, dtype=torch.bool).index_fill_(0, order, True).reshape(worth.shape)
