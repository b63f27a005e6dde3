"""How fine the values of each tensor are, for a size in bytes: the least relative error that the coded bytes allow.

What a network's outputs lose by a tensor is taken to grow with the square of that tensor's relative error, whatever its
size: a large one, such as an embedding, gets fewer bits a weight than a small one. Errors and bytes come from counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from deepcompression.codec.dtypes import DTYPES
from deepcompression.codec.parts import Part
from deepcompression.datafree.points import points_of
from deepcompression.datafree.tensor import stepped
from deepcompression.datafree.treatment import Treatment
from deepcompression.errors import StructureError
from deepcompression.sharing.points import Floats
from deepcompression.structure.counted import Counted
from deepcompression.structure.cut import Cut

# Steps relative to the root mean square: an error at most of 1/900 of the weights' size, and nearly all of them zero.
KNOTS = 2.0 ** np.arange(-8, 2.51, 0.25)
FINE = 2.0 ** np.arange(-8, 2.51, 1 / 16)
ROUNDS = 5
NEAR = 0.99  # of the bytes, from which on no other round is worth its time
_HEAD = 48  # bytes of a blob beside its codes and values


@dataclass(frozen=True, eq=False)
class Curve:
    """What a tensor costs and loses by FINE steps.

    Attributes:
        scale: root mean square of what is not pruned: a step of 1.
        costs: bytes (s,), estimated.
        losses: squared error relative to its squares (s,).
    """

    scale: float
    costs: Floats
    losses: Floats


def curve_of(found: Counted, cut: Cut | None) -> Curve | None:
    """The curve of a tensor; None where nothing is left in it.

    Args:
        found: the tensor, counted.
        cut: what is pruned of it.
    """
    points = points_of(found, cut.stays if cut else None)
    if not points.keys.size:
        return None
    every = points_of(found) if cut else points
    energy = float(every.counts @ np.square(every.keys))
    kept = float(points.counts @ np.square(points.keys))
    scale = (kept / points.counts.sum()) ** 0.5
    itemsize = min(DTYPES[found.dtype].itemsize, 2)
    measured = []
    for knot in KNOTS:
        _, means, counts = stepped(points, knot * scale)
        zeros = found.elements - counts[means != 0].sum()
        shares = np.append(counts[means != 0], zeros) / found.elements
        bits = -found.elements * float(shares @ np.log2(np.maximum(shares, 1e-300)))
        measured.append((bits / 8 + itemsize * len(means) + _HEAD, energy - float(counts @ np.square(means))))
    costs, losses = np.array(measured).T
    losses = np.maximum(losses / energy, 1e-12)
    at = np.log2(FINE), np.log2(KNOTS)
    return Curve(scale, 2 ** np.interp(*at, np.log2(costs)), 2 ** np.interp(*at, np.log2(losses)))


def chosen(curves: Mapping[str, Curve], weights: Mapping[str, float], room: float) -> dict[str, int]:
    """The place in FINE of each tensor's step, such that costs are at most `room` together and losses least.

    Args:
        curves: by name.
        weights: what losses count, by name.
        room: bytes.

    Raises:
        StructureError: even the coarsest steps take more; says how much.
    """
    coarsest = sum(float(one.costs.min()) for one in curves.values())
    if coarsest > room:
        raise StructureError(
            f"so small a file is out of reach: tensors that are kept and the coarsest values of the others take about "
            f"{coarsest - room:,.0f} bytes more; allow a larger one, or keep fewer tensors"
        )
    low, high = -100.0, 100.0  # of the price of a byte, as a power of two
    for _ in range(60):
        middle = (low + high) / 2
        if _cost(curves, _at_price(curves, weights, 2.0**middle)) <= room:
            high = middle
        else:
            low = middle
    return _at_price(curves, weights, 2.0**high)


def _at_price(curves: Mapping[str, Curve], weights: Mapping[str, float], price: float) -> dict[str, int]:
    return {name: int(np.argmin(weights[name] * one.losses + price * one.costs)) for name, one in curves.items()}


def _cost(curves: Mapping[str, Curve], places: Mapping[str, int]) -> float:
    return sum(float(curves[name].costs[place]) for name, place in places.items())


def fitted(
    plan: Mapping[str, Treatment],
    curves: Mapping[str, Curve],
    most: int,
    make: Callable[[Mapping[str, Treatment]], Mapping[str, Part]],
    size: Callable[[Mapping[str, Part]], int],
) -> Mapping[str, Part]:
    """Parts that take at most `most` bytes in a file, and nearly so many; made again until they do.

    Args:
        plan: a treatment for each tensor; those with a curve get their steps.
        curves: by name.
        most: bytes of the file.
        make: the parts of a plan, of which those made before cost nothing.
        size: bytes of a file of such parts.

    Raises:
        StructureError: that many bytes are too few.
    """
    weights = {name: plan[name].weight for name in curves}
    room, best = float(most), None
    known = dict(curves)
    for _ in range(ROUNDS):
        places = chosen(known, weights, room)
        parts = make(with_steps(plan, known, places))
        taken = size(parts)
        if taken <= most and (best is None or taken > size(best)):
            best = parts
        if NEAR * most <= taken <= most:
            break
        # What was estimated is set right tensor by tensor, and what is no tensor's leaves less room.
        known = {name: _measured(one, places[name], parts[name].size) for name, one in known.items()}
        room = most * (1 - (1 - NEAR) / 4) - (taken - _cost(known, places))
    if best is None:
        raise StructureError(f"no values were found that take {most:,} bytes; allow some more")
    return best


def with_steps(
    plan: Mapping[str, Treatment], curves: Mapping[str, Curve], places: Mapping[str, int]
) -> dict[str, Treatment]:
    """`plan` with the steps of what has a curve.

    Args:
        plan: by name.
        curves: by name.
        places: in FINE, by name.
    """
    return dict(plan) | {
        name: replace(plan[name], step=float(np.float32(FINE[place] * curves[name].scale)))
        for name, place in places.items()
    }


def _measured(curve: Curve, place: int, size: int) -> Curve:
    """The curve through what a step really took."""
    return replace(curve, costs=curve.costs * (size / curve.costs[place]))
