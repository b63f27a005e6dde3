"""Our points beside rivals', input by input: the table of docs/numbers/headline-pairs.json.

Beside each rival stands the largest of our files with samples that takes no more bytes, and beside onnxruntime's static
int8 each of them. What is compared is a loss of each test input, ours minus the rival's, by the bootstrap over inputs,
95 %. Margins were set before: half a point of answers, a tenth of the rival's mean divergence. "Not worse" means that
the bad end of the interval lies within the margin; "better", that no more than nothing is lost at it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from headline_nets import interval
from torch import Tensor

POINTS, PART = 0.005, 0.1  # margins: of answers, of the rival's divergence
OURS = "reconstruct"
EACH = "onnxruntime static int8"
COLUMNS = ["rival", "bytes", "ours", "bytes", "KL, ours minus theirs", "", "same answer, ours minus theirs", ""]


def pairs(rows: Mapping[str, Mapping[str, Any]], net: str) -> Iterator[tuple[str, str]]:
    """Names of rivals' points and of ours beside them."""
    own = {name: one for name, one in rows.items() if one["net"] == net and one["way"] == OURS}
    for name, one in sorted(rows.items(), key=lambda pair: -pair[1]["bytes"]):
        if one["net"] != net or one["way"] == OURS:
            continue
        small = sorted((ours for ours in own if own[ours]["bytes"] <= one["bytes"]), key=lambda it: -own[it]["bytes"])
        for ours in small if one["way"] == EACH else small[:1]:
            yield name, ours


def verdict(ends: list[float], margin: float) -> str:
    """Of the interval of a loss, ours minus a rival's."""
    if ends[1] <= 0:
        return "better"
    if ends[1] <= margin:
        return "not worse"
    return "worse" if ends[0] > 0 else "undecided"


def compared(rows: Mapping[str, Mapping[str, Any]], losses: Mapping[str, Mapping[str, Tensor]], net: str) -> list[Any]:
    """The table's rows.

    Args:
        rows: of docs/headline.json.
        losses: ``divergence`` and ``unlike`` of each input (n,), by a point's name; pairs without are left out.
        net: whose points.
    """
    found = []
    for name, ours in pairs(rows, net):
        if name not in losses or ours not in losses:
            continue
        theirs, own = losses[name], losses[ours]
        lost, unlike = (own[key] - theirs[key] for key in ("divergence", "unlike"))
        ends, answers = interval(lost), interval(unlike)
        cells = [
            f"{float(lost.mean()):+.4f} ({ends[0]:+.4f} to {ends[1]:+.4f})",
            verdict(ends, PART * float(theirs["divergence"].mean())),
            f"{-100 * float(unlike.mean()):+.1f} points ({-100 * answers[1]:+.1f} to {-100 * answers[0]:+.1f})",
            verdict(answers, POINTS),
        ]
        told = [f"{rows[one]['bytes']:,}" for one in (name, ours)]
        found.append([f"{rows[name]['way']}, {rows[name]['setting']}", told[0], rows[ours]["setting"], told[1], *cells])
    return found
