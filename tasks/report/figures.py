"""Pictures of one run: as a file, and as SVG that stands inside a page and takes its text colour."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcompression._atomic import written
from tasks.console import size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tasks.execution.run import Reference, Run
from tasks.report.style import BAR, BLUE, GREEN, INK, VERMILION, bytes_axis, house_style, inline, new_figure, shortened

# Okabe and Ito's colours: told apart by colour-blind people, and in grey.
PARTS = {"positions": "#0072B2", "values": "#E69F00", "codebook": "#009E73", "table": "#CC79A7", "header": "#999999"}
MOST_CENTROIDS = 256
MOST_HISTOGRAMS = 6
BINS = 80


def bytes_by_stage(stages: Sequence[Mapping[str, Any]], inspection: Mapping[str, Any], path: Path) -> None:
    """Writes an SVG: how many bytes the model takes after each stage, and what the file's bytes are spent on.

    Args:
        stages: rows with ``stage``, ``size_bytes``, ``compression_ratio``.
        inspection: what ``deepcompression.inspect`` says of the file.
        path: the picture's path.
    """
    from matplotlib.figure import Figure

    height = 1.1 + 0.34 * (len(stages) + len(inspection["tensors"]))
    with house_style():
        figure = Figure(figsize=(8, height), layout="constrained")
        top, bottom = figure.subplots(2, 1, height_ratios=[len(stages), max(len(inspection["tensors"]), 2)])
        _stages(top, stages)
        _tensors(bottom, inspection, 20)
        bottom.legend(frameon=False, fontsize=8, loc="lower right")
        with written(path, parents=True) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})


def waterfall(key: str, dense_bytes: int, stages: Sequence[Mapping[str, Any]]) -> str:
    """An inline SVG: from the dense bytes down to the file's, a step a stage, on a logarithmic axis.

    Args:
        key: begins every id in the picture; unique in its page.
        dense_bytes: 4 bytes for every parameter, or what they take.
        stages: rows with ``stage`` and ``size_bytes``, in order.
    """
    names = ["dense", *(shortened(row["stage"], 18) for row in stages)]
    after = [dense_bytes, *(row["size_bytes"] for row in stages)]
    before = [dense_bytes, *after[:-1]]
    with house_style(INK):
        figure, axes = new_figure(5.2, 0.75 + 0.27 * len(names))
        colours = [BAR if now <= was else VERMILION for was, now in zip(before, after, strict=True)]
        axes.barh(range(len(names)), [b - a for a, b in zip(after, before, strict=True)], left=after, color=colours)
        axes.plot(after, range(len(names)), "|", color=INK, markersize=13)
        for row, (was, now) in enumerate(zip(before, after, strict=True)):
            if row:
                axes.plot([was, was], [row - 1, row], color=INK, linewidth=0.6, linestyle=":")
            _columns(axes, row, [size(now), f"÷{was / now:.2f}" if row else "", f"{dense_bytes / now:.1f}x"])
        _columns(axes, -1, ["size", "step", "total"])
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.6)
        bytes_axis(axes, min(after), max(after))
        return inline(figure, key, f"Bytes from {size(dense_bytes)} dense to {size(after[-1])} after the last stage")


def bytes_by_tensor(key: str, inspection: Mapping[str, Any]) -> str:
    """An inline SVG: what the bytes of the twelve tensors that take most are spent on.

    Args:
        key: begins every id in the picture; unique in its page.
        inspection: what ``deepcompression.inspect`` says of the file.
    """
    with house_style(INK):
        figure, axes = new_figure(5.2, 1.15 + 0.27 * max(min(len(inspection["tensors"]), 12), 1))
        _tensors(axes, inspection, 12)
        axes.set_title("", loc="left")
        axes.xaxis.set_major_formatter(lambda value, _: size(value))
        figure.legend(loc="outside lower center", ncols=len(PARTS), frameon=False, handlelength=1, columnspacing=1.2)
        return inline(figure, key, "Bytes of the file by tensor and by what they hold")


def weights(key: str, name: str, values: NDArray[Any], centroids: Mapping[str, NDArray[Any]]) -> str:
    """An inline SVG: how a tensor's weights are spread, and below them its centroids before and after training.

    Args:
        key: begins every id in the picture; unique in its page.
        name: the tensor's.
        values: (n,) finite floats.
        centroids: at most two rows by title, (k,) each, aligned: place i of both belongs to the same weights.
    """
    import numpy as np

    with house_style(INK, 7.5):
        figure, axes = new_figure(3.4, 1.75 + 0.3 * len(centroids), (3, 0.6 * len(centroids)) if centroids else (1,))
        top = axes[0] if centroids else axes
        counts, edges = np.histogram(np.asarray(values, np.float64), BINS)
        top.stairs(counts, edges, fill=True, color=BAR)
        top.set_title(shortened(name, 34), loc="left", fontsize=8.5)
        top.set_yticks([])
        top.spines["left"].set_visible(False)
        if centroids:
            top.tick_params(labelbottom=False)
            _centroids(axes[1], centroids)
        return inline(figure, key, f"Histogram of {values.size:,} weights of {name}")


def curves(
    key: str,
    label: str,
    history: Sequence[Mapping[str, Any]],
    metric: str,
    best: int | None,
    counted: int | None = None,
) -> str:
    """An inline SVG: loss, and the metric on validation, by epoch.

    Args:
        key: begins every id in the picture; unique in its page.
        label: the stage's.
        history: a row an epoch with ``epoch``, ``loss``, ``val_loss`` and ``val_<metric>``.
        metric: the metric's name.
        best: the epoch whose weights the stage kept, where it says so.
        counted: of how many samples the metric is the share that is right, where it is such: it ends at 1, and the
            width of one sample is drawn.
    """
    with house_style(INK, 7.5):
        figure, (top, bottom) = new_figure(3.4, 2.9, (1, 1))
        _curve(top, history, "loss", "training", BLUE)
        _curve(top, history, "val_loss", "validation", VERMILION)
        _curve(bottom, history, f"val_{metric}", "validation", GREEN)
        _metric_axis(bottom, history, f"val_{metric}")
        if counted:
            _one_sample(bottom, history, f"val_{metric}", counted)
        for axes in (top, bottom) if best is not None else ():
            axes.axvline(best, color=INK, linewidth=0.7, linestyle=":")
        _loss_axis(top, history)
        top.set_title(shortened(label, 20), loc="left", fontsize=8.5)
        top.tick_params(labelbottom=False)
        top.set_ylabel("loss")
        top.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.97), ncols=2, fontsize=7, borderaxespad=0)
        bottom.set_ylabel(shortened(metric, 16))
        bottom.set_xlabel("epoch" if best is None else f"epoch (kept: {best})")
        bottom.xaxis.get_major_locator().set_params(integer=True)
        return inline(figure, key, f"Loss and {metric} by epoch of {label}")


def histograms(run: Run, references: Sequence[Reference], inspection: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The biggest layers: weights before they were shared, centroids then and in the file.

    Returns:
        at most six inline SVGs, and the labels of the stages whose centroids they show: none, one or two.
    """
    moments = _moments(references)
    states = [run.state(references[place]) for place in moments]
    alias = {one["name"]: one["same_as"] or one["name"] for one in inspection["tensors"]}
    shared = {alias[name] for place in moments[1:] for name in references[place].shared}
    named = [one["name"] for one in _biggest(inspection) if not shared or one["name"] in shared]
    titles = [str(references[place].numbers["stage"]) for place in moments[1:]]
    drawn: list[str] = []
    for name in named[:MOST_HISTOGRAMS]:
        values = _nonzero(states[0][name])
        if values.size:
            books = _codebooks([_flat(state[name]) for state in states[1:]]) if name in shared else []
            rows = dict(zip(titles, books, strict=False))
            drawn.append(weights(f"weights{len(drawn)}", name, values, rows))
    return drawn, titles


def _moments(references: Sequence[Reference]) -> list[int]:
    """Places in ``references``: what is drawn as a histogram, then where sharing began, then what was encoded."""
    last = len(references) - 2
    began = [place for place in range(last + 1) if _kind(references[place]) == "share"]
    began = began[-1:] or [place for place in range(last + 1) if references[place].shared][:1]
    if not began:
        return [last]
    return [max(began[0] - 1, 0), began[0], *([last] if last > began[0] else [])]


def _kind(reference: Reference) -> str:
    return re.sub(r"-\d+$", "", str(reference.numbers["stage"]))


def _biggest(inspection: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Floating-point tensors, largest first; matrices before vectors."""
    floating = [one for one in inspection["tensors"] if "float" in one["dtype"] and one["same_as"] is None]
    return sorted(floating, key=lambda one: (len(one["shape"]) < 2, -math.prod(one["shape"])))


def _codebooks(states: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """The distinct non-zero weights of the first state, and what the same weights are in the others.

    Where units have changed places since, the same weights are unknown: values are taken by their rank.
    """
    import numpy as np

    places = np.flatnonzero(states[0])
    first = places[np.unique(states[0][places], return_index=True)[1]]
    books = []
    for state in states:
        ranked = np.unique(state[state != 0])
        moved = not np.array_equal(np.flatnonzero(state), places) and len(ranked) > 0
        ranks = np.linspace(0, len(ranked) - 1, len(first)).round().astype(int)
        books.append(ranked[ranks] if moved else state[first])
    return books


def _nonzero(tensor: Any) -> NDArray[Any]:
    import numpy as np

    flat = _flat(tensor)
    kept: NDArray[Any] = flat[(flat != 0) & np.isfinite(flat)]
    return kept


def _flat(tensor: Any) -> NDArray[Any]:
    values: NDArray[Any] = tensor.detach().float().reshape(-1).numpy()
    return values


def _stages(axes: Any, stages: Sequence[Mapping[str, Any]]) -> None:
    names = [row["stage"] for row in stages]
    counts = [row["size_bytes"] for row in stages]
    bars = axes.barh(range(len(names)), counts, color=BAR)
    axes.bar_label(bars, [f"{size(r['size_bytes'])}   {r['compression_ratio']:.1f}x" for r in stages], padding=4)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, max(counts) * 1.25)
    axes.set_xticks([])
    axes.set_title("Bytes after each stage, as really encoded", loc="left", fontsize=10)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _tensors(axes: Any, inspection: Mapping[str, Any], most: int) -> None:
    tensors = sorted(inspection["tensors"], key=lambda one: -one["bytes"])[:most]
    left = [0.0] * len(tensors)
    for part, colour in PARTS.items():
        widths = [_part(one, part) for one in tensors]
        axes.barh(range(len(tensors)), widths, left=left, color=colour, label=part if any(widths) else None)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(tensors)), [shortened(one["name"], 30) for one in tensors])
    axes.invert_yaxis()
    axes.set_xlabel(f"bytes of the file ({size(inspection['file_bytes'])})")
    axes.set_title("What the file's bytes are spent on, by tensor", loc="left", fontsize=10)
    axes.margins(x=0.04)
    axes.spines[["top", "right"]].set_visible(False)


def _part(tensor: Mapping[str, Any], part: str) -> float:
    if part != "header":
        return float(tensor.get(part) or 0)
    known = sum(float(tensor.get(one) or 0) for one in PARTS if one != "header")
    return max(float(tensor["bytes"]) - known, 0.0)


def _columns(axes: Any, row: int, texts: Sequence[str]) -> None:
    """Texts right of the axes, each column flush right."""
    for right, text in zip((44, 80, 116), texts, strict=True):
        axes.annotate(
            text,
            (1, row),
            (right, 0),
            xycoords=axes.get_yaxis_transform(),
            textcoords="offset points",
            ha="right",
            va="center",
            annotation_clip=False,
        )


def _centroids(axes: Any, centroids: Mapping[str, NDArray[Any]]) -> None:
    """A row of ticks for each moment, the same centroid joined by a line."""
    import numpy as np

    rows = [one[:: math.ceil(one.size / MOST_CENTROIDS) or 1] for one in centroids.values()]
    heights = range(len(rows) - 1, -1, -1)
    if len(rows) == 2:
        ends = np.stack([rows[0], rows[1], np.full(rows[0].size, np.nan)], axis=1).reshape(-1)
        axes.plot(ends, np.tile([1.0, 0.0, np.nan], rows[0].size), color=INK, alpha=0.5, linewidth=0.6)
    for row, height, colour in zip(rows, heights, (BLUE, VERMILION), strict=False):
        axes.plot(row, np.full(row.size, float(height)), "|", color=colour, markersize=7)
    axes.set_yticks(list(heights), [shortened(title, 14) for title in centroids])
    axes.set_ylim(-0.5, len(rows) - 0.5)
    axes.tick_params(left=False)
    axes.spines["left"].set_visible(False)


def _curve(axes: Any, history: Sequence[Mapping[str, Any]], column: str, label: str, colour: str) -> None:
    rows = [(row["epoch"], float(row[column])) for row in history if row.get(column) is not None]
    marker = "o" if len(rows) < 8 else ""
    points = zip(*rows, strict=True) if rows else ((), ())
    axes.plot(*points, marker=marker, markersize=2.5, linewidth=1.2, color=colour, label=label)


def _loss_axis(axes: Any, history: Sequence[Mapping[str, Any]]) -> None:
    """Logarithmic where losses are positive and of several magnitudes."""
    losses = [float(row[name]) for row in history for name in ("loss", "val_loss") if row.get(name) is not None]
    finite = [loss for loss in losses if math.isfinite(loss)]
    if finite and min(finite) > 0 and max(finite) > 20 * min(finite):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")


def _one_sample(axes: Any, history: Sequence[Mapping[str, Any]], column: str, counted: int) -> None:
    """No axis beyond 1; at its right end a bar as high as one sample is, from the last value."""
    values = [float(row[column]) for row in history if row.get(column) is not None]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return
    low, high = min(values), max(values)
    around = max((high - low) / 10, 1 / counted)
    low, high = max(low - around, 0.0), min(high + around, 1.0)
    axes.set_ylim(low, high)
    end = max(row["epoch"] for row in history)
    top = min(values[-1] + 0.5 / counted, 1.0)
    axes.plot([end * 1.04] * 2, [top - 1 / counted, top], color=VERMILION, linewidth=3, solid_capstyle="butt")
    if len(set(values)) > 1:
        axes.yaxis.get_major_locator().set_params(nbins=5)


def _metric_axis(axes: Any, history: Sequence[Mapping[str, Any]], column: str) -> None:
    """One tick where the metric is always the same: else the axis goes beyond what a metric can be."""
    values = {float(row[column]) for row in history if row.get(column) is not None}
    if len(values) == 1 and math.isfinite(value := values.pop()):
        axes.set_yticks([value], labels=[f"{value:.4g}"])
