"""Second moments of what goes into a layer: how much a change of its weights changes its outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcompression.reconstruction.calls import Call

PIECE = 1 << 24  # numbers that are laid out at once
WIDEST = 4096  # inputs whose moments with each other are kept; of more, those within blocks of as many


@dataclass
class Moments:
    """Sums over all places: of products of inputs (groups, n, n); with the dense net's; of both alone (groups, n).

    A layer with more than WIDEST inputs has blocks of them in place of groups (``blocks`` of them).
    """

    second: Tensor
    cross: Tensor
    first: Tensor
    dense: Tensor
    count: int = 0
    blocks: int = 1
    inputs: int = 0


def blocks_of(inputs: int, groups: int) -> tuple[int, int]:
    """In how many blocks of how many inputs a layer's moments are kept."""
    if groups > 1 or inputs <= WIDEST:
        return 1, inputs
    count = -(-inputs // WIDEST)
    return count, -(-inputs // count)


def of_table(worth: Tensor) -> Moments:
    """Those of a table of vectors (rows, size): its numbers change nothing in each other.

    Args:
        worth: (size,) float64, what a squared change of each number of a vector costs.
    """
    second, first = torch.diag(worth)[None], torch.zeros(1, len(worth), dtype=torch.float64)
    return Moments(second, second, first, first, 1, 1, len(worth))


def add(moments: Moments | None, call: Call, dense: Tensor | None = None) -> Moments:
    """The moments with what a call multiplies.

    Args:
        moments: so far; None: none.
        call: of the weight.
        dense: what the same call has in the dense net; None: the same.
    """
    if call.table:
        return moments or of_table(torch.ones(call.shape[1], dtype=torch.float64))
    value = call.batch
    other = value if dense is None else dense.reshape(value.shape)
    samples = max(1, len(value) * PIECE // max(_laid_out(call, value), 1)) if call.spatial else len(value)
    for start in range(0, len(value), samples):
        part = call.columns(value[start : start + samples])
        apart = part if dense is None else call.columns(other[start : start + samples])
        moments = _added(moments, part.float(), apart.float())
    assert moments is not None
    return moments


def _laid_out(call: Call, value: Tensor) -> int:
    return value.numel() * max(math.prod(call.shape[2:]) // math.prod(call.stride), 1)


def _added(moments: Moments | None, part: Tensor, dense: Tensor) -> Moments:
    groups, inputs, places = part.shape
    blocks, width = blocks_of(inputs, groups)
    if blocks > 1:
        part, dense = (
            torch.nn.functional.pad(one, (0, 0, 0, blocks * width - inputs)).reshape(blocks, width, places)
            for one in (part, dense)
        )
    if moments is None:
        shape = part.shape[:2]
        second, first = torch.zeros(*shape, shape[1], dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
        moments = Moments(second, second.clone(), first, first.clone(), 0, blocks, inputs)
    square = (part @ part.mT).to("cpu", torch.float64)
    moments.second += square
    moments.cross += square if dense is part else (dense @ part.mT).to("cpu", torch.float64)
    sums = part.sum(2, dtype=torch.float64).cpu()
    moments.first += sums
    moments.dense += sums if dense is part else dense.sum(2, dtype=torch.float64).cpu()
    moments.count += places
    return moments
