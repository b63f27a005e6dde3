"""A drawing of the network: a box a layer with a bar of its bytes, that tells more when it is clicked."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from tasks.console import size
from tasks.report.layers import Layer
from tasks.report.style import printable, shortened

FILE = "network.json"  # in the run's folder
WIDTH, HEIGHT, BESIDE, BELOW, LANE = 340, 40, 20, 16, 9  # pixels
BAR = 84
NAME, DOES = 36, 33  # letters that fit


@dataclass
class Box:
    """A layer with what follows it and has no weights of its own: ``kinds`` in order, shape of the last; the tensors
    of the file that belong to it; and the boxes whose outputs it takes.

    ``row`` and ``column``: where it stands.
    """

    module: str
    kinds: list[str]
    modules: list[str]
    shape: Sequence[int]
    inputs: list[int]
    tensors: list[Layer] = field(default_factory=list)
    row: int = 0
    column: int = 0

    @property
    def bytes(self) -> int:
        """What its tensors take in the file."""
        return sum(one.bytes for one in self.tensors)

    @property
    def dense_bytes(self) -> int:
        """What they took in the dense model, those that are the same as others not counted."""
        return sum(one.dense_bytes for one in self.tensors if one.same_as is None)

    @property
    def title(self) -> str:
        """Its layer's name, or what it does."""
        return self.module or self.kinds[0]


def read(folder: Path) -> dict[str, Any]:
    """What the task ``difference`` left of a run's network; empty where there is nothing that can be read."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def boxes_of(nodes: Sequence[Mapping[str, Any]], layers: Sequence[Layer]) -> list[Box]:
    """The boxes of a network in their order, each with its tensors, placed in rows and columns.

    Args:
        nodes: of ``deepcompression.network.graph``, as plain values.
        layers: the tensors of the file.
    """
    owners = {str(node["module"]) for node in nodes if node["module"]}
    owned = _owned(owners, layers)
    uses = Counter(place for node in nodes for place in node["inputs"])
    boxes: list[Box] = []
    at: dict[int, int] = {}
    for place, node in enumerate(nodes):
        inputs = list(dict.fromkeys(at[one] for one in node["inputs"]))
        tensors = (
            owned.pop(str(node["module"]), []) if node["module"] else []
        )  # of a layer that is used twice, where it is used first
        if _follows(node, tensors, inputs, uses, boxes):
            box = boxes[inputs[0]]
            box.kinds.append(node["kind"])
            box.modules += [node["module"]] if node["module"] else []
            box.shape, box.tensors = node["shape"], [*box.tensors, *tensors]
            at[place] = inputs[0]
            continue
        at[place] = len(boxes)
        names = [node["module"]] if node["module"] else []
        boxes.append(Box(str(node["module"]), [node["kind"]], names, node["shape"], inputs, tensors))
    _place(boxes)
    return boxes


def svg(boxes: Sequence[Box], key: str) -> str:
    """The drawing, an ``<svg>`` with a button a box; its details are the element whose id is ``key`` and its place.

    Args:
        boxes: of ``boxes_of``.
        key: begins ids; unique in its page.
    """
    most = max((box.bytes for box in boxes), default=0) or 1
    lanes = _lanes(boxes)
    columns = max(box.column for box in boxes) + 1
    width = columns * (WIDTH + BESIDE) + LANE * (max(lanes.values(), default=-1) + 2)
    height = (max(box.row for box in boxes) + 1) * (HEIGHT + BELOW)
    right = columns * (WIDTH + BESIDE)
    lines = [_line(boxes, edge, lanes.get(edge), right) for edge in _edges(boxes)]
    drawn = [_drawn(box, f"{key}{place}", most) for place, box in enumerate(boxes)]
    return (
        f'<svg class="net" viewBox="0 0 {width} {height}" style="width: {width}px" role="group" '
        f'aria-label="The network, a box a layer">{"".join(lines)}{"".join(drawn)}</svg>'
    )


def _follows(
    node: Mapping[str, Any], tensors: Sequence[Layer], inputs: Sequence[int], uses: Counter[int], boxes: Sequence[Box]
) -> bool:
    """Whether a node is shown in the box before it: alone behind it, without a matrix, and no joint."""
    if len(node["inputs"]) != 1 or uses[node["inputs"][0]] != 1 or not boxes[inputs[0]].inputs:
        return False
    return all(one.is_vector for one in tensors)


def _owned(owners: set[str], layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The tensors of each module that is drawn: of the longest name that the tensor's begins with."""
    found: dict[str, list[Layer]] = {}
    for one in layers:
        module = one.name.rpartition(".")[0]
        while module and module not in owners:
            module = module.rpartition(".")[0]
        found.setdefault(module, []).append(one)
    return found


def _place(boxes: Sequence[Box]) -> None:
    """A box stands below all whose outputs it takes; those of a row side by side."""
    taken: Counter[int] = Counter()
    for box in boxes:
        box.row = max((boxes[one].row + 1 for one in box.inputs), default=0)
        box.column = taken[box.row]
        taken[box.row] += 1


def _edges(boxes: Sequence[Box]) -> list[tuple[int, int]]:
    return [(one, place) for place, box in enumerate(boxes) for one in box.inputs]


def _lanes(boxes: Sequence[Box]) -> dict[tuple[int, int], int]:
    """For each edge that passes rows by: the first lane at the right that is free there."""
    free: list[int] = []  # lane -> the row from which on it is free
    found = {}
    long = [(boxes[a].row, boxes[b].row, (a, b)) for a, b in _edges(boxes) if boxes[b].row - boxes[a].row > 1]
    for start, end, edge in sorted(long):
        lane = next((one for one, row in enumerate(free) if row <= start), len(free))
        free[lane : lane + 1] = [end]
        found[edge] = lane
    return found


def _corner(box: Box) -> tuple[int, int]:
    return box.column * (WIDTH + BESIDE) + 1, box.row * (HEIGHT + BELOW) + 1


def _line(boxes: Sequence[Box], edge: tuple[int, int], lane: int | None, right: int) -> str:
    (x1, y1), (x2, y2) = (_corner(boxes[place]) for place in edge)
    if lane is None:
        middle = WIDTH // 2
        path = f"M{x1 + middle} {y1 + HEIGHT} L{x2 + middle} {y2}"
    else:
        x, out, back = right + LANE * (lane + 1), y1 + HEIGHT // 2 + 8, y2 + HEIGHT // 2 - 8
        down = f"H{x - 4} Q{x} {out} {x} {out + 4} V{back - 4} Q{x} {back} {x - 4} {back}"
        path = f"M{x1 + WIDTH} {out} {down} H{x2 + WIDTH}"
    return f'<path d="{path}"/>'


def _drawn(box: Box, target: str, most: int) -> str:
    x, y = _corner(box)
    bar = f'<rect class="whole" x="{x + WIDTH - BAR - 8}" y="{y + 24}" width="{BAR}" height="7" rx="2"/>' + (
        f'<rect class="part" x="{x + WIDTH - BAR - 8}" y="{y + 24}" width="{max(BAR * box.bytes / most, 1):.1f}" '
        'height="7" rx="2"/>'
    )
    told = f"{box.title}, {' · '.join(box.kinds)}, {box.bytes:,} bytes"
    chosen = ' data-chosen=""' if box.bytes == most else ""
    return (
        f'<g role="button" tabindex="0"{chosen} aria-controls="{target}" aria-label="{_text(told)}">'
        f'<rect class="box" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="5"/>'
        f'<text class="name" x="{x + 8}" y="{y + 16}">{_text(shortened(box.title, NAME))}</text>'
        f'<text x="{x + 8}" y="{y + 32}">{_text(_does(box))}</text>'
        + (f'<text class="bytes" x="{x + WIDTH - 8}" y="{y + 16}">{size(box.bytes)}</text>{bar}' if box.bytes else "")
        + "</g>"
    )


def _does(box: Box) -> str:
    """What it does and what it gives, as far as there is room."""
    does, shape = " · ".join(box.kinds if box.module else box.kinds[1:]), "×".join(map(str, box.shape))
    most = DOES if box.bytes else 52
    if len(does) + len(shape) + 3 <= most:
        return f"{does} → {shape}".strip() if does and shape else does + shape
    return does if len(does) <= most else f"{does[: most - 1]}…"


def _text(text: str) -> str:
    return escape(printable(text))
