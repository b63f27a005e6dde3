"""How outputs on integers agree with those of the model that rounds: integer kernels round in other places."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from deepcompression.errors import InvariantError
from deepcompression.export.exported import Array

log = logging.getLogger(__name__)

APART = 0.05  # of an output's or a layer's size, in the root mean square: what is more is warned of, layer by layer
BROKEN = 0.25  # what is more is another model: grids of 2 bits with a sum between them were seen to make 0.07
SHOWN = 5  # layers, those that are furthest apart


def judged(
    target: str, runtime: str, pairs: Iterable[tuple[Array, Array]], layers: Callable[[], Mapping[str, float]]
) -> tuple[float, str]:
    """The largest difference of an output, and a sentence for people; warns of what is more than ``APART``.

    Args:
        target: the export's word.
        runtime: where the file runs, for people.
        pairs: outputs: PyTorch's and the file's, each of one shape.
        layers: gives how far apart each layer is, by name; asked where outputs are more than ``APART``.

    Raises:
        InvariantError: the outputs are those of another model, or of another shape.
    """
    size, largest = 0.0, 0.0
    for wanted, got in pairs:
        if wanted.shape != got.shape:
            raise InvariantError(f"export {target}: an output is {got.shape} instead of {wanted.shape}")
        size = max(size, apart(wanted, got))
        largest = max(largest, float(np.abs(np.float64(wanted) - got).max(initial=0)))
    worst = "" if size <= APART else _worst(layers())
    if not size <= BROKEN:  # nor NaN
        raise InvariantError(
            f"export {target}: outputs in {runtime} are {size:.0%} of their size from PyTorch's, where rounding may "
            f"make {BROKEN:.0%}{worst}; nothing was written"
        )
    if size > APART:
        told = "export %s: outputs on integers are %.1f %% of their size from PyTorch's%s"
        log.warning(told, target, 100 * size, worst)
    how = f"integer kernels round elsewhere: outputs are {size:.2%} of their size from PyTorch's (bound {BROKEN:.0%})"
    return largest, f"{how}{worst}"


def together(elements: Sequence[Sequence[tuple[Array, Array]]]) -> list[tuple[Array, Array]]:
    """Of each output one pair, over all elements of a sample.

    Args:
        elements: for each the pairs of its outputs, each of one shape.
    """
    outputs = zip(*elements, strict=True)  # one tuple an output: its pair for each element
    return [(np.stack([one for one, _ in some]), np.stack([got for _, got in some])) for some in outputs]


def apart(wanted: Array, got: Array) -> float:
    """The difference in the root mean square, as a part of what is wanted.

    Args:
        wanted: any shape.
        got: of the same shape.
    """
    size = float(np.square(np.float64(wanted)).sum())
    gap = float(np.square(np.float64(got) - wanted).sum())
    return float(np.sqrt(gap / size)) if size else float(gap > 0)


def _worst(layers: Mapping[str, float]) -> str:
    worst = sorted(((size, name) for name, size in layers.items() if size > APART), reverse=True)[:SHOWN]
    return f"; more than {APART:.0%} at " + ", ".join(f"{name} {size:.1%}" for size, name in worst) if worst else ""
