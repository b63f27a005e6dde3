"""Two models on the same samples, each right or wrong: is the difference more than chance?"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE = 0.95
CHANCE = 0.05  # a smaller p is called hardly chance; the interval's complement


@dataclass(frozen=True)
class Comparison:
    """How the second model's errors differ from the first's, on the same samples.

    ``broken``: right before, wrong after; ``mended``: wrong before, right after. ``difference``: how many more errors,
    as a fraction of 1, with its 95 % interval ``low`` to ``high``. ``p_value``: how often chance alone, mending as
    readily as it breaks, would tell the two models at least so far apart.
    """

    total: int
    broken: int
    mended: int
    difference: float
    low: float
    high: float
    p_value: float


def compare(before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Comparison:
    """The paired comparison of which samples were right before and which are right after.

    The interval is Tango's score interval (Statistics in Medicine 17, 1998, 891-908), which Fagerland, Lydersen and
    Laake recommend (Statistics in Medicine 33, 2014, 2850-2875): it is sound where nothing or everything differs.

    Args:
        before: (n,) whether the first model is right on each sample.
        after: (n,) the same of the second model, in the same order.

    Raises:
        ValueError: the two are not bool, not of one length, or empty.
    """
    for name, scores in (("before", before), ("after", after)):
        if scores.dtype != bool or scores.ndim != 1 or len(scores) != len(before) or not len(scores):
            raise ValueError(
                f"{name}: expected one bool a sample, as many before as after, got {scores.dtype} of shape "
                f"{scores.shape} beside {before.shape}"
            )
    total = len(before)
    broken, mended = int((before & ~after).sum()), int((~before & after).sum())
    return Comparison(
        total,
        broken,
        mended,
        (broken - mended) / total,
        _lower(broken, mended, total),
        -_lower(mended, broken, total),
        mcnemar(broken, mended),
    )


def mcnemar(broken: int, mended: int) -> float:
    """McNemar's exact test: the two-sided p of so uneven a split of ``broken + mended`` fair coins; never 0.

    At least the smallest normal float, where the truth is smaller.
    """
    if broken == mended:
        return 1.0
    from scipy.special import bdtr

    return min(max(2 * float(bdtr(min(broken, mended), broken + mended, 0.5)), sys.float_info.min), 1.0)


def _lower(broken: int, mended: int, total: int) -> float:
    """The lower limit of the difference: where its score is the normal quantile. The upper is that of the swapped."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    low, high = -1.0, (broken - mended) / total
    while low < (middle := (low + high) / 2) < high:
        if _score(middle, broken, mended, total) > z:
            low = middle
        else:
            high = middle
    return low


def _score(difference: float, broken: int, mended: int, total: int) -> float:
    """Tango's statistic, falling in ``difference``: its equations 24 to 26."""
    spread = difference * (1 - difference)
    b = (2 * total - broken + mended) * difference - broken - mended
    root = math.sqrt(max(b * b + 8 * total * mended * spread, 0.0))
    # The larger root, by whichever form does not cancel.
    mending = 2 * mended * spread / (root + b) if b > 0 else (root - b) / (4 * total)
    variance = total * (2 * mending + spread)
    excess = broken - mended - total * difference
    return excess / math.sqrt(variance) if variance > 0 else math.inf


def sentence(comparison: Comparison) -> str:
    """In plain words: ``12 more errors in 10,000; could be chance, p = 0.21``."""
    more = comparison.broken - comparison.mended
    if more == 0:
        return f"as many errors as before{f' ({exchanged(comparison)})' if comparison.broken else ''}"
    word = f"{'more' if more > 0 else 'fewer'} error{'s' if abs(more) > 1 else ''}"
    return f"{abs(more):,} {word} in {comparison.total:,}; {chance(comparison.p_value)}"


def exchanged(comparison: Comparison) -> str:
    """Which errors a net difference hides: ``4 new ones, 4 old ones gone``."""
    return f"{comparison.broken:,} new ones, {comparison.mended:,} old ones gone"


def chance(p_value: float) -> str:
    """``could be chance, p = 0.21``, ``hardly chance, p < 0.0001``."""
    return f"{'hardly' if p_value < CHANCE else 'could be'} chance, p {probability(p_value)}"


def probability(p_value: float) -> str:
    """``= 0.21``, ``< 0.0001``."""
    return "< 0.0001" if p_value < 0.0001 else f"= {p_value:.2g}"


def interval(comparison: Comparison) -> str:
    """``+0.12 points, 95 % interval -0.05 to +0.29``: the difference in percentage points."""
    change, low, high = map(points, (comparison.difference, comparison.low, comparison.high))
    return f"{change} points, 95 % interval {low} to {high}"


def points(fraction: float) -> str:
    """0.0012 -> +0.12, in percentage points."""
    return f"{100 * fraction:+z.2f}"
