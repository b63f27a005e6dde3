"""A report's section on speed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.report import bench

HOSTILE = "<script>alert(1)</script>"


def _result(name: str) -> dict[str, Any]:
    figures = dict.fromkeys(("median_ms", "p10_ms", "iqr_ms", "cpu_ms", "per_second"), 2.0) | {"p99_ms": None}
    row = {"way": name, "what": "", "why": None, "note": HOSTILE, "bytes": 10, "weights_bytes": None}
    layer = {"kind": "Linear", "macs": 100, "nonzero": 10, "density": 0.1}
    ends = {
        end: {"macs": 100, "nonzero": 10, "left_out": {}, "layers": [{**layer, "name": one} for one in (name, end)]}
        for end in ("dense", "final")
    }
    machine = {"cpu": "X", "average": 1.0, "threads": 1, "cores": 2, "own": 1.0, "others": 0.0, "busy": False}
    return {
        "time": "now",
        "batches": [1],
        "samples": {"repeated": False},
        "flops": ends,
        "energy": {"why": "no"},
        "machine": machine,
        "ways": [{**row, "batches": {"1": figures}}, {"way": "other", "why": HOSTILE}],
    }


def test_a_section_takes_the_place_of_the_last(tmp_path: Path) -> None:
    """The rest of the page stays; what came from elsewhere is text, not part of the page."""
    page = tmp_path / "report.html"
    page.write_text(f"<p>before</p>{bench.BEGIN}{bench.END}<p>after</p>")
    for name in ("first", HOSTILE):
        (tmp_path / "bench.json").write_text(json.dumps(_result(name)))
        assert bench.renew(page, tmp_path)
    text = page.read_text()
    assert text.startswith("<p>before</p>") and text.endswith("<p>after</p>")
    assert text.count("<h2") == 1 and "first" not in text and HOSTILE not in text and "&lt;script&gt;" in text


def test_a_report_says_how_to_measure_and_an_old_one_stays(tmp_path: Path) -> None:
    """A file that cannot be read is as none; a page without the place is left as it is."""
    told = bench.section_of(tmp_path)
    assert f"Not measured yet: <code>python -m flows bench {tmp_path.name}</code>" in told and "<table" not in told
    for damage in ("{", "[1]", "3", "{}"):
        (tmp_path / "bench.json").write_text(damage)
        assert bench.section_of(tmp_path) == told
    page = tmp_path / "report.html"
    page.write_text("old")
    assert not bench.renew(page, tmp_path) and page.read_text() == "old"


def test_layers_of_both_ends_side_by_side() -> None:
    """A layer that is gone has multiplications in the dense net alone, one that is new in the other."""
    rows = bench.layers_of(_result("both")["flops"])
    assert [(row["name"], row["dense"], row["macs"]) for row in rows] == [
        ("both", 100, 100),
        ("dense", 100, None),
        ("final", None, 100),
    ]
