"""A picture of which bits tensors got: what other allocations would lose, and the bits beside the traces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcompression._atomic import written
from tasks.console import size
from tasks.report.style import BLUE, GREEN, VERMILION, house_style, shortened

MOST = 40  # tensors that are drawn by name; of more the largest


def picture(report: Mapping[str, Any], path: Path) -> None:
    """Writes an SVG: predicted loss against cost of the best allocations and of the same bits everywhere; and the bits
    of each tensor.

    Args:
        report: what the stage ``allocate`` reports, as plain values.
        path: the picture's path.
    """
    from matplotlib.figure import Figure

    (method,) = report["methods"]
    tensors = sorted(method["tensors"], key=lambda one: -one["weights"])[:MOST]
    tensors = [one for one in method["tensors"] if one in tensors]
    with house_style():
        figure = Figure(figsize=(8.6, max(3.6, 1.2 + 0.17 * len(tensors))), layout="constrained")
        left, right = figure.subplots(1, 2)
        _allocations(left, method["allocations"], report)
        _bits(right, tensors)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower left", ncols=4, frameon=False, fontsize=8)
        with written(path, parents=True) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})


def _allocations(axes: Any, points: Sequence[Mapping[str, Any]], report: Mapping[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    best = sorted((one for one in points if one["allocation"] in ("best", "taken")), key=lambda one: one["cost"])
    (taken,) = (one for one in points if one["allocation"] == "taken")
    others = [one for one in points if one["allocation"] not in ("best", "taken")]
    axes.plot(*_xy(best), "o-", color=BLUE, markersize=3.5, linewidth=1.2, drawstyle="steps-post", label="best")
    axes.plot(*_xy(others), "s", color=VERMILION, markersize=5, label="the same bits everywhere")
    axes.plot(*_xy([taken]), "o", color=GREEN, fillstyle="none", markersize=12, label="taken")
    axes.axvline(report["limit"], color="black", linestyle="--", linewidth=0.8, label="limit")
    for one in others:
        axes.annotate(one["allocation"], (one["cost"], one["predicted loss"]), (5, 4), textcoords="offset points")
    if all(one["predicted loss"] > 0 for one in points):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}" if report["cost"] != "bytes" else size(value))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(report["cost"])
    axes.set_ylabel("predicted loss")
    axes.set_title("What allocations cost and lose", loc="left", fontsize=10)


def _xy(points: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    return [one["cost"] for one in points], [one["predicted loss"] for one in points]


def _bits(axes: Any, tensors: Sequence[Mapping[str, Any]]) -> None:
    rows = range(len(tensors))
    axes.barh(rows, [one["bits"] for one in tensors], color=BLUE, height=0.7)
    for row, one in zip(rows, tensors, strict=True):
        trace = f"  trace {one['trace']:.2g}" if "trace" in one else ""
        axes.annotate(f"{one['bits']}{trace}", (one["bits"], row), (3, -3), textcoords="offset points", fontsize=7)
    axes.set_yticks(rows, [shortened(one["tensor"], 26) for one in tensors], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.6 * max(one["bits"] for one in tensors))
    axes.set_xlabel("bits a weight")
    axes.set_title("Bits taken", loc="left", fontsize=10)
