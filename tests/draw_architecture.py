"""Draws docs/architecture.svg from the imports: `make architecture`. Packages are boxes, in rows above what they use.

The first line of a package's docstring stands in its box. All arrows stand as text in the picture's metadata; drawn
are those that do not follow from others. Files at the top of tasks/ and deepcompression/ that use no package stand
below: whoever likes may import them.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from imports import ROOT, SOURCES, TOPS, imports_of

PICTURE = ROOT / "docs/architecture.svg"
SVG = "http://www.w3.org/2000/svg"
WIDE, HIGH, GAP, LINE, MARGIN, BETWEEN, HEAD = 170, 76, 22, 12.5, 24, 40, 46
LETTERS = 27  # of a box's line
Arrows = Mapping[str, set[str]]
STYLE = """
svg { font-family: system-ui, sans-serif; font-size: 10px; }
text { fill: #1f2328; } .small { fill: #59636e; } .head { font-size: 14px; font-weight: 600; }
.name { font-size: 12px; font-weight: 600; }
.title text { stroke: #eff2f5; stroke-width: 4px; stroke-linejoin: round; paint-order: stroke; }
.band { fill: #eff2f5; } .box { fill: #ffffff; stroke: #818b98; }
.arrow { fill: none; stroke: #0969da; stroke-opacity: .55; stroke-width: 1.2; marker-end: url(#tip); }
#tip path { fill: #0969da; }
.page { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .small { fill: #9198a1; } .page { fill: #0d1117; }
  .title text { stroke: #151b23; }
  .band { fill: #151b23; } .box { fill: #212830; stroke: #656c76; }
  .arrow { stroke: #58a6ff; } #tip path { fill: #58a6ff; }
}
"""


@dataclass(frozen=True)
class Box:
    """Where a package is drawn: its left upper corner."""

    x: float
    y: float


def package_of(module: str) -> str:
    """The box of a module: its package's subpackage, or the file at the package's top; files of flows/ share one."""
    return "/".join(module.split(".")[: 1 if module.startswith("flows.") and not _is_folder(module) else 2])


@cache
def arrows() -> dict[str, set[str]]:
    """For every box those that it imports from; the packages themselves, and what stands open to all, are none."""
    found: dict[str, set[str]] = {}
    for module, path in SOURCES.items():
        own = found.setdefault(package_of(module), set())
        own |= {package_of(name) for name in imports_of(path) & set(SOURCES)} - {package_of(module)}
    free = opened(found)
    return {box: found[box] - free for box in sorted(found) if box not in free}


def opened(found: Arrows) -> set[str]:
    """The library and the tasks themselves, and files at their top that come to no subpackage."""
    folders = {package_of(module) for module in SOURCES if _is_folder(module)} | {"flows"}
    found = {box: others - set(TOPS) for box, others in found.items()}
    return {box for box in found if box not in folders and (box in TOPS or not reachable(box, found) & folders)}


def _is_folder(module: str) -> bool:
    return module.count(".") > 1 or (module.count(".") == 1 and SOURCES[module].stem == "__init__")


def lines(of: Arrows) -> list[str]:
    """One line a box: ``box: what it imports from``."""
    return [f"{box}: {' '.join(sorted(others))}".rstrip() for box, others in sorted(of.items())]


def drawn_lines(picture: Path = PICTURE) -> list[str]:
    """The lines that stand in a picture's metadata."""
    text = ElementTree.fromstring(picture.read_text(encoding="utf-8")).findtext(f"{{{SVG}}}metadata") or ""
    return [line.strip() for line in text.splitlines() if line.strip()]


def reachable(start: str, of: Arrows) -> set[str]:
    """All that a box comes to."""
    found: set[str] = set()
    waiting = [*of.get(start, ())]
    while waiting:
        if (one := waiting.pop()) not in found:
            found.add(one)
            waiting += of.get(one, ())
    return found


def circles(of: Arrows) -> dict[str, frozenset[str]]:
    """For every box those that use it and that it uses, itself among them."""
    reached = {box: reachable(box, of) for box in of}
    return {box: frozenset({box} | {one for one in reached[box] if box in reached[one]}) for box in of}


def rows(of: Arrows) -> dict[str, int]:
    """The row of each box, 0 the lowest: above all that it uses; boxes that use each other share one."""
    circle = circles(of)
    below = {circle[box]: {circle[one] for other in circle[box] for one in of[other]} - {circle[box]} for box in of}
    height: dict[frozenset[str], int] = {}
    for some in TopologicalSorter(below).static_order():
        height[some] = max((height[one] for one in below[some]), default=-1) + 1
    return {box: height[circle[box]] for box in of}


def needed(of: Arrows) -> list[tuple[str, str]]:
    """The arrows that do not follow from others."""
    reached = {box: reachable(box, of) for box in of}
    return [
        (box, one)
        for box, others in of.items()
        for one in sorted(others)
        if not any(one in reached[other] and box not in reached[other] for other in others - {one})
    ]


def placed(of: Arrows) -> dict[str, Box]:
    """Where every box is drawn: bands from above, in each band the rows, in each row nearest to what it uses."""
    found: dict[str, Box] = {}
    order: dict[str, float] = {}
    shown: list[tuple[str, list[list[str]]]] = []
    for top in TOPS:  # from below, so that what a box uses has its place already
        shown.append((top, _ordered({box: of[box] for box in of if box.split("/")[0] == top}, of, order)))
    wide = max(len(row) for _, band in shown for row in band)
    y = float(MARGIN)
    for _, band in reversed(shown):
        y += HEAD
        for row in reversed(band):
            left = MARGIN + (wide - len(row)) * (WIDE + GAP) / 2
            found.update({box: Box(left + number * (WIDE + GAP), y) for number, box in enumerate(row)})
            y += HIGH + BETWEEN
    return found


def _ordered(band: Arrows, of: Arrows, order: dict[str, float]) -> list[list[str]]:
    """Rows of a band from below, each in the order of what its boxes use; ``order`` gets their places."""
    height = rows({box: others & set(band) for box, others in band.items()})
    found: list[list[str]] = [[] for _ in range(max(height.values()) + 1)]
    for number, row in enumerate(found):
        row += sorted((box for box in band if height[box] == number), key=lambda box: (_middle(of[box], order), box))
        order |= {box: place - (len(row) - 1) / 2 for place, box in enumerate(row)}
    return found


def _middle(boxes: Iterable[str], order: Mapping[str, float]) -> float:
    known = [order[box] for box in boxes if box in order]
    return sum(known) / len(known) if known else 0.0


def about(box: str) -> str:
    """The first sentence of a package's or file's docstring."""
    path = SOURCES[box.replace("/", ".")]
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n\n")[0].replace("\n", " ").replace("``", "")


def picture(of: Arrows) -> str:
    """The SVG."""
    places = placed(of)
    width = max(box.x for box in places.values()) + WIDE + MARGIN
    bottom = max(box.y for box in places.values()) + HIGH + MARGIN
    parts = [
        f'<svg xmlns="{SVG}" viewBox="0 0 {width:g} {bottom:g}" role="img" aria-label="Packages and their imports">',
        f"<metadata>\n{escape(chr(10).join(lines(of)))}\n</metadata>",
        f"<style>{STYLE}</style>",
        '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z"/></marker>',
        f'<rect class="page" width="{width:g}" height="{bottom:g}"/>',
        *(_band(top, places, width) for top in TOPS),
        *(_arrow(box, one, places) for box, one in needed(of)),
        *(_title(top, places) for top in TOPS),  # after the arrows, which would cross its words
        *(part for box, place in places.items() for part in _box(box, place)),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _band(top: str, places: Mapping[str, Box], width: float) -> str:
    ys = _rows_of(top, places)
    y, high = min(ys) - HEAD + 8, max(ys) - min(ys) + HIGH + HEAD
    return f'<rect class="band" x="8" y="{y:g}" width="{width - 16:g}" height="{high:g}" rx="8"/>'


def _title(top: str, places: Mapping[str, Box]) -> str:
    y = min(_rows_of(top, places)) - HEAD + 8
    boxes = sorted(set(map(package_of, SOURCES)) - set(places))
    free = [box.split("/")[1] for box in boxes if box.startswith(f"{top}/")]
    beside = f"Open to all above, and not drawn: {', '.join(free)}" if free else ""
    return (
        f'<g class="title"><text x="{MARGIN}" y="{y + 18:g}"><tspan class="head">{top}/</tspan>'
        f'<tspan class="small" dx="10">{escape(about(top).rstrip("."))}</tspan></text>\n'
        f'<text class="small" x="{MARGIN}" y="{y + 31:g}">{beside}</text></g>'
    )


def _rows_of(top: str, places: Mapping[str, Box]) -> list[float]:
    return [place.y for box, place in places.items() if box.split("/")[0] == top]


def _box(box: str, place: Box) -> list[str]:
    name = box.partition("/")[2] or "*.py"
    words = (
        textwrap.wrap(about(box), LETTERS, max_lines=4, placeholder=" …") if "/" in box else ["__main__, compress, …"]
    )
    return [
        f'<rect class="box" x="{place.x:g}" y="{place.y:g}" width="{WIDE}" height="{HIGH}" rx="5"/>',
        f'<text class="name" x="{place.x + 8:g}" y="{place.y + 17:g}">{name}</text>',
        *(
            f'<text class="small" x="{place.x + 8:g}" y="{place.y + 31 + LINE * number:g}">{escape(line)}</text>'
            for number, line in enumerate(words)
        ),
    ]


def _arrow(box: str, one: str, places: Mapping[str, Box]) -> str:
    start, end = places[box], places[one]
    x, to = start.x + WIDE / 2, end.x + WIDE / 2
    shift = (WIDE / 2 - 12) * max(-1.0, min(1.0, (to - x) / 600))  # arrows to the left leave at the left
    x, to = x + shift, to - shift
    if end.y <= start.y:  # within a row over the tops
        path = f"M{x:.1f} {start.y:g} C{x:.1f} {start.y - 28:g} {to:.1f} {end.y - 28:g} {to:.1f} {end.y:g}"
    else:
        path = f"M{x:.1f} {start.y + HIGH:g}" + _way(
            x, start.y + HIGH, to, end.y, places, spread=sum(map(ord, box + one))
        )
    return f'<path class="arrow" d="{path}"><title>{box} uses {one}</title></path>'


def _way(x: float, y: float, to: float, until: float, places: Mapping[str, Box], spread: int) -> str:
    """Curves from (x, y) down to (to, until), through the gaps between the boxes of each row on the way."""
    path, straight = "", (x, y)
    for row in sorted({place.y for place in places.values() if y < place.y < until}):
        ideal = straight[0] + (to - straight[0]) * (row + HIGH / 2 - straight[1]) / (until - straight[1])
        gap = _gap(ideal, [place.x for place in places.values() if place.y == row], (spread % 7 - 3) * 2)
        path += _curve(x, y, gap, row) + f" V{row + HIGH:g}"
        x, y = gap, row + HIGH
    return path + _curve(x, y, to, until)


def _gap(x: float, boxes: Iterable[float], beside: float) -> float:
    """The place nearest to x where a row of boxes has none; ``beside`` keeps arrows apart that share a gap."""
    boxes = list(boxes)
    if all(not left - GAP / 2 < x < left + WIDE + GAP / 2 for left in boxes):
        return x
    ends = [left - GAP / 2 for left in boxes] + [left + WIDE + GAP / 2 for left in boxes]
    return min(ends, key=lambda end: abs(end - x)) + beside


def _curve(x: float, y: float, to: float, until: float) -> str:
    bend = (until - y) / 2
    return f" C{x:.1f} {y + bend:.1f} {to:.1f} {until - bend:.1f} {to:.1f} {until:g}"


def main() -> None:
    """Writes the picture."""
    PICTURE.write_text(picture(arrows()), encoding="utf-8")


if __name__ == "__main__":
    main()
