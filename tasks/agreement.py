"""Whether an export judges a split as the decoded file does: what rounding makes is told, what is more is refused."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepcompression.errors import ExportError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """Parts that may differ without a word: of a split's samples, of a metric that is no count, of the loss; and of the
    samples that may differ at all.
    """

    samples: float
    metric: float
    loss: float
    most: float


FLOATS = Bounds(samples=1e-4, metric=1e-3, loss=1e-3, most=1e-4)
INTEGERS = Bounds(samples=1e-3, metric=1e-2, loss=5e-2, most=2e-2)
NOTHING = 1e-6  # of a metric or a loss: parts of less mean nothing


def check_agreement(target: str, judged: Mapping[str, Any], final: Mapping[str, Any], *, integers: bool) -> None:
    """Warns where an export's results on a split are further from the decoded file's than rounding makes them.

    One sample may always be decided otherwise.

    Args:
        target: its word.
        judged: of the export: ``split``, ``total``, ``correct`` or None, ``metric``, ``loss``; nothing of that where it
            was not judged.
        final: the same of the decoded file.
        integers: whether it computes with integers.

    Raises:
        ExportError: it recognises what the decoded file does not, or less, beyond rounding; or its metric is no number.
    """
    if "metric" not in judged or judged["total"] != final["total"]:
        return
    bounds = INTEGERS if integers else FLOATS
    if not math.isfinite(judged["metric"]) and math.isfinite(final["metric"]):
        raise ExportError(
            f"export {target}: its metric on the {judged['split']} split is {judged['metric']} in its own runtime, "
            f"{final['metric']:.6g} with the decoded file; the file was kept, and is not the model"
        )
    if judged.get("correct") is not None and final.get("correct") is not None:
        _count(target, judged, final, bounds)
    else:
        _number(target, "metric", judged, final, bounds.metric)
    if final.get("loss") is not None:
        _number(target, "loss", judged, final, bounds.loss)


def _count(target: str, judged: Mapping[str, Any], final: Mapping[str, Any], bounds: Bounds) -> None:
    total, apart = final["total"], abs(judged["correct"] - final["correct"])
    quiet, most = (max(1, int(total * part)) for part in (bounds.samples, bounds.most))
    said = (
        f"export {target}: {judged['correct']:,} of {total:,} of the {judged['split']} split are right in its own "
        f"runtime, {final['correct']:,} with the decoded file"
    )
    if apart > max(most, quiet):
        raise ExportError(f"{said}, where {most} may differ; the file was kept, and is not the model")
    if apart > quiet:
        log.warning("%s: %.2f points, where %.1f or one sample are expected", said, 100 * apart / total, 100 * 1e-3)


def _number(target: str, name: str, judged: Mapping[str, Any], final: Mapping[str, Any], bound: float) -> None:
    got, wanted = judged[name], final[name]
    apart = abs(got - wanted) / max(abs(wanted), NOTHING) if got != wanted else 0.0
    if not apart <= bound:
        log.warning(
            "export %s: the %s on the %s split is %.6g in its own runtime, %.6g with the decoded file: %.2g %% apart, "
            "where rounding makes up to %g %%",
            *(target, name, judged["split"], got, wanted, 100 * apart, 100 * bound),
        )
