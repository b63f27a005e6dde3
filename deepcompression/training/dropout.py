"""The paper's correction of dropout for a sparse layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from deepcompression.errors import StructureError
from deepcompression.network import names

DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True)
class Rate:
    """A dropout module's own rate, and the tensor whose density corrects it."""

    original: float
    tensor: str


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
        rates[name] = Rate(float(module.p), names.select(model, [layer])[0])
    return rates


def set_dropout(model: nn.Module, rates: Mapping[str, Rate], densities: Mapping[str, float]) -> dict[str, float]:
    """Gives each module its rate for the density of its tensor (its own where none is); returns them."""
    used = {}
    for name, rate in rates.items():
        used[name] = corrected_dropout(rate.original, densities.get(rate.tensor, 1.0))
        model.get_submodule(name).p = used[name]  # type: ignore[assignment]
    return used
