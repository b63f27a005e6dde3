"""How figures look."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from tasks.console import size

INK = "#010203"  # drawn by nothing else, so that it can become the page's own colour
# Okabe and Ito's, as all colours here
BAR, BLUE, VERMILION, GREEN = "#56B4E9", "#0072B2", "#D55E00", "#009E73"
FACTS = {"Date": None, "Creator": None, "Format": None, "Type": None}  # matplotlib writes none of these


@contextlib.contextmanager
def house_style(ink: str = "black", points: float = 8.5) -> Iterator[None]:
    """Matplotlib's own defaults, whatever the user's are, and nothing in the picture that changes from run to run."""
    from matplotlib import style

    page = {
        "svg.fonttype": "none",
        "font.size": points,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), ink),
    }
    own = {"svg.hashsalt": "deepcompression", "text.parse_math": False}
    with style.context(["default", own if ink == "black" else {**own, **page}]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the reader's fonts draw the text
        yield


def new_figure(width: float, height: float, ratios: Sequence[float] = (1,)) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes below each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(len(ratios), 1, sharex=True, height_ratios=ratios)


def inline(figure: Any, key: str, label: str) -> str:
    """The figure as an ``<svg>`` that scales with the page; ids begin with ``key``, neutral ink is currentColor."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=FACTS)
    root = ElementTree.fromstring(buffer.getvalue())
    for parent in root.iter():
        for child in [one for one in parent if one.tag.endswith(("}style", "}metadata"))]:
            parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        element.attrib = {
            name.rpartition("}")[2]: _attribute(name, value, key) for name, value in element.attrib.items()
        }
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": printable(label)}
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name.endswith("href"):
        return value.replace("#", f"#{key}-", 1)
    value = re.sub(r"font: ([\d.]+px) [^;]*", r"font-size: \1", value)
    value = re.sub(r"font-family: [^;]*;? ?", "", value)  # the page's
    return value.replace("url(#", f"url(#{key}-").replace(INK, "currentColor")


def shortened(name: str, most: int) -> str:
    """A name that fits: its beginning and, more telling, its end."""
    clean = printable(name)
    return clean if len(clean) <= most else f"{clean[: most // 3]}…{clean[most // 3 + 1 - most :]}"


def printable(text: str) -> str:
    """XML knows no control characters."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def bytes_axis(axes: Any, least: int, most: int) -> None:
    """A logarithmic axis of bytes with few ticks."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(least / 1.4, most * 1.4)
    subs = (1.0,) if most > 300 * least else (1.0, 3.0) if most > 10 * least else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: size(value))
    axes.set_axisbelow(True)
    axes.grid(axis="x", color=INK, alpha=0.15, linewidth=0.6)
