"""Size against quality: which of many points nothing beats, and the pictures of it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from deepcompression._atomic import written
from tasks.console import size
from tasks.report.style import BLUE, INK, VERMILION, bytes_axis, house_style, inline, new_figure, printable

MOST_TOLD = 12  # points of a front
FRONT, OTHER, DENSE = "#D55E00", "#56B4E9", "#666666"  # Okabe and Ito's


@dataclass(frozen=True)
class Point:
    """One trial: its number, the bytes of its file, its validation metric."""

    number: int
    file_bytes: int
    metric: float


@dataclass(frozen=True)
class Latency:
    """Milliseconds of an export, by trial."""

    target: str
    milliseconds: Mapping[int, float]


def front(points: Sequence[Point], *, higher: bool) -> list[Point]:
    """The points that no other beats in one of bytes and metric without losing in the other; smallest first.

    Args:
        points: any; of equal ones the first stays, and one whose metric is not a number beats nothing.
        higher: whether a higher metric is better.
    """
    best: list[Point] = []
    sign = -1 if higher else 1
    for point in sorted(
        (one for one in points if isfinite(one.metric)), key=lambda one: (one.file_bytes, sign * one.metric, one.number)
    ):
        if not best or sign * point.metric < sign * best[-1].metric:
            best.append(point)
    return best


def spread_out(points: Sequence[Point], count: int) -> list[Point]:
    """At most ``count`` of them, evenly by rank, both ends included; one alone is the last: the best metric."""
    if count >= len(points):
        return list(points)
    if count == 1:
        return [points[-1]]
    places = {round(index * (len(points) - 1) / (count - 1)) for index in range(count)}
    return [points[place] for place in sorted(places)]


def picture(
    points: Sequence[Point],
    best: Sequence[Point],
    tested: Mapping[int, Mapping[str, Any]],
    result: Mapping[str, Any],
    path: Path,
    *,
    taken: Point | None = None,
    worst: float | None = None,
    most_bytes: int | None = None,
    latency: Latency | None = None,
    told: Mapping[int, str] | None = None,
) -> None:
    """Writes an SVG: all trials by bytes (logarithmic) and validation metric, the front, test results of the chosen.

    What is not a number is not drawn.

    Args:
        points: all trials.
        best: the front.
        tested: number -> summary of the chosen, whose test split was read.
        result: the sweep's, for ``name``, ``metric``, ``dense_val_metric``.
        path: the picture's path.
        taken: the one point that a search ended with.
        worst: the metric that was asked for at least.
        most_bytes: the bytes that were asked for at most.
        latency: of an export of the trials: a second picture beside the first, of it and the metric.
        told: number -> what a trial was made with, which stands below for those of the front.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "deepcompression"
    from matplotlib import pyplot

    figure, (axes, *beside) = _figure(pyplot, latency is not None)
    metric = result["metric"]
    points = [one for one in points if isfinite(one.metric)]
    taken = taken if taken is not None and isfinite(taken.metric) else None
    if result["dense_val_metric"] is not None and isfinite(result["dense_val_metric"]):
        axes.axhline(result["dense_val_metric"], color=DENSE, linestyle=":", label=f"dense model, val {metric}")
    others = [point for point in points if point not in best]
    if others:
        sizes, values = [p.file_bytes for p in others], [p.metric for p in others]
        axes.scatter(sizes, values, color=OTHER, label="trial, validation")
    axes.plot(
        [p.file_bytes for p in best], [p.metric for p in best], "o-", color=FRONT, drawstyle="steps-post",
        label="Pareto front, validation",
    )  # fmt: skip
    if worst is not None and isfinite(worst):
        axes.axhline(worst, color=DENSE, linestyle="--", linewidth=1, label=f"what was asked for, val {metric}")
    if most_bytes is not None:
        axes.axvline(most_bytes, color=DENSE, linestyle="--", linewidth=1, label="what was asked for, bytes")
    if taken is not None:
        axes.scatter(taken.file_bytes, taken.metric, s=160, facecolors="none", edgecolors="black", label="taken")
    for point in sorted({*best, *([taken] if taken else [])}, key=lambda one: one.number):
        axes.annotate(str(point.number), (point.file_bytes, point.metric), (4, 5), textcoords="offset points", size=8)
    tested = {number: one for number, one in tested.items() if isfinite(one["final"]["metric"])}
    if tested:
        sizes = [one["file_bytes"] for one in tested.values()]
        values = [one["final"]["metric"] for one in tested.values()]
        axes.scatter(sizes, values, marker="x", color="black", zorder=3, label="chosen, test")
    _bytes_below(axes, [p.file_bytes for p in points] or [1])
    axes.set_ylabel(metric)
    axes.set_title(f"{result['name']}: size against {metric}", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    if latency:
        _beside(beside[0], points, best, latency)
    if told:
        _listed(figure, [f"{one.number}:  {size(one.file_bytes)}, {told.get(one.number, '')}" for one in best])
    with written(path, parents=True) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _bytes_below(axes: Any, sizes: Sequence[int]) -> None:
    """The axis of bytes, with small ticks told where there are few large ones."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(value)))
    few = max(sizes) < 10 * min(sizes)
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: size(value)) if few else NullFormatter())
    axes.tick_params(axis="x", which="both", labelrotation=30, labelsize=8)
    axes.set_xlabel("bytes of the file")


def _listed(figure: Any, lines: Sequence[str]) -> None:
    """Lines below a figure, each on one or more of its own; of many the first."""
    width = int(14 * figure.get_figwidth())
    shown = [
        part for line in lines[:MOST_TOLD] for part in textwrap.wrap(printable(line), width, subsequent_indent="     ")
    ]
    shown += [f"and {len(lines) - MOST_TOLD} more of the front"] if len(lines) > MOST_TOLD else []
    figure.set_figheight(figure.get_figheight() + 0.16 * len(shown))
    figure.supxlabel("\n".join(shown), x=0.02, ha="left", size=8, linespacing=1.35, parse_math=False)


def _figure(pyplot: Any, wide: bool) -> tuple[Any, list[Any]]:
    """A figure with one or two pictures, which share the metric."""
    size = (12, 5) if wide else (8, 5)
    figure, axes = pyplot.subplots(1, 1 + wide, figsize=size, layout="constrained", squeeze=False, sharey=True)
    return figure, list(axes[0])


def _beside(axes: Any, points: Sequence[Point], best: Sequence[Point], latency: Latency) -> None:
    """Latency and metric of the trials; those of the front by bytes with their numbers."""
    for some, colour in (([one for one in points if one not in best], OTHER), (list(best), FRONT)):
        timed = [one for one in some if one.number in latency.milliseconds]
        axes.scatter([latency.milliseconds[one.number] for one in timed], [one.metric for one in timed], color=colour)
    for one in best:
        if one.number in latency.milliseconds:
            place = latency.milliseconds[one.number], one.metric
            axes.annotate(str(one.number), place, (4, 5), textcoords="offset points", size=8)
    axes.set_xlim(0, 1.1 * max(latency.milliseconds.values()))
    axes.set_xlabel(f"latency of export {latency.target}, one sample, one thread (ms)")
    axes.spines[["top", "right"]].set_visible(False)


def tradeoff(key: str, outcome: Mapping[str, Any]) -> str:
    """An inline SVG: every file that a budget's search made, by bytes and validation metric, and which one was taken.

    Args:
        key: begins every id in the picture; unique in its page.
        outcome: a search's, as ``flows.budget.search`` gives it.
    """
    steps, dense = outcome["steps"], outcome["dense_val_metric"]
    chosen = steps[outcome["chosen"] - 1]
    steps = [step for step in steps if isfinite(step["val_metric"])]
    if chosen not in steps:  # nothing that was made has a metric that is a number
        return ""
    with house_style(INK):
        figure, axes = new_figure(5.2, 3.2)
        axes.axhline(dense, color=INK, linewidth=0.8, linestyle=":")
        axes.annotate("dense", (0.01, dense), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points")
        for kept, colour, text in ((True, BLUE, "keeps to the budget"), (False, VERMILION, "does not")):
            some = [step for step in steps if step["kept"] == kept]
            points = [step["file_bytes"] for step in some], [step["val_metric"] for step in some]
            axes.plot(*points, "o" if kept else "x", color=colour, label=text)
        axes.plot(
            chosen["file_bytes"], chosen["val_metric"], "o", color=INK, fillstyle="none", markersize=13, label="taken"
        )
        for step in steps if len(steps) < 9 else [chosen]:
            place = step["file_bytes"], step["val_metric"]
            axes.annotate(str(step["number"]), place, (5, 5), textcoords="offset points")
        axes.set_ylim(*_focus([dense, chosen["val_metric"], *(step["val_metric"] for step in steps)]))
        sizes = [step["file_bytes"] for step in steps]
        bytes_axis(axes, min(sizes), max(sizes))
        axes.set_xlabel("bytes of the file")
        axes.set_ylabel(f"val {printable(outcome['metric'])}")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        return inline(figure, key, f"Bytes and validation {outcome['metric']} of {len(steps)} files")


def _focus(values: Sequence[float]) -> tuple[float, float]:
    """Limits that show the middle half of ``values``, and twice as much on either side, not one that is far away."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]
    around = max(2 * (high - low), abs(values[0] - values[1]) * 1.5, 1e-3 * abs(high), 1e-9)
    return max(ordered[0], low - around) - around / 10, min(ordered[-1], high + around) + around / 10
