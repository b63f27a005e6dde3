"""Runs by bytes and score: what is smaller, what is better, and how far a score may be off."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flows.compare.results import Group, Statistic
from tasks.report.style import BLUE, INK, VERMILION, bytes_axis, house_style, inline, new_figure, printable
from tasks.report.words import wilson

MOST_PERCENT = 100


def scatter(key: str, groups: Sequence[Group]) -> str:
    """An inline SVG: a numbered point a group by bytes of its file and score, with the dense models' scores as lines;
    nothing where fewer than two groups have both, or their scores are of different kinds.

    Args:
        key: begins every id in the picture; unique in its page.
        groups: in the order of their numbers.
    """
    points = [(number, *found) for number, group in enumerate(groups, 1) if (found := _point(group))]
    if len(points) < 2 or len({group.measure.label for group in groups}) > 1:
        return ""
    scale = MOST_PERCENT if groups[0].measure.is_error else 1
    with house_style(INK):
        figure, axes = new_figure(8, 3.4)
        for number, size, score, low, high in points:
            axes.plot([size] * 2, [scale * low, scale * high], color=BLUE, linewidth=1.2)
            axes.plot(size, scale * score, "o", color=VERMILION if number == 1 else BLUE, markersize=6)
        for (size, score), named in _together(points).items():
            axes.annotate(named, (size, scale * score), (6, 3), textcoords="offset points", fontweight="bold")
        for value in sorted({one.mean for group in groups if (one := group.results["dense_score"])})[:3]:
            if math.isfinite(value):
                axes.axhline(scale * value, color=INK, linewidth=0.8, linestyle=":")
                axes.annotate(
                    "dense", (0.995, scale * value), (0, 3), xycoords=("axes fraction", "data"), ha="right",
                    textcoords="offset points",
                )  # fmt: skip
        bytes_axis(axes, min(point[1] for point in points), max(point[1] for point in points))
        axes.set_xlabel("bytes of the file")
        unit = " (%)" if groups[0].measure.is_error else ""
        axes.set_ylabel(f"{printable(groups[0].measure.label)}{unit}")
        return inline(figure, key, f"{len(points)} runs by bytes and {groups[0].measure.label}")


def _together(points: Sequence[tuple[int, float, float, float, float]]) -> dict[tuple[float, float], str]:
    """The numbers of groups by bytes and score: those of equal ones stand beside each other."""
    found: dict[tuple[float, float], list[str]] = {}
    for number, size, score, *_ in points:
        found.setdefault((size, score), []).append(str(number))
    return {place: ", ".join(numbers) for place, numbers in found.items()}


def _point(group: Group) -> tuple[float, float, float, float] | None:
    """Bytes, score, and the ends of its interval: over seeds one standard deviation; of errors of one run Wilson's."""
    size, score = group.results["file_bytes"], group.results["file_score"]
    if size is None or score is None or not (math.isfinite(score.mean) and math.isfinite(size.mean) and size.mean > 0):
        return None
    return (size.mean, score.mean, *_interval(group, score))


def _interval(group: Group, score: Statistic) -> tuple[float, float]:
    if score.sd is not None and math.isfinite(score.sd):
        return score.mean - score.sd, score.mean + score.sd
    if group.measure.is_error and group.measure.samples:
        return wilson(round(score.mean * group.measure.samples), group.measure.samples)
    return score.mean, score.mean
