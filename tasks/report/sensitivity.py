"""A picture of how sensitive each tensor is to pruning and to sharing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deepcompression._atomic import written
from tasks.report.style import house_style, shortened

LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
MARKERS = ("o", "s", "^", "D")


def sensitivity(curves: Mapping[str, Any], metric: str, path: Path) -> None:
    """Writes an SVG: the metric against each tensor's density, and against its bits, all others as they are.

    Of more than 28 tensors the largest are told apart by colour and marker, the others are grey.

    Args:
        curves: of ``deepcompression.allocation.sensitivity``, as plain values.
        metric: its name.
        path: the picture's path.
    """
    from matplotlib.figure import Figure

    ranked = sorted(curves["tensors"], key=lambda one: -one["weights"])
    named = [one for one in curves["tensors"] if one in ranked[: len(LINES) * len(MARKERS)]]
    with house_style():
        figure = Figure(figsize=(8.6, max(3.9, 0.9 + 0.19 * len(named))), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, points, unit in ((left, "by_density", "density"), (right, "by_bits", "bits")):
            for one in ranked[len(named) :]:
                _sensitive(axes, curves, one, points, unit, color="#BBBBBB", linewidth=0.8)
            for place, one in enumerate(named):
                look = {"color": LINES[place % len(LINES)], "marker": MARKERS[place // len(LINES)], "markersize": 3.5}
                _sensitive(axes, curves, one, points, unit, label=shortened(one["name"], 24), linewidth=1.3, **look)
            axes.axhline(
                _drawn(curves["base"]["metric"]), color="black", linestyle="--", linewidth=0.9, label="unchanged"
            )
            axes.spines[["top", "right"]].set_visible(False)
        _sensitivity_axes(left, right, curves, shortened(metric, 24))
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
        with written(path, parents=True) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})


def _sensitive(
    axes: Any, curves: Mapping[str, Any], tensor: Mapping[str, Any], points: str, unit: str, **look: Any
) -> None:
    """One tensor's line; that of densities begins at its present one."""
    rows = [(point[unit], _drawn(point["metric"])) for point in tensor[points]]
    if unit == "density":
        rows = [(tensor["density"], _drawn(curves["base"]["metric"])), *rows]
    axes.plot([row[0] for row in rows], [row[1] for row in rows], **look)


def _drawn(value: float | None) -> float:
    """NaN, which leaves a gap, for what is not finite, and for the null that stands for it in the store."""
    return value if value is not None and math.isfinite(value) else math.nan


def _sensitivity_axes(left: Any, right: Any, curves: Mapping[str, Any], metric: str) -> None:
    from matplotlib.ticker import NullFormatter

    tried = [curves["base"], *(point for one in curves["tensors"] for point in one["by_density"])]
    if all(math.isnan(_drawn(point["metric"])) for point in tried):
        left.set_xlim(0.01, 1)  # with nothing to draw, a logarithmic axis has no limits of its own
    left.set_xscale("log")
    left.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    left.xaxis.set_minor_formatter(NullFormatter())
    left.set_xlabel("weights of the tensor that are left")
    left.set_ylabel(f"{metric} on validation, not retrained")
    left.set_title("Pruned alone", loc="left", fontsize=10)
    right.set_xticks(sorted({point["bits"] for one in curves["tensors"] for point in one["by_bits"]}))
    right.set_xlabel("bits a weight")
    right.set_title("Shared alone", loc="left", fontsize=10)
    for axes in (left, right):
        axes.grid(axis="y", color="black", alpha=0.12, linewidth=0.6)
