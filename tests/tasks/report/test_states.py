"""What tasks say at their end."""

from __future__ import annotations

import math
from typing import Any

from tasks.report import states

COUNTED = {"metric": 0.99, "correct": 356, "total": 360, "split": "test"}
MEASURED = {"metric": 0.123456789, "correct": None, "total": 360, "split": "validation"}


def test_verify_says_what_was_proved_and_both_results() -> None:
    """Samples where they can be counted, else the metric; the split that was read."""
    told = states.verified({**COUNTED, "correct": 358}, COUNTED)
    proved = "Decoded in a fresh process, bit for bit; test: 356 of 360 right by the file, 358 of 360 right"
    assert told.startswith(proved)
    assert "validation: 0.123457 by the file" in states.verified(MEASURED, MEASURED)


def _row(stage: str, op: str, decibels: float | None, why: str = "") -> dict[str, Any]:
    return {"stage": stage, "op": op, "sqnr_alone": decibels, "why": why}


def test_difference_names_the_op_that_is_farthest_off_after_the_last_stage() -> None:
    """Not one of a stage before, nor one without figures; ops that are equal are no worst one."""
    rows = [
        _row("prune", "conv1", 3.0), _row("share", "conv1", 22.25), _row("share", "fc1", 40.0),
        _row("share", "add", None, "no tensor"), _row("share", "relu", math.inf),
    ]  # fmt: skip
    assert states.differed(rows) == "4 ops compared after share: conv1 is farthest from the dense net, 22.2 dB alone."
    assert states.differed(rows[-1:]) == "1 ops compared after share: each gives what the dense net gives."
    assert states.differed(rows[3:4]) == "1 ops compared after share."
    assert states.differed([]) == "No stage changed what the net computes."


def test_export_says_bytes_and_what_its_runtime_makes_of_them() -> None:
    """Or why that is not known."""
    made = {"target": "onnx", "bytes": 1234, "float_bytes": 5000, "notes": []}
    timed = {"latency_ms": 0.01842, "times_as_fast": 6.0}
    assert states.exported({**made, **COUNTED, **timed}, COUNTED) == (
        "onnx: 1,234 bytes (float 5,000); test: 356 of 360 right in its own runtime, 356 of 360 right by the decoded "
        "file; 0.0184 ms, 6.00 times as fast as the dense net."
    )
    told = states.exported({**made, "notes": ["its runtime is not on this machine: not run here"]}, COUNTED)
    assert told == "onnx: 1,234 bytes (float 5,000); its runtime is not on this machine: not run here."
