"""What the tasks beside the stages came to: one sentence each, as the state of its Prefect task run says it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def verified(baseline: Mapping[str, Any], final: Mapping[str, Any]) -> str:
    """Of verify: what was proved, and both results."""
    ends = f"{judged(final)} by the file, {judged(baseline)} by the dense model"
    return f"Decoded in a fresh process, bit for bit; {final['split']}: {ends}."


def judged(end: Mapping[str, Any]) -> str:
    """A result: samples that are right where they can be counted, else the metric."""
    counted = end.get("correct") is not None
    return f"{end['correct']:,} of {end['total']:,} right" if counted else f"{end['metric']:.6g}"


def differed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Of difference: where the compressed net is farthest from the dense one."""
    if not rows:
        return "No stage changed what the net computes."
    last = rows[-1]["stage"]
    known = [row for row in rows if row["stage"] == last and not row["why"] and row["sqnr_alone"] is not None]
    told = f"{sum(row['stage'] == last for row in rows):,} ops compared after {last}"
    finite = [row for row in known if math.isfinite(row["sqnr_alone"])]
    if not finite:
        return f"{told}{': each gives what the dense net gives' if known else ''}."
    worst = min(finite, key=lambda row: row["sqnr_alone"])
    return f"{told}: {worst['op']} is farthest from the dense net, {worst['sqnr_alone']:.1f} dB alone."


def exported(row: Mapping[str, Any], final: Mapping[str, Any]) -> str:
    """Of export: bytes, and what the target's own runtime makes of it."""
    told = f"{row['target']}: {row['bytes']:,} bytes (float {row['float_bytes']:,})"
    if "metric" in row:
        told += f"; {row['split']}: {judged(row)} in its own runtime, {judged(final)} by the decoded file"
    elif row.get("notes"):
        told += f"; {row['notes'][-1]}"
    if "latency_ms" in row:
        told += f"; {row['latency_ms']:.3g} ms, {row['times_as_fast']:.2f} times as fast as the dense net"
    return f"{told}."


def promoted(promotion: Mapping[str, Any]) -> str:
    """Of promote: the new champion, or what failed."""
    if promotion["promoted"]:
        return f"Version {promotion['version']} of {promotion['model']} is the champion."
    failed = [str(gate.get("text") or gate["gate"]) for gate in promotion["gates"] if not gate["passed"]]
    return f"Not promoted: {'; '.join(failed)}."
