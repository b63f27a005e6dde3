"""Pictures of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcompression.atomic import written
from tasks.console import size

# Okabe and Ito's colours: told apart by colour-blind people, and in grey.
PARTS = {"positions": "#0072B2", "values": "#E69F00", "codebook": "#009E73", "table": "#CC79A7", "header": "#999999"}
BAR = "#56B4E9"


def bytes_by_stage(stages: Sequence[Mapping[str, Any]], inspection: Mapping[str, Any], path: Path) -> None:
    """Writes an SVG: how many bytes the model takes after each stage, and what the file's bytes are spent on.

    Args:
        stages: rows with ``stage``, ``size_bytes``, ``compression_ratio``.
        inspection: what ``deepcompression.inspect`` says of the file.
        path: the picture's path.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "deepcompression"
    from matplotlib import pyplot

    height = 1.1 + 0.34 * (len(stages) + len(inspection["tensors"]))
    figure, (top, bottom) = pyplot.subplots(
        2, 1, figsize=(8, height), height_ratios=[len(stages), max(len(inspection["tensors"]), 2)], layout="constrained"
    )
    _stages(top, stages)
    _tensors(bottom, inspection)
    with written(path, parents=True) as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(figure)


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


def _tensors(axes: Any, inspection: Mapping[str, Any]) -> None:
    tensors = sorted(inspection["tensors"], key=lambda one: -one["bytes"])[:20]
    left = [0.0] * len(tensors)
    for part, colour in PARTS.items():
        widths = [_part(one, part) for one in tensors]
        axes.barh(range(len(tensors)), widths, left=left, color=colour, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(tensors)), [one["name"] for one in tensors])
    axes.invert_yaxis()
    axes.set_xlabel(f"bytes of the file ({size(inspection['file_bytes'])})")
    axes.set_title("What the file's bytes are spent on, by tensor", loc="left", fontsize=10)
    axes.margins(x=0.04)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)


def _part(tensor: Mapping[str, Any], part: str) -> float:
    if part != "header":
        return float(tensor.get(part) or 0)
    known = sum(float(tensor.get(one) or 0) for one in PARTS if one != "header")
    return max(float(tensor["bytes"]) - known, 0.0)
