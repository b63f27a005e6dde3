"""Weights rounded and pruned column by column, what each loses made up for by those that are still free.

The optimal brain surgeon's update for layers (Hassibi, Stork, 1993; Frantar, Alistarh, 2023, "SparseGPT", arXiv
2301.00774, and Frantar et al., 2023, "GPTQ", arXiv 2210.17323), then descent coordinate by coordinate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 128  # columns whose changes reach the others together
Choose = Callable[[Tensor, Tensor, int], Tensor]  # what values (g, r) of a column become, each of a weight (g, r)


@dataclass(frozen=True)
class Quadratic:
    """A layer's error by its weights: sum of importance x (w - target) H (w - target)^T over rows.

    ``target`` (groups, rows, n), ``hessian`` (groups, n, n), ``importance`` (groups, rows) of outputs; ``alive``, where
    a weight may be other than zero; all float64 but the last.
    """

    target: Tensor
    hessian: Tensor
    importance: Tensor
    alive: Tensor

    @property
    def apart(self) -> bool:
        """Whether no weight can make up for another."""
        return bool((self.hessian.count_nonzero(dim=(1, 2)) == self.hessian.shape[1]).all())

    def error(self, weights: Tensor) -> float:
        """Of weights (groups, rows, n)."""
        off = weights - self.target
        return float((((off @ self.hessian) * off).sum(2) * self.importance).sum())


def factor(hessian: Tensor) -> Tensor:
    """U (groups, n, n), upper triangular, with U^T U the inverse of the Hessian."""
    lower = torch.linalg.cholesky(hessian)
    upper: Tensor = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return upper


def swept(problem: Quadratic, root: Tensor, choose: Choose, keep: Callable[[Tensor, Tensor, slice], Tensor]) -> Tensor:
    """Weights (groups, rows, n) that are what ``choose`` makes of them, where ``keep`` leaves them alive.

    Args:
        problem: whose error is kept low.
        root: of ``factor``.
        choose: the value that a column's weights take; gets values, what squared changes of them cost, the column.
        keep: which weights of some columns stay: gets their present values, what zeroing costs, the columns.
    """
    work, made, apart = problem.target.clone(), torch.empty_like(problem.target), problem.apart
    spread = root.diagonal(dim1=1, dim2=2)  # (groups, n)
    for start in range(0, work.shape[2], BLOCK):
        block = slice(start, min(start + BLOCK, work.shape[2]))
        own, inside = work[:, :, block], root[:, block, block]
        costs = problem.importance[:, :, None] / spread[:, None, block].square()
        alive = keep(own, own.square() * costs, block)
        off = torch.zeros_like(own)
        for place in range(own.shape[2]):
            column = own[:, :, place]
            value = torch.where(alive[:, :, place], choose(column, costs[:, :, place], start + place), 0.0)
            made[:, :, start + place] = value
            if apart:
                continue
            off[:, :, place] = (column - value) / spread[:, None, start + place]
            own[:, :, place + 1 :] -= off[:, :, place, None] * inside[:, None, place, place + 1 :]
        if not apart:
            work[:, :, block.stop :] -= off @ root[:, block, block.stop :]
    return made


def descended(problem: Quadratic, weights: Tensor, choose: Choose, passes: int) -> Tensor:
    """Weights after each in turn took the value that is best beside all others.

    Args:
        problem: whose error falls.
        weights: (groups, rows, n).
        choose: as of ``swept``.
        passes: over all columns.
    """
    made, alive = weights.clone(), problem.alive
    diagonal = problem.hessian.diagonal(dim1=1, dim2=2)  # (groups, n)
    for _ in range(passes):
        slope = (made - problem.target) @ problem.hessian
        for start in range(0, made.shape[2], BLOCK):
            block = slice(start, min(start + BLOCK, made.shape[2]))
            own, inside = slope[:, :, block].clone(), problem.hessian[:, block, block]
            before = made[:, :, block].clone()
            for place in range(own.shape[2]):
                column = made[:, :, start + place]
                wide = diagonal[:, None, start + place]
                best = column - own[:, :, place] / wide
                value = choose(best, problem.importance * wide, start + place)
                value = torch.where(alive[:, :, start + place], value, 0.0)
                own += (value - column)[:, :, None] * inside[:, None, place]
                made[:, :, start + place] = value
            slope += (made[:, :, block] - before) @ problem.hessian[:, block]
    return made
