"""How a file on integers agrees with the model that rounds: integer kernels round in other places."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from deepcompression.errors import InvariantError
from deepcompression.export.exported import Array
from deepcompression.export.onnx_integers import Placed
from deepcompression.export.onnx_run import OnnxSession, multiplied_as_floats, values

APART = 0.05  # of an output's or a layer's size, in the root mean square: what is more is told layer by layer
BROKEN = 0.5  # what is more is another model
SHOWN = 5  # layers, those that are furthest apart
UNNAMED = "onnxruntime has no integer kernel for it as it stands"


@dataclass(frozen=True)
class Agreement:
    """The largest difference of an output, and sentences for people."""

    largest: float
    notes: tuple[str, ...]


def agreement(
    content: bytes,
    reference: Any,
    placed: Placed,
    wanted: Sequence[Sequence[Array]],
    samples: Sequence[Sequence[Array]],
    threads: int,
) -> Agreement:
    """Compares, and says what was rounded and what was not.

    Args:
        content: the file.
        reference: the graph that computes what PyTorch does.
        placed: what was put on integers.
        wanted: PyTorch's outputs, for each of the samples.
        samples: inputs.
        threads: of an op.

    Raises:
        InvariantError: the outputs are those of another model.
    """
    session = OnnxSession(content, threads)
    apart, largest = 0.0, 0.0
    for inputs, outputs in zip(samples, wanted, strict=True):
        for output, array in zip(outputs, session(inputs), strict=True):
            _check_shape(output, array)
            apart = max(apart, _apart(output, array))
            largest = max(largest, float(np.abs(np.float64(output) - array).max(initial=0)))
    layers = _layers(content, reference, placed, samples[0], threads) if apart > APART else {}
    if not apart <= BROKEN:
        raise InvariantError(
            f"export onnx: outputs in onnxruntime are {apart:.0%} of their size from PyTorch's, where rounding may "
            f"make {BROKEN:.0%}{_worst(layers)}; nothing was written"
        )
    how = f"integer kernels round elsewhere: outputs are {apart:.2%} of their size from PyTorch's (bound {BROKEN:.0%})"
    return Agreement(largest, (f"{how}{_worst(layers)}", *_notes(content, placed, threads)))


def _check_shape(wanted: Array, got: Array) -> None:
    if wanted.shape != got.shape:
        raise InvariantError(f"export onnx: an output is {got.shape} instead of {wanted.shape}")


def _apart(wanted: Array, got: Array) -> float:
    """The difference in the root mean square, as a part of what is wanted."""
    size = float(np.square(np.float64(wanted)).sum())
    gap = float(np.square(np.float64(got) - wanted).sum())
    return float(np.sqrt(gap / size)) if size else float(gap > 0)


def _layers(content: bytes, reference: Any, placed: Placed, sample: Sequence[Array], threads: int) -> dict[str, float]:
    """How far each value that was put on integers is from the model's."""
    import onnx

    model = onnx.load_model_from_string(content)
    made = {name for node in model.graph.node for name in node.output}
    known = {name for node in reference.graph.node for name in node.output}
    pairs = {name: one for name, one in placed.stands.items() if one.rounded in made}
    if not pairs:
        return {}
    same = [one.rounded if one.rounded in known else one.value for one in pairs.values()]
    got = values(model, [one.rounded for one in pairs.values()], threads)(sample)
    wanted = values(reference, same, threads)(sample)
    return {name: _apart(right, left) for name, left, right in zip(pairs, got, wanted, strict=True)}


def _worst(layers: Mapping[str, float]) -> str:
    worst = sorted(((apart, name) for name, apart in layers.items() if apart > APART), reverse=True)[:SHOWN]
    return f"; more than {APART:.0%} at " + ", ".join(f"{name} {apart:.1%}" for apart, name in worst) if worst else ""


def _notes(content: bytes, placed: Placed, threads: int) -> list[str]:
    floats, reasons = set(multiplied_as_floats(content, threads)), defaultdict(list)
    for name in (*(one for one in placed.integers if one in floats), *placed.left):
        reasons[placed.left.get(name, UNNAMED)].append(name)
    integers = [one for one in placed.integers if one not in floats]
    notes = [f"{len(integers)} layers multiply integers"] if integers else []
    notes += [f"float: {', '.join(names)}: {why}" for why, names in reasons.items()]
    if placed.observed:
        notes.append(
            f"rounded to 8 bits by their range on the export's samples, as the model has no grid for them: values "
            f"{', '.join(placed.observed[:SHOWN])}{', ...' if len(placed.observed) > SHOWN else ''}"
        )
    return notes
