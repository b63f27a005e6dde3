"""The paper's correction of dropout for a sparse layer, as a method of training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from deepcompression.errors import StructureError
from deepcompression.network import names
from deepcompression.network.state import density
from deepcompression.structure.hold import held_state
from deepcompression.training.method import Account, Context, Method, Now

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
    """Gives each module its rate for the density of its tensor (its own where none is); returns them.

    Args:
        model: changed in place.
        rates: of dropout modules, by name.
        densities: of tensors, by name.
    """
    used = {}
    for name, rate in rates.items():
        used[name] = corrected_dropout(rate.original, densities.get(rate.tensor, 1.0))
        model.get_submodule(name).p = used[name]  # type: ignore[assignment]
    return used


class DropoutCorrection(Method):
    """Dropout rates follow the density of the layers that they feed; the modules' own come back in the end.

    Args:
        dropout: dropout module -> the layer that follows it.

    Han et al. (2015), section 3.2 and equation 2.
    """

    name: ClassVar[str] = "dropout"

    def __init__(self, dropout: Mapping[str, str]) -> None:
        self.dropout = dropout
        self._rates: dict[str, Rate] = {}
        self._used: dict[str, float] = {}

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Finds the modules; StructureError where there are none of these names."""
        self._rates = dropout_rates(model, self.dropout)
        return []

    def before_step(self, model: nn.Module, now: Now) -> None:
        """Corrects the rates before the first step, and whenever masks have changed."""
        if now.changed or not self._used:
            weights = held_state(model, {rate.tensor for rate in self._rates.values()})
            self._used = set_dropout(model, self._rates, {name: density(weights, [name]) for name in weights})

    def finish(self, model: nn.Module) -> Account:
        """The rates that the last step was trained with."""
        return Account(report={"dropout": self._used})

    def close(self, model: nn.Module) -> None:
        """Gives the modules their own rates back."""
        set_dropout(model, self._rates, {})
