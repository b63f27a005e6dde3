"""Zeros in patterns, at once: N:M along the inputs, and whole blocks of the weight as a matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network import names
from deepcompression.network.channel_axis import channel_axis
from deepcompression.network.state import normalised, replaced
from deepcompression.pruning.prune import Pruned, Score, account_of, check_numbers, count_of, cut, largest, scores_of
from deepcompression.structure.patterns import NM, Block


def fitting(model: nn.Module, pattern: NM | Block, layers: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The tensors that can have a pattern, and why prunable ones cannot.

    Args:
        model: with the tensors.
        pattern: that they should have.
        layers: names or patterns; None: all that are pruned by default.

    Raises:
        StructureError: one that is named cannot, or none can.
    """
    wanted = names.resolve(model, dict.fromkeys(layers, True) if layers else {"default": True})
    left = {name: why for name in wanted if (why := _unfit(model, name, pattern))}
    found = [name for name in wanted if name not in left]
    if left and (layers or not found):
        name, why = next(iter(left.items()))
        raise StructureError(
            f"{name}: {why}; leave it out of layers" if layers else f"{name}: {why}, and no other fits"
        )
    return found, left


def _unfit(model: nn.Module, name: str, pattern: NM | Block) -> str:
    weight = names.parameters(model)[name]
    if weight.ndim < 2:
        return "has no inputs to count along"
    if name in names.padding_rows(model):
        return "has a padding row, which stays as it is"
    if isinstance(pattern, Block):
        size, (rows, columns) = (weight.shape[0], math.prod(weight.shape[1:])), pattern.within(weight.shape)
        if rows * columns == 1:
            return "has no kernels of several places"
        fits = size[0] % rows == 0 and size[1] % columns == 0
        return "" if fits else f"is {size[0]} x {size[1]}, which blocks of {rows} x {columns} do not fill"
    if channel_axis(model, name) != 0:
        return "has its inputs on another axis than 1"
    return "" if weight.shape[1] >= pattern.m else f"has {weight.shape[1]} inputs, fewer than {pattern.m}"


def prune_to_patterns(
    state: Mapping[str, Tensor],
    tensors: Sequence[str],
    pattern: NM | Block,
    density: float | None = None,
    *,
    score: Score | None = None,
) -> Pruned:
    """``state`` with the least important weights of each group, or the least important blocks, set to +0.0.

    Args:
        state: tensors by name; not changed.
        tensors: that are pruned; each can have the pattern (``fitting``).
        pattern: N:M keeps the N most important of every M weights along axis 1, at each place of a kernel; of equal
            ones the first. Of blocks those with the largest sums of scores stay, whole.
        density: of blocks, the part that stays, in (0, 1], one at least; N:M says its own.
        score: (name, weight) -> importance in the weight's shape; default: magnitude.

    Raises:
        StructureError: impossible density, weights that are not finite, a layer that would be emptied, a score of
            another shape.

    N:M: Mishra et al. (2021), arXiv 2104.08378, one-shot.
    """
    if isinstance(pattern, Block) == (density is None):
        raise StructureError("prune: blocks go with a density, N:M without")
    check_numbers(None if density is None else dict.fromkeys(tensors, density), None)
    clean = normalised(state, tensors)
    scores = {name: scores_of(name, clean[name], score, {}) for name in tensors}
    shaped = {name: one.reshape(clean[name].shape) for name, one in scores.items()}
    keep = {
        name: n_m_stays(one, pattern) if isinstance(pattern, NM) else blocks_stay(one, pattern, density or 1.0)
        for name, one in shaped.items()
    }
    pruned = {name: cut(name, clean[name], one.reshape(-1)) for name, one in keep.items()}
    layers = [account_of(name, clean[name], weight, scores[name]) for name, weight in pruned.items()]
    return Pruned(replaced(clean, pruned), layers)


def n_m_stays(scores: Tensor, pattern: NM) -> Tensor:
    """Where the N largest of every M scores along axis 1 are, as bool in the scores' shape; the earlier of equal ones.

    Args:
        scores: of two axes or more.
        pattern: where inputs are no multiple of M, the last of them are a smaller group.
    """
    inputs = scores.movedim(1, -1)
    rest = -inputs.shape[-1] % pattern.m
    padded = nn.functional.pad(inputs, (0, rest), value=-torch.inf)
    groups = padded.reshape(*inputs.shape[:-1], -1, pattern.m)
    first = groups.argsort(dim=-1, descending=True, stable=True)[..., : pattern.n]
    keep = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, first, True)
    return keep.flatten(-2)[..., : inputs.shape[-1]].movedim(-1, 1)


def blocks_stay(scores: Tensor, block: Block, density: float) -> Tensor:
    """Where the blocks with the largest sums are, as bool in the scores' shape.

    Args:
        scores: (rows, ...); zeros have -inf, and count 0 in a block that has others.
        block: divides rows, and all else together.
        density: the part of the blocks that stays.
    """
    matrix, (rows, columns) = scores.reshape(scores.shape[0], -1), block.within(scores.shape)
    tiles = matrix.reshape(-1, rows, matrix.shape[1] // columns, columns).transpose(1, 2)
    blocks = tiles.flatten(2).flatten(0, 1)
    sums = torch.where(blocks == -torch.inf, 0, blocks).sum(1)
    sums = sums.masked_fill((blocks == -torch.inf).all(1), -torch.inf)
    keep = largest(sums, count_of(sums, density))
    grid = keep.reshape(tiles.shape[0], tiles.shape[1], 1, 1).expand(tiles.shape)
    return grid.transpose(1, 2).reshape(scores.shape)
