"""Which layers lose it, as a finished run tells it: the table that its task ``difference`` left."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "differences.json"
RATIOS = ("sqnr_alone", "sqnr")


def rows_in(folder: Path) -> list[dict[str, Any]]:
    """The table of a finished run, a row for each stage and op; empty where it has none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return []
    table = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(table, Mapping) or not {"columns", "data"} <= set(table):
        raise ValueError(f"{path}: expected columns and data")
    return [_whole(dict(zip(table["columns"], row, strict=True))) for row in table["data"]]


def by_op(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row an op: the figures of the last stage; and ``stages``, of each stage the ratio in the whole net.

    Args:
        rows: of ``rows_in``.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        one = found.setdefault(row["op"], {"stages": {}})
        one["stages"][row["stage"]] = row["sqnr"]
        one.update(row)
    return list(found.values())


def _whole(row: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: a ratio that is missing without a reason is one of equal values."""
    return row if row["why"] else {**row, **{name: math.inf for name in RATIOS if row[name] is None}}
