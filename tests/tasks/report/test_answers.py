from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, recall_score

from tasks.report.answers import FILE, answers_of, shown

RIGHT = np.array([0, 0, 1, 1, 2, 2, 2], np.int32)
DENSE = np.array([0, 0, 1, 1, 2, 2, 1], np.int32)
FINAL = np.array([0, 1, 1, 1, 2, 2, 2], np.int32)


def left(folder: Path, **arrays: np.ndarray) -> None:
    """What verify leaves."""
    np.savez_compressed(folder / FILE, right=RIGHT, final=FINAL, **arrays)


def test_tables_are_those_of_sklearn(tmp_path: Path) -> None:
    """Recall, its change against the dense model with the worst first, the matrix, and the one sample that broke."""
    picture = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    left(tmp_path, dense=DENSE, broken=np.array([1]), picture1=picture)
    answers = answers_of(tmp_path, ["ant", "bee", "cat"])
    assert answers is not None
    found = shown(answers)
    assert [row["class"] for row in found["classes"]] == ["ant", "bee", "cat"]
    recall = dict(zip(["ant", "bee", "cat"], recall_score(RIGHT, FINAL, average=None), strict=True))
    assert {row["class"]: row["recall"] for row in found["classes"]} == recall
    assert [round(row["change"], 3) for row in found["classes"]] == [-0.5, 0.0, 0.333]
    assert [[one["count"] for one in row] for row in found["matrix"]["rows"]] == confusion_matrix(RIGHT, FINAL).tolist()
    assert found["confusions"] == [{"right": "ant", "answered": "bee", "count": 1, "before": 0}]
    (broken,) = found["broken"]
    assert (broken["right"], broken["answered"], found["unseen"]) == ("ant", "bee", 0)
    assert broken["picture"].startswith("data:image/png;base64,")


def test_models_that_saw_other_orders_are_not_compared(tmp_path: Path) -> None:
    """Without the dense model's answers the file's own are told, and nothing is said to have broken."""
    left(tmp_path)
    answers = answers_of(tmp_path, None)
    assert answers is not None
    found = shown(answers)
    assert not found["compared"] and found["broken"] == [] and {row["change"] for row in found["classes"]} == {None}
    assert found["classes"][0]["class"] == "0"


@pytest.mark.parametrize("content", [None, b"", b"no zip at all"])
def test_what_cannot_be_read_is_left_out(tmp_path: Path, content: bytes | None) -> None:
    """A run without such a file, or with a damaged one, has a page all the same."""
    if content is not None:
        (tmp_path / FILE).write_bytes(content)
    assert answers_of(tmp_path, None) is None
