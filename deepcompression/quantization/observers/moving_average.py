"""The least and the greatest value of a sample, averaged over samples, later ones counting more.

As in Jacob et al. (2018), "Quantization and training of neural networks for efficient integer-arithmetic-only
inference", arXiv 1712.05877, section 3.1.
"""

from __future__ import annotations

from deepcompression.quantization.observers.histogram import Histogram
from deepcompression.quantization.observers.ranges import Wanted


def bounds(seen: Histogram, wanted: Wanted) -> tuple[float, float]:
    """The range: exponential moving averages, a sample counting a tenth of all before it and itself."""
    return seen.average or (0.0, 0.0)
