"""How a file on integers agrees with the model that rounds, and what of it is rounded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deepcompression.export.agreement import SHOWN, apart, judged
from deepcompression.export.exported import Array
from deepcompression.export.onnx_ends import note
from deepcompression.export.onnx_integers import Placed
from deepcompression.export.onnx_run import Runtime, onnxruntime, values

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
    reference, placed = whole
    layers = lambda: _layers(runtime, content, reference, placed, sample)  # noqa: E731
    largest, how = judged(runtime.target, runtime.name, pairs, layers)
    ends = [note(placed.ends, [one.name for one in reference.graph.input])] if placed.ends else []
    return Agreement(largest, (how, *_notes(runtime, content, placed), *ends))


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
    return {name: apart(right, left) for name, left, right in zip(pairs, got, wanted, strict=True)}


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
