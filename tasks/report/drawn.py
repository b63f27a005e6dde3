"""The section of a report that draws the network: the drawing, and what each of its boxes tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.report.layers import Layer
from tasks.report.network import Box, boxes_of, read, svg

KEY = "box"


def network_of(
    folder: Path, layers: Sequence[Layer], losses: Sequence[Mapping[str, Any]], covered: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """``svg``, ``boxes`` with their details, ``macs`` of one sample; or ``why`` it is not drawn; None of runs that left
    nothing to draw.

    Args:
        folder: the run's.
        layers: the tensors of its file.
        losses: rows of ``losses.by_op``.
        covered: rows of ``page.covered_table``.
    """
    found = read(folder)
    if not found.get("nodes"):
        return {"why": found["why"], "svg": "", "boxes": [], "macs": found.get("macs")} if found.get("why") else None
    boxes, macs = boxes_of(found["nodes"], layers), found.get("macs") or {}
    by_op = {one["op"]: one for one in losses}
    by_tensor = {one["tensor"]: one for one in covered}
    file_bytes = sum(one.bytes for one in layers) or 1
    details = [
        {
            "id": f"{KEY}{place}",
            **_details(box, macs, file_bytes),
            "loss": by_op.get(box.module),
            "done": _done(box, by_tensor),
        }
        for place, box in enumerate(boxes)
    ]
    return {"why": "", "svg": svg(boxes, KEY), "boxes": details, "macs": macs or None}


def _details(box: Box, macs: Mapping[str, Any], file_bytes: int) -> dict[str, Any]:
    counted = {end: _counted(box, macs.get(end) or {}) for end in ("dense", "final")}
    return {
        "title": box.title,
        "does": " · ".join(box.kinds),
        "modules": box.modules,
        "shape": " × ".join(map(str, box.shape)),
        "bytes": box.bytes,
        "dense_bytes": box.dense_bytes,
        "part": box.bytes / file_bytes,
        "tensors": box.tensors,
        "macs": counted["dense"][0],
        "left": counted["final"][1],
    }


def _counted(box: Box, macs: Mapping[str, Any]) -> tuple[int, int]:
    """Multiplications, and those with a weight that is not zero."""
    rows = [(macs.get("layers") or {}).get(one, (0, 0)) for one in box.modules]
    return sum(int(row[0]) for row in rows), sum(int(row[1]) for row in rows)


def _done(box: Box, covered: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which stages worked on its weights, and which left them alone and why."""
    rows = [covered[one.name] for one in box.tensors if one.name in covered]
    told = [f"{row['tensor']}: done by {', '.join(row['done'])}" for row in rows if row["done"]]
    left = [
        f"{row['tensor']}: left alone by {', '.join(who)}, {why}" for row in rows for why, who in row["left"].items()
    ]
    return [*told, *left]
