"""How a file on integers agrees with the model that rounds: integer kernels round in other places."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepcompression.errors import InvariantError
from deepcompression.export.exported import Array
from deepcompression.export.onnx_ends import note
from deepcompression.export.onnx_integers import Placed
from deepcompression.export.onnx_run import Runtime, onnxruntime, values

log = logging.getLogger(__name__)

APART = 0.05  # of an output's or a layer's size, in the root mean square: what is more is warned of, layer by layer
BROKEN = 0.25  # what is more is another model: grids of 2 bits with a sum between them were seen to make 0.07
SHOWN = 5  # layers, those that are furthest apart
UNNAMED = "{} has no integer kernel for it as it stands"


@dataclass(frozen=True)
class Agreement:
    """The largest difference of an output, and sentences for people."""

    largest: float
    notes: tuple[str, ...]


def agreement(
    runtime: Runtime,
    content: bytes,
    whole: tuple[Any, Placed],
    pairs: Sequence[tuple[Array, Array]],
    sample: Sequence[Array],
) -> Agreement:
    """Compares, and says what was rounded and what was not.

    Args:
        runtime: of the file.
        content: the file.
        whole: the graph that computes what PyTorch does; what was put on integers.
        pairs: outputs: PyTorch's and the file's.
        sample: inputs of a call.

    Raises:
        InvariantError: the outputs are those of another model.
    """
    apart, largest = 0.0, 0.0
    for output, array in pairs:
        _check_shape(runtime.target, output, array)
        apart = max(apart, _apart(output, array))
        largest = max(largest, float(np.abs(np.float64(output) - array).max(initial=0)))
    reference, placed = whole
    layers = _layers(runtime, content, reference, placed, sample) if apart > APART else {}
    worst = _worst(layers)
    if not apart <= BROKEN:
        raise InvariantError(
            f"export {runtime.target}: outputs in {runtime.name} are {apart:.0%} of their size from PyTorch's, where "
            f"rounding may make {BROKEN:.0%}{worst}; nothing was written"
        )
    if apart > APART:
        told = "export %s: outputs on integers are %.1f %% of their size from PyTorch's%s"
        log.warning(told, runtime.target, 100 * apart, worst)
    how = f"integer kernels round elsewhere: outputs are {apart:.2%} of their size from PyTorch's (bound {BROKEN:.0%})"
    ends = [note(placed.ends, [one.name for one in reference.graph.input])] if placed.ends else []
    return Agreement(largest, (f"{how}{worst}", *_notes(runtime, content, placed), *ends))


def _check_shape(target: str, wanted: Array, got: Array) -> None:
    if wanted.shape != got.shape:
        raise InvariantError(f"export {target}: an output is {got.shape} instead of {wanted.shape}")


def _apart(wanted: Array, got: Array) -> float:
    """The difference in the root mean square, as a part of what is wanted."""
    size = float(np.square(np.float64(wanted)).sum())
    gap = float(np.square(np.float64(got) - wanted).sum())
    return float(np.sqrt(gap / size)) if size else float(gap > 0)


def _layers(
    runtime: Runtime, content: bytes, reference: Any, placed: Placed, sample: Sequence[Array]
) -> dict[str, float]:
    """How far each value that was put on integers is from the model's."""
    import onnx

    model = onnx.load_model_from_string(content)
    made = {name for node in model.graph.node for name in node.output}
    known = {name for node in reference.graph.node for name in node.output}
    pairs = {name: one for name, one in placed.stands.items() if one.rounded in made}
    if not pairs:
        return {}
    same = [one.rounded if one.rounded in known else one.value for one in pairs.values()]
    got = values(model, [one.rounded for one in pairs.values()], runtime.open)(sample)
    wanted = values(reference, same, onnxruntime(1).open)(sample)
    return {name: _apart(right, left) for name, left, right in zip(pairs, got, wanted, strict=True)}


def _worst(layers: Mapping[str, float]) -> str:
    worst = sorted(((apart, name) for name, apart in layers.items() if apart > APART), reverse=True)[:SHOWN]
    return f"; more than {APART:.0%} at " + ", ".join(f"{name} {apart:.1%}" for apart, name in worst) if worst else ""


def _notes(runtime: Runtime, content: bytes, placed: Placed) -> list[str]:
    floats, reasons = set(runtime.floats(content)), defaultdict(list)
    for name in (*(one for one in placed.integers if one in floats), *placed.left):
        reasons[placed.left.get(name, UNNAMED.format(runtime.name))].append(name)
    integers = [one for one in placed.integers if one not in floats]
    notes = [f"{len(integers)} layers multiply integers"] if integers else []
    notes += [f"float: {', '.join(names)}: {why}" for why, names in reasons.items()]
    if placed.observed:
        notes.append(
            f"rounded to 8 bits by their range on the export's samples, as the model has no grid for them: values "
            f"{', '.join(placed.observed[:SHOWN])}{', ...' if len(placed.observed) > SHOWN else ''}"
        )
    return notes
