"""Observers: what each makes of the values that came by a site, as the range that is to be on a grid.

Behind each name stands the module that has ``bounds(seen, wanted) -> (low, high)``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepcompression.quantization.observers.histogram import Histogram
    from deepcompression.quantization.observers.ranges import Wanted

OBSERVERS: dict[str, str] = {
    "minmax": "deepcompression.quantization.observers.minmax",
    "moving_average": "deepcompression.quantization.observers.moving_average",
    "percentile": "deepcompression.quantization.observers.percentile",
    "mse": "deepcompression.quantization.observers.mse",
    "kl": "deepcompression.quantization.observers.kl",
    "symmetric_kl": "deepcompression.quantization.observers.symmetric_kl",
    "kl_j": "deepcompression.quantization.observers.kl_j",
    "js": "deepcompression.quantization.observers.js",
}


def bounds(name: str, seen: Histogram, wanted: Wanted) -> tuple[float, float]:
    """The range that an observer of the table takes: low at most 0, high at least 0.

    Args:
        name: of the observer.
        seen: the values.
        wanted: bits, scheme, and what some observers ask for.
    """
    module: Any = import_module(OBSERVERS[name])
    low, high = module.bounds(seen, wanted)
    return min(float(low), 0.0) + 0.0, max(float(high), 0.0)
