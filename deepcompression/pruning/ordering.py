"""The order of a layer's units in which its weight and the next layer's are coded smallest: tried and measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from deepcompression.codec import apart, arithmetic, encoder
from deepcompression.codec.arithmetic import Model
from deepcompression.formats import state_dict as files

MEASURED_WHOLE = 2_000_000  # weights up to which the values are measured too, not only where they are
USUAL = 0x66  # adaptive code's prior
COMPARED = 4096  # units up to which each is compared with each


@dataclass(frozen=True)
class Ordering:
    """An order of units, (units,) int64, and bytes of both weights in the old order and in this one.

    The bytes are None where there was no other order to try; of more than ``MEASURED_WHOLE`` weights they are those
    of the positions alone.
    """

    order: Tensor
    bytes_before: int | None = None
    bytes_after: int | None = None


def best_order(rows: Tensor, columns: Tensor, whole: bool = True) -> Ordering:
    """Of some orders the one in which two weights are coded smallest; the present one unless another is smaller.

    Tried are units by falling number of non-zero weights (of their row, of their columns) and, of not too many units,
    each followed by the one that is most like it. The adaptive coder predicts from densities and neighbours.

    Args:
        rows: (units, n), unit i is row i of the first weight.
        columns: (outputs, units, m), unit i is this block of columns of the second one.
        whole: whether the values are measured too, of no more than ``MEASURED_WHOLE`` weights.
    """
    present = torch.arange(len(rows), device=rows.device)
    few = rows.numel() + columns.numel() <= MEASURED_WHOLE
    alive = rows != 0, columns != 0
    others = [order for order in _orders(*alive, likeness=few) if not torch.equal(order, present)]
    if not others:
        return Ordering(present)

    def size(order: Tensor) -> int:
        if whole and few:
            return _coded(rows[order]) + _coded(columns[:, order])
        return _positions(alive[0][order]) + _positions(alive[1][:, order])

    def estimate(order: Tensor) -> int:
        return _positions(alive[0][order], USUAL) + _positions(alive[1][:, order], USUAL)

    if whole and few:  # values cost nearly the same in any order: positions alone choose which two to measure
        others = sorted(others, key=estimate)[:2]
    before = size(present)
    least, _, best = min((size(order), place, order) for place, order in enumerate(others))
    return Ordering(present, before, before) if least >= before else Ordering(best, before, least)


def _orders(rows: Tensor, columns: Tensor, likeness: bool) -> Iterator[Tensor]:
    """Orders worth a try, from where weights are not zero: (units, n) and (outputs, units, m), bool."""
    columns = columns.transpose(0, 1).flatten(1)  # (units, outputs * m)
    yield rows.sum(1).argsort(descending=True, stable=True)
    yield columns.sum(1).argsort(descending=True, stable=True)
    if likeness and len(rows) <= COMPARED:
        common = [part.float() @ part.float().T for part in (rows, columns)]  # (units, units) each
        yield _by_likeness(common[0] + common[1])
        yield _by_likeness(common[0] / rows.shape[1] + common[1] / columns.shape[1])


def _by_likeness(common: Tensor) -> Tensor:
    """Units from the fullest on, each followed by the most alike that is left (Jaccard); empty ones last.

    Args:
        common: how many non-zero places two units have in common, (units, units).
    """
    count = common.diagonal()
    alike = common / (count[:, None] + count[None] - common).clamp(min=1e-12)
    alike[:, count == 0] = -1
    order = [int(count.argmax())]
    for _ in range(len(count) - 1):
        alike[:, order[-1]] = -2
        order.append(int(alike[order[-1]].argmax()))
    return torch.tensor(order, device=common.device)


def _positions(alive: Tensor, prior: int | None = None) -> int:
    """Bytes of where a weight is not zero, bool (rows, ...), in adaptive code by a prior, or by what predicts best."""
    flags = alive.flatten(1).byte().cpu().numpy()
    columns = min(flags.shape[1], arithmetic.MOST_COLUMNS)
    flat = flags.reshape(-1)[: flags.size // columns * columns]
    model = Model(columns, 1, True, prior or USUAL, 2)
    code = arithmetic.encode(flat, model if prior else apart.fitted_flags(flat, model), 4 * len(flat) + 64)
    return len(flat) if code is None else len(code)


def _coded(weight: Tensor) -> int:
    """Bytes of a weight as the adaptive coder writes it."""
    raw = files.to_raw(weight.flatten(1))
    return len(encoder.encode_tensor(raw.bits.reshape(-1), raw.dtype, raw.bits.shape, "adaptive"))
