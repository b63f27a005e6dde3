"""The headline figure: a panel a net and loss, a line a way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

PANELS = (
    ("EfficientNet-Lite0", "divergence", "KL divergence of the softmax, nats", "EfficientNet-Lite0, 272 pictures"),
    ("EfficientNet-Lite0", "unlike", "other answer than the dense net", "EfficientNet-Lite0, 272 pictures"),
    ("MiniLM", "off", "1 - cosine of the embeddings", "MiniLM, 200 sentences"),
)
DENSE = {"EfficientNet-Lite0": 18.8, "MiniLM": 90.3}  # MB in float32
OURS = {
    "reconstruct": ("#c0392b", "deep-compression, reconstruct"),
    "dcz compress": ("#e59866", "deep-compression, no data"),
}
OTHERS = {
    "NNCodec, rounded a channel": "#2e86c1",
    "coremltools palettization": "#7d3c98",
    "onnxruntime static int8": "#1e8449",
    "onnxruntime dynamic int8": "#1e8449",
    "onnxruntime MatMulNBits": "#58d68d",
    "torchao weight-only": "#7f8c8d",
}


def draw(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Writes the figure.

    Args:
        rows: of docs/headline.json.
        path: of the SVG file.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "headline", "svg.fonttype": "none", "font.size": 9}
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(PANELS), figsize=(14, 4.8))
    for axis, (net, key, title, name) in zip(axes, PANELS, strict=True):
        _panel(axis, [one for one in rows.values() if one["net"] == net], key)
        axis.set(title=name, xlabel=f"MB in the file (float32: {DENSE[net]:g} MB)", ylabel=title)
    named = {label: line for axis in axes for line, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="lower center", ncols=4, frameon=False)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _panel(axis: Any, rows: list[Mapping[str, Any]], key: str) -> None:
    least = min((one[key] for one in rows if one[key] > 0), default=1e-4) / 2
    for way, (colour, label) in {**OURS, **{way: (colour, way) for way, colour in OTHERS.items()}}.items():
        found = sorted((one for one in rows if one["way"] == way), key=lambda one: one["bytes"])
        if not found:
            continue
        sizes, values = [one["bytes"] / 1e6 for one in found], [max(one[key], least) for one in found]
        ends = [one[f"{key}_interval"] for one in found]
        off = [
            [max(value - max(low, least), 0) for value, (low, _) in zip(values, ends, strict=True)],
            [max(high - value, 0) for value, (_, high) in zip(values, ends, strict=True)],
        ]
        wide = 2.2 if way in OURS else 1.2
        axis.errorbar(
            sizes, values, off, color=colour, label=label, marker="o", markersize=4, linewidth=wide, elinewidth=0.8,
            capsize=2, zorder=3 if way in OURS else 2,
        )  # fmt: skip
    axis.set(xscale="log", yscale="log")
    _ticks(axis)
    axis.grid(True, which="both", linewidth=0.3)


def _ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
