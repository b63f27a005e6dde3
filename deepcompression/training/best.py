"""The best state of a training: which one it is, and its copy."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from deepcompression.training.evaluate import Evaluation

log = logging.getLogger(__name__)


def better(result: Evaluation, best: Mapping[str, Any], higher_is_better: bool) -> bool:
    """Whether a validation is better than the best one so far: by metric, then by loss; what is no number never is.

    Args:
        result: of the validation.
        best: of ``best_of``; empty where there is none yet.
        higher_is_better: of the metric.
    """
    if not math.isfinite(result.metric):
        return False  # no state to go back to
    sign = 1 if higher_is_better else -1
    rank = (sign * result.metric, -result.loss if math.isfinite(result.loss) else -math.inf)
    return not best or rank > (sign * best["metric"], -math.inf if math.isnan(best["loss"]) else -best["loss"])


def best_of(epoch: int, result: Evaluation, model: nn.Module) -> dict[str, Any]:
    """What a checkpoint keeps of the best state: epoch, metric, loss, state.

    Args:
        epoch: from 1.
        result: of its validation.
        model: with the state.
    """
    return {"epoch": epoch, "metric": result.metric, "loss": result.loss, "state": copied_state(model)}


def copied_state(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict in host memory: what trains needs its device's."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}


def tell_no_numbers(history: Sequence[Mapping[str, float]], name: str, best: bool) -> None:
    """A warning where epochs were validated with a result that is not a number.

    Args:
        history: of all epochs.
        name: of the metric in it.
        best: whether some state was kept.
    """
    bad = [int(row["epoch"]) for row in history if not math.isfinite(row[name])]
    if not bad:
        return
    which = f"{len(bad)} of {len(history)} epochs" if best else f"any of {len(history)} epochs"
    kept = "the best of the others is kept" if best else "the last epoch's weights are kept, for want of a better rule"
    told = f"{name.replace('_', ' ', 1)} is not a number"
    log.warning("training: %s in %s; %s", told, which, kept)
