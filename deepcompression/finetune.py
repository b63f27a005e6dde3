"""Retraining with structure held, and the paper's correction of dropout for a sparse layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from deepcompression import holding, selection, structure
from deepcompression.errors import StructureError
from deepcompression.problem import Problem
from deepcompression.training import Fit, fit

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class Rate:
    """A dropout module's own rate, and the tensor whose density corrects it."""

    original: float
    tensor: str


@dataclass(frozen=True)
class Finetuned:
    """What training did, what it held, and the dropout rates (by module) that it trained with."""

    fit: Fit
    held: holding.Held
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
    state = structure.plain_state(model)
    densities = {rate.tensor: structure.density(state, [rate.tensor]) for rate in rates.values()}
    held = holding.hold(model, zeros, shared=shared)
    used = set_dropout(model, rates, densities)
    try:
        done = fit(model, problem, **fit_arguments)
    finally:
        set_dropout(model, rates, {})
        holding.bake(model)
    return Finetuned(done, held, used)


def corrected_dropout(rate: float, density: float) -> float:
    """The rate for a layer of which ``density`` is left: rate * sqrt(density) (Han 2015, equation 2)."""
    return rate * math.sqrt(density)


def dropout_rates(model: nn.Module, dropout: Mapping[str, str]) -> dict[str, Rate]:
    """The rates to correct, by dropout module.

    Args:
        model: any.
        dropout: dropout module -> the layer that follows it.

    Raises:
        StructureError: a key is no dropout module, or a value no layer of the model.
    """
    modules = dict(model.named_modules())
    rates = {}
    for name, layer in dropout.items():
        module = modules.get(name)
        if not isinstance(module, DROPOUTS):
            known = ", ".join(key for key, one in modules.items() if isinstance(one, DROPOUTS)) or "none"
            raise StructureError(f"dropout {name!r}: no dropout module of the model; it has: {known}")
        rates[name] = Rate(float(module.p), selection.select(model, [layer])[0])
    return rates


def set_dropout(model: nn.Module, rates: Mapping[str, Rate], densities: Mapping[str, float]) -> dict[str, float]:
    """Gives each module its rate for the density of its tensor (its own where none is); returns them."""
    used = {}
    for name, rate in rates.items():
        used[name] = corrected_dropout(rate.original, densities.get(rate.tensor, 1.0))
        model.get_submodule(name).p = used[name]  # type: ignore[assignment]
    return used
