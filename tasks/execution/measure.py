"""What a stage's result is worth: bytes as really encoded, metric on validation, density.

Ratio, bits a weight and densities are of the dense model's weights: what was removed counts as what is zero, and what
came in its place as what is left.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.execution.run import Reference, Run
from tasks.execution.sources import code_digest

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepcompression.structure.constraints import Structure

log = logging.getLogger(__name__)


def measuring_code() -> str:
    """The digest of the code that measures: results that other code measured are measured anew."""
    return code_digest(__name__)


def measure(
    run: Run,
    source: Reference | None,
    state: Mapping[str, Tensor] | None,
    file: Path | None,
    structure: Structure,
    edits: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The numbers of a state; of an encoded file those of its input, which it holds bit for bit, and its bytes.

    Args:
        run: the run.
        source: the stage before, or None.
        state: tensors by names of the edited model; None of an encoded file.
        file: the encoded file, or None.
        structure: what is true of the tensors.
        edits: what turns the recipe's model into the one of ``state``.

    Returns:
        Bytes and what follows from them, validation results; ``density``: the share of the dense model's weights that
        is left and not zero, in the tensors that are pruned by default or were pruned; ``model_density``: the same of
        all parameters.
    """
    from deepcompression.formats import state_dict as files
    from deepcompression.network import names as selection
    from deepcompression.network.state import plain_state
    from deepcompression.structure.constraints import ZEROS, having
    from deepcompression.training.evaluate import evaluate

    if state is None:  # the encoded file: the same weights as its input
        assert source is not None and file is not None
        return {**_inherited(source), **_sizes(file.stat().st_size, source.numbers)}
    model = run.edited_model(edits)
    base = source.numbers if source else _dense(run)
    model.load_state_dict(dict(state))
    problem = run.problem()
    result = evaluate(model, problem.validation, problem.step, problem.metric, run.compute())
    for name, value in ((str(problem.metric.name), result.metric), ("loss", result.loss)):
        if not math.isfinite(value):
            log.warning("val %s is not a number (%s): it wins over nothing, and JSON has null for it", name, value)
    state, zeros = plain_state(model), having(structure, ZEROS)
    dense = _dense_model(run, model, edits)
    weights = dense.state_dict()
    came = {name: one for name, one in selection.first_names(model).items() if name == one and name not in weights}
    return {
        "dense_bytes": base["dense_bytes"],
        "weights": base["weights"],
        **_sizes(len(files.encode(state, "packed")), base),
        "density": left(
            state,
            judged(selection.prunable(dense), [one for one in zeros if one in weights], weights),
            weights,
            [name for name in selection.prunable(model) if name in came],
        ),
        "model_density": left(state, dict.fromkeys(selection.first_names(dense).values()), weights, came),
        "val_metric": result.metric,
        "val_loss": result.loss,
        "val_correct": result.correct,
        "val_total": result.total,
    }


def _dense_model(run: Run, edited: nn.Module, edits: Sequence[Mapping[str, Any]]) -> nn.Module:
    """The model of a state, with all that edits took from it; its tensors are named as the baseline's."""
    folded = [edit for edit in edits if edit["kind"] == "fold"]
    return edited if len(folded) == len(edits) else run.edited_model(folded)


def _dense(run: Run) -> dict[str, int]:
    from deepcompression.network.state import dense_bytes

    model = run.blank_model()
    return {"dense_bytes": dense_bytes(model), "weights": _weights(model)}


def left(
    state: Mapping[str, Tensor], names: Iterable[str], dense: Mapping[str, Tensor], came: Iterable[str] = ()
) -> float:
    """The share of the dense weights that is left and not +0.0; 1.0 where there are none.

    Args:
        state: what is left; a tensor may be smaller than its dense one, or gone.
        names: which tensors count.
        dense: those of the dense model, by name; sizes alone matter.
        came: tensors that the dense model has not, and whose weights count with what is left.
    """
    from deepcompression.network.state import is_zero

    names = list(names)
    total = sum(dense[name].numel() for name in names)
    kept = sum(int((~is_zero(state[name])).sum()) for name in (*names, *came) if name in state)
    return 1 - (total - kept) / total if total else 1.0


def judged(prunable: Sequence[str], zeros: Sequence[str], state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors whose density is told: what is pruned by default, and every other matrix that was pruned.

    Vectors are told only where there is nothing else.
    """
    matrices = [name for name in zeros if state[name].ndim > 1]
    return list(dict.fromkeys([*prunable, *matrices])) or list(zeros)


def _inherited(source: Reference) -> dict[str, Any]:
    names = ("dense_bytes", "weights", "density", "val_metric", "val_loss", "val_correct", "val_total")
    return {**{name: source.numbers[name] for name in names}, "model_density": source.numbers.get("model_density")}


def _sizes(count: int, base: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "size_bytes": count,
        "compression_ratio": base["dense_bytes"] / count,
        "bits_per_weight": 8 * count / base["weights"],
    }


def _weights(model: nn.Module) -> int:
    """Parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())
