"""Results in words and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from statistics import NormalDist
from typing import Any

from deepcompression.measure import significance
from deepcompression.measure.significance import Comparison
from tasks.console import size
from tasks.report.states import promoted
from tasks.verdict import missed

CONFIDENCE = 0.95


def sentence(summary: Mapping[str, Any]) -> str:
    """What the result means, in one plain sentence; before it, what was asked for and missed."""
    before = f"Aim missed: {summary['verdict']['text']}. " if missed(summary) else ""
    return before + compared(summary)


def closing(summary: Mapping[str, Any]) -> str:
    """How a run ended, in a line or two, as the state of its Prefect run says it.

    Args:
        summary: of one run, or of several seeds.
    """
    if "runs" in summary:
        ratio, verdict = summary["ratio"], summary.get("verdict")
        told = f"{len(summary['runs'])} seeds: {ratio['mean']:.1f}x smaller on average, {ratio['worst']:.1f}x at worst."
        return f"{told} {verdict['text']}." if verdict else told
    promotion = summary.get("promotion")
    crowned = f" {promoted(promotion)}" if promotion else ""
    return f"{summary['ratio']:.1f}x smaller. {sentence(summary)}{crowned}"


def compared(summary: Mapping[str, Any]) -> str:
    """Two models in one sentence: errors where they can be counted, else the metric; and bytes."""
    dense, final = summary["baseline"], summary["final"]
    share = f"in {100 * summary['file_bytes'] / summary['dense_bytes']:.1f} % of its bytes"
    if not _counts(dense) or not _counts(final) or dense["total"] != final["total"]:
        return f"{_metrics(dense['metric'], final, str(summary['metric']))}, {share}."
    was, now, total = _errors(dense), _errors(final), final["total"]
    compared = comparison_of(summary)
    if was == now:
        hidden = f"; {significance.exchanged(compared)}" if compared and compared.broken else ""
        return f"Exactly as many errors as the dense model ({now:,} in {total:,}{hidden}), {share}."
    many = f"{abs(now - was):,} {'more' if now > was else 'fewer'} error{'s' if abs(now - was) > 1 else ''}"
    chance = f"; {significance.chance(compared.p_value)}" if compared else ""
    return f"{many} in {total:,} than the dense model ({now:,} instead of {was:,}{chance}), {share}."


def difference(summary: Mapping[str, Any]) -> str | None:
    """The paired comparison in words and percentage points; None where there is none."""
    compared = comparison_of(summary)
    return f"{significance.sentence(compared)} ({significance.interval(compared)})" if compared else None


def comparison_of(summary: Mapping[str, Any]) -> Comparison | None:
    """A summary's paired comparison; None where scores are not 0/1, and in summaries of older releases."""
    found = summary.get("comparison")
    return Comparison(**{field.name: found[field.name] for field in fields(Comparison)}) if found else None


def _metrics(was: float, final: Mapping[str, Any], name: str) -> str:
    now, higher = final["metric"], final.get("higher_is_better", True)
    if not math.isfinite(now - was):
        return f"{name} cannot be compared (file {number(now)}, dense model {number(was)})"
    better = (now > was) == higher
    change = "no change" if now == was else f"{number(abs(now - was))} {'better' if better else 'worse'}"
    direction = "higher" if higher else "lower"
    return f"{name} {number(now)} where the dense model has {number(was)} ({direction} is better; {change})"


def end_of(end: Mapping[str, Any]) -> dict[str, Any]:
    """A test result; with errors and their interval where scores are 0/1."""
    if not _counts(end):
        return {"metric": end["metric"], "total": end.get("total"), "errors": None}
    low, high = wilson(_errors(end), end["total"])
    return {
        "metric": end["metric"],
        "total": end["total"],
        "errors": _errors(end),
        "rate": _errors(end) / end["total"],
        "low": low,
        "high": high,
    }


def _counts(end: Mapping[str, Any]) -> bool:
    return end.get("correct") is not None and bool(end.get("total"))


def _errors(end: Mapping[str, Any]) -> int:
    return int(end["total"] - end["correct"])


def wilson(errors: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a rate of ``errors`` in ``total`` independent samples, by Wilson's score."""
    z, rate = NormalDist().inv_cdf((1 + CONFIDENCE) / 2), errors / total
    middle = rate + z * z / (2 * total)
    half = z * math.sqrt(rate * (1 - rate) / total + (z / (2 * total)) ** 2)
    scale = 1 + z * z / total
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def number(value: Any) -> str:
    """A measured number with four digits; anything else as it is written."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "" if value is None else str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return "NaN" if math.isnan(value) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def percent(value: float | None, digits: int = 2) -> str:
    """0.0123 -> 1.23 %."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def bits(value: float | None) -> str:
    """Two digits behind the point, a dash for nothing."""
    return "–" if value is None else f"{value:.2f}"


def times(value: float | None) -> str:
    """24.6487 -> 24.6×."""
    return "–" if value is None else f"{value:.1f}×"


def decibels(value: float | None) -> str:
    """31.25 -> 31.2; a dash for nothing."""
    return "–" if value is None else number(value) if math.isinf(value) else f"{value:.1f}"


def cosine(value: float | None) -> str:
    """Four digits behind the point, a dash for nothing; what rounds to 1 and is less says so."""
    return "–" if value is None else "< 1" if 0.99995 <= value < 1 else f"{value:.4f}"


def signed(value: float | None) -> str:
    """0.5 -> +0.50; a zero has no minus; nothing for nothing."""
    return "" if value is None else f"{round(value, 2) + 0.0:+.2f}"


def sortable(value: Any) -> str:
    """What the page's script sorts by: JavaScript's spelling; what is no number comes last."""
    if isinstance(value, float) and not math.isfinite(value):
        return "" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return "" if value is None else str(value)


def milliseconds(value: float | None) -> str:
    """0.0795, 1.70, 23.4, 1,240."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.{1 if value >= 10 else 2 if value >= 1 else 3}f}"


def rate(value: float | None) -> str:
    """12.6k, 371, 1.2M a second."""
    if value is None:
        return "–"
    for sign, scale in (("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:.{0 if value >= 100 * scale else 1}f}{sign}"
    return f"{value:.{0 if value >= 100 else 1}f}"


def speed(to_dense: float | None) -> str:
    """How many times as fast as the dense net: 1.5x."""
    return "–" if not to_dense else f"{1 / to_dense:.2f}x"


def lasted(seconds: float) -> str:
    """0.4 s, 41 s, 15.5 minutes, 3.2 hours."""
    if seconds < 100:
        return f"{seconds:.{0 if seconds >= 10 else 1}f} s"
    return f"{seconds / 60:.1f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def counted(value: float) -> str:
    """347 k, 2.29 M."""
    text = size(value)
    return text.replace(" B", "").replace("KB", "k").replace("MB", "M").replace("GB", "G")
