"""Retraining with structure held, and the paper's correction of dropout for a sparse layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from deepcompression.network.state import density, plain_state
from deepcompression.structure import hold
from deepcompression.training.dropout import dropout_rates, set_dropout
from deepcompression.training.loop import Fit, fit
from deepcompression.training.problem import Problem


@dataclass(frozen=True)
class Finetuned:
    """What training did, what it held, and the dropout rates (by module) that it trained with."""

    fit: Fit
    held: hold.Held
    dropout: dict[str, float]


def finetune(
    model: nn.Module,
    problem: Problem,
    *,
    zeros: Sequence[str],
    shared: Sequence[str] = (),
    dropout: Mapping[str, str] | None = None,
    **fit_arguments: Any,
) -> Finetuned:
    """Trains ``model`` in place from its present weights; zeros and sharing stay.

    Args:
        model: with ordinary parameters; baked again at the end, also when training fails.
        problem: data, step, metric.
        zeros: tensors whose zeros stay.
        shared: tensors whose sharing stays; their centroids are trained (section 3.3).
        dropout: dropout module -> the layer whose sparsity corrects its rate.
        **fit_arguments: of ``training.fit``.

    Raises:
        StructureError: no such tensor or module.
        DivergedError, StorageError, FactoryError: as ``training.fit``.
    """
    rates = dropout_rates(model, dropout or {})
    state = plain_state(model)
    densities = {rate.tensor: density(state, [rate.tensor]) for rate in rates.values()}
    held = hold.hold(model, zeros, shared=shared)
    used = set_dropout(model, rates, densities)
    try:
        done = fit(model, problem, **fit_arguments)
    finally:
        set_dropout(model, rates, {})
        hold.bake(model)
    return Finetuned(done, held, used)
