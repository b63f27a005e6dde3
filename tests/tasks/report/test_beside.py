from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import torch

from tasks.report.beside import bars, beside, previous


def run_in(folder: Path, called: str, **summary: Any) -> Path:
    """A finished run's folder."""
    path = folder / called
    path.mkdir()
    told = {"name": "net", "seed": 0, "metric": "accuracy", "file_bytes": 50, "final": {"metric": 0.5}, **summary}
    (path / "summary.json").write_text(json.dumps(told))
    return path


def test_the_run_before_is_the_newest_of_the_same_name_and_seed(tmp_path: Path) -> None:
    """Neither later ones, nor other names that begin alike, nor other seeds, nor unfinished ones."""
    run_in(tmp_path, "net-20260101-000000-aaaa", file_bytes=1)
    run_in(tmp_path, "net-20260102-000000-aaaa", file_bytes=2)
    run_in(tmp_path, "net-20260103-000000-aaaa", seed=1)
    run_in(tmp_path, "net-big-20260103-000000-aaaa", name="net-big")
    (tmp_path / "net-20260103-000000-bbbb").mkdir()
    own = run_in(tmp_path, "net-20260104-000000-aaaa")
    run_in(tmp_path, "net-20260105-000000-aaaa")
    found = previous(own, "net", 0)
    assert found is not None and found["bytes"] == 2 and found["run"] == "net-20260102-000000-aaaa"
    assert previous(tmp_path / "net-20260101-000000-aaaa", "net", 0) is None


def test_gzip_and_integers_are_what_they_are(tmp_path: Path) -> None:
    """gzip's bytes are gzip's own; a matrix has a byte a weight and four a channel."""
    dense = {"weight": torch.arange(12, dtype=torch.float32).reshape(3, 4), "bias": torch.ones(3)}
    rows = {row["what"]: row["bytes"] for row in beside(dense, dense, tmp_path / "net-1", "net", 0)}
    whole = dense["weight"].numpy().tobytes() + dense["bias"].numpy().tobytes()
    assert rows["gzip of the dense model"] == len(gzip.compress(whole, 6))
    assert rows["8-bit integers"] == 12 + 3 * 4 + 3 * 4


def test_bars_have_all_that_is_known(tmp_path: Path) -> None:
    """The largest first; the champion and exports too; a summary of an older release has fewer."""
    summary = {"dense_bytes": 1000, "file_bytes": 10}
    assert [row["what"] for row in bars(summary)] == ["dense model", "this file"]
    champion = {"version": 2, "file_bytes": 20, "metric": "accuracy", "val_metric": 0.9}
    exports = [{"target": "onnx", "bytes": 100}, {"target": "c", "error": "no"}]
    found = bars({**summary, "promotion": {"champion": champion}, "exports": exports})
    assert [row["what"] for row in found] == ["dense model", "export onnx", "the champion before", "this file"]
    assert found[1]["part"] == 0.1 and found[3]["ratio"] == 100
