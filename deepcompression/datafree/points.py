"""Values that were counted by patterns, as k-means takes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepcompression.sharing.points import Points
from deepcompression.structure.counted import Counted, ascending_patterns, values_of


def points_of(found: Counted, counts: NDArray[np.int64] | None = None) -> Points:
    """The values other than zero, ascending: counts, means and sums of each pattern.

    Args:
        found: a tensor, counted.
        counts: how many elements of each pattern are looked at; None is all.
    """
    counts = found.counts if counts is None else counts
    ascending = ascending_patterns(found.dtype)
    used = ascending[(counts[ascending] > 0) & (values_of(found.dtype)[ascending] != 0)]
    return Points(counts[used], found.sums[used] * (counts[used] / found.counts[used]))
