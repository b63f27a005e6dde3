from __future__ import annotations

from typing import Any

import pytest

from tasks.execution.run import Reference
from tasks.tracking.results import columned, epoch_rows, results_of, results_of_seeds, stage_rows, tags_of

PLAIN: dict[str, Any] = {
    "metric": "accuracy",
    "dense_bytes": 1000,
    "file_bytes": 20,
    "ratio": 50.0,
    "baseline": {"metric": 0.98, "total": 100, "correct": 98, "split": "test"},
    "final": {"metric": 0.9, "total": 100, "correct": 90, "split": "test"},
}


def test_results_are_few() -> None:
    """Bytes, ratio, the metric on test, its difference, and whether aims were kept; nothing where none was set."""
    found = {"file_bytes": 20, "ratio": 50.0, "test_accuracy": 0.9, "test_difference": pytest.approx(-0.08)}
    assert results_of(PLAIN) == found
    paired = {**PLAIN, "comparison": {"difference": 0.08}, "verdict": {"kept": False, "text": "", "test": None}}
    assert results_of(paired) == {**found, "test_difference": 0.08, "kept": 0.0}
    unread = {**PLAIN, "final": {**PLAIN["final"], "split": "validation"}}
    assert set(results_of(unread)) == {"file_bytes", "ratio"}


def test_seeds_have_the_same_names() -> None:
    """So that runs of one seed and of several stand in one column."""
    group = {"mean": 1.0, "worst": 2.0, "spread": 0.5}
    told = results_of_seeds({"runs": [PLAIN], "file_bytes": group, "ratio": group, "final": {"metric": group}})
    assert {"file_bytes", "ratio", "test_accuracy"} <= set(told) and told["test_accuracy_worst"] == 2.0


def test_the_page_begins_with_the_verdict() -> None:
    """Then the sentence, a table, and links where a server has the run; the list has both ends in a few words."""
    tags = tags_of({**PLAIN, "verdict": {"kept": False, "text": "3 points lost", "test": None}}, "#/runs/1")
    assert tags["mlflow.note.content"].startswith("**✗ Aim missed** 3 points lost\n\n8 more errors in 100")
    assert "[report.html](#/runs/1/artifacts/report.html)" in tags["mlflow.note.content"]
    assert tags["result"] == "50.0× smaller, 20 B, test accuracy 0.9" and tags["dense"] == "1 KB, test accuracy 0.98"
    assert "artifacts/" not in tags_of(PLAIN, None)["mlflow.note.content"]


def test_what_is_no_metric_is_in_tables() -> None:
    """All numbers of a stage, what it counted, and all columns of its epochs."""
    numbers = {"stage": "prune", "size_bytes": 5, "coarsened": {"new_zeros": 7}}
    entry = {"history": [{"epoch": 1, "lr": 0.1}], "figures": {"macs": 3}}
    references = [
        Reference("a", "a", numbers=numbers),
        Reference("b", "b", numbers={"stage": "encode", "size_bytes": 4}),
    ]
    assert columned(stage_rows(references, [entry, {}])) == {
        "columns": ["stage", "size_bytes", "new_zeros", "macs"],
        "data": [["prune", 5, 7, 3], ["encode", 4, None, None]],
    }
    assert epoch_rows(references, [entry, {}]) == [{"stage": "prune", "epoch": 1, "lr": 0.1}]
