"""What budget mode needs of a run's stages: the options of each tensor, and what a search leaves behind."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.execution.run import Reference, Run
from tasks.report.pareto import Point, front, picture
from tasks.stages.sensitivity import curves
from tasks.stages.slim import outputs
from tasks.storage.store import write_json

if TYPE_CHECKING:
    from deepcompression.allocation.allocate import Allocation, TensorCurves
    from deepcompression.allocation.budget import Clock

SPREAD = 3.0
# What was lost at once, before any training: training makes up for most of what pruning costs, hardly for lost levels.
LEVELS_COST = 3.0  # times as much
SMALLEST_SHARED = 16  # elements of a bias or a normalisation that are worth a codebook


def options(run: Run, tried: Reference, coder: str) -> tuple[list[TensorCurves], int]:
    """What each tensor may be pruned and shared to, with measured bytes and weighed losses; the bytes of all the rest.

    Args:
        run: the run.
        tried: what the sensitivity task made; its weights are those that it tried.
        coder: that of the file.
    """
    from deepcompression.allocation.allocate import curves_of, has_options
    from deepcompression.formats import state_dict as files
    from deepcompression.quantization.precision import round_precision

    state, measured = run.state(tried), curves(run, tried)
    tensors = [one for one in measured.tensors if one.by_density and one.by_bits]
    found = [curves_of(one, measured.base.loss, state[one.name].float().numpy(), coder) for one in tensors]
    found = [replace(one, bits_loss=tuple(LEVELS_COST * rise for rise in one.bits_loss)) for one in found]
    found = [one for one in found if has_options(one)]
    priced = {one.name for one in found}
    rest = round_precision({name: tensor for name, tensor in state.items() if name not in priced}, rest="bfloat16")
    return found, len(files.encode(rest.state, coder))


def predicted(run: Run, tried: Reference, allocation: Allocation, *, in_points: bool) -> float:
    """By how much the metric is likely to be worse after a step's training; see ``predicted_loss``."""
    from deepcompression.allocation.budget import predicted_loss

    found, higher = curves(run, tried), bool(run.metric_object().higher_is_better)
    tensors = [one for one in found.tensors if one.name in allocation.density]
    return predicted_loss(
        allocation.density,
        allocation.bits,
        tensors,
        found.base.metric,
        higher_is_better=higher,
        in_points=in_points,
    )


def clock_of(run: Run, dense: Reference, an_epoch: float, a_look: float) -> Clock:
    """What a step's parts take, and how many there are of each."""
    from torch import Tensor

    from deepcompression.allocation.budget import Clock
    from deepcompression.network import names

    model, split = run.model_with(dense), run.splits().validation
    tensors = len(set(names.prunable(model)))
    others = len({name for name, one in run.state(dense).items() if one.is_floating_point()}) - tensors
    cut = isinstance(split, tuple | list) and all(isinstance(part, Tensor) for part in split)
    return Clock(an_epoch, a_look, tensors, max(others, 0), int(dense.numbers["val_total"]), cut)


def layers(run: Run, dense: Reference) -> int:
    """How many tensors are compressed by default."""
    from deepcompression.network import names

    return len(set(names.prunable(run.model_with(dense))))


def epoch_seconds(run: Run, dense: Reference) -> float | None:
    """Mean seconds of an epoch in which the dense model was trained; None where it was read from a file."""
    history = (run.store.find(dense.key) or {}).get("history") or []
    seconds = [float(row["seconds"]) for row in history if row.get("seconds") is not None]
    return sum(seconds) / len(seconds) if seconds else None


def worth_sharing(run: Run, reference: Reference) -> list[str]:
    """Biases and normalisations (vectors) that are long enough for a codebook, and not all zero.

    Other matrices that are not pruned, such as embeddings, are not among them: few values would do them harm.
    """
    from deepcompression.network import names

    model = run.model_with(reference)
    known = names.parameters(model)
    vectors = [name for name in dict.fromkeys(names.first_names(model).values()) if known[name].ndim < 2]
    return [name for name in vectors if known[name].numel() >= SMALLEST_SHARED and bool(known[name].any())]


def units_to_keep(run: Run, reference: Reference, density: Mapping[str, float]) -> dict[str, int]:
    """How many units stay of each layer that has more, where its weights are to be pruned to ``density``.

    The rows and columns of a layer's matrix both shrink to 3 x sqrt(density), so that what is left of it is one ninth
    dense: weights that stand close together code smaller than the same number strewn over all units.
    """
    from deepcompression.network import trace

    state, model = run.state(reference), run.model_with(reference)
    found = trace.chains(model, trace.shapes(model, lambda one: outputs(run, one)))[0]
    pruned = [one for one in found if one.weight in density]  # what is zero throughout is not
    keep = {one.producer: math.ceil(SPREAD * math.sqrt(density[one.weight]) * one.units) for one in pruned}
    alive = {one.producer: int(state[one.weight].flatten(1).any(1).sum()) for one in pruned}
    return {layer: count for layer, count in keep.items() if count < alive[layer]}


def leave(run: Run, outcome: Mapping[str, Any]) -> None:
    """The search as a table and as a picture: in the run's folder and in MLflow.

    Args:
        run: the run.
        outcome: ``steps`` (each with ``number``, ``file_bytes``, ``val_metric``), ``chosen`` (a number),
            ``metric_loss`` or ``file_bytes``, ``in_points``, ``higher_is_better`` and what ``pareto.picture`` needs.
    """
    folder = Path(run.folder)
    points = [Point(one["number"], one["file_bytes"], one["val_metric"]) for one in outcome["steps"]]
    best = front(points, higher=outcome["higher_is_better"])
    for step in outcome["steps"]:
        step["pareto"] = step["number"] in {point.number for point in best}
    write_json(folder / "budget.json", dict(outcome))
    taken, worst = points[outcome["chosen"] - 1], None
    if outcome["metric_loss"] is not None:
        lost = outcome["metric_loss"] / (100 if outcome["in_points"] else 1)
        worst = outcome["dense_val_metric"] + (-lost if outcome["higher_is_better"] else lost)
    path = folder / "figures" / "pareto.svg"
    picture(points, best, {}, outcome, path, taken=taken, worst=worst, most_bytes=outcome["file_bytes"])
    run.tracker.artifact(folder / "budget.json")
    run.tracker.artifact(folder / "figures" / "pareto.svg", "figures")
