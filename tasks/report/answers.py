"""What a classifier answered on the test split: classes, what was taken for what, and samples that broke."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray

FILE = "predictions.npz"  # in the run's folder, where answers are classes
MOST_CLASSES = 20  # of which a matrix is shown
MOST_CONFUSIONS = 15


@dataclass(frozen=True)
class Answers:
    """Of each sample the right class, and what the decoded file and the dense model answered; of samples that broke
    their places, and pictures by place."""

    right: NDArray[Any]
    final: NDArray[Any]
    dense: NDArray[Any] | None
    broken: Sequence[int]
    pictures: Mapping[int, NDArray[Any]]
    names: Sequence[str]

    def name(self, number: int) -> str:
        """A class's."""
        return self.names[number] if 0 <= number < len(self.names) else str(number)


def answers_of(folder: Path, names: Sequence[str] | None) -> Answers | None:
    """What verify left in a run's folder; None where answers are no classes, the test split was not read, or the file
    is damaged.

    Args:
        folder: the run's.
        names: of classes, by number.
    """
    import numpy as np

    try:
        with np.load(folder / FILE, allow_pickle=False) as file:
            found = dict(file)
        pictures = {int(key.removeprefix("picture")): found[key] for key in found if key.startswith("picture")}
        broken = [int(one) for one in found.get("broken", ())]
        return Answers(found["right"], found["final"], found.get("dense"), broken, pictures, list(names or ()))
    except (OSError, ValueError, KeyError, EOFError):
        return None


def class_rows(right: Any, answered: Any, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """A row for each class that was there or was answered: ``class``, ``precision``, ``recall``, ``f1``, ``samples``;
    none where there is no sample.

    Args:
        right: (n,) the right classes.
        answered: (n,) what was answered.
        names: of classes, by number.
    """
    if not len(right):
        return []
    from sklearn.metrics import precision_recall_fscore_support

    known = sorted({*map(int, right), *map(int, answered)})
    columns = precision_recall_fscore_support(right, answered, labels=known, zero_division=0.0)
    return [
        {
            "class": names[number] if names and 0 <= number < len(names) else str(number),
            "precision": float(precision),
            "recall": float(recall),
            "f1": float(f1),
            "samples": int(count),
        }
        for number, precision, recall, f1, count in zip(known, *columns, strict=True)
    ]


def shown(answers: Answers) -> dict[str, Any]:
    """What the page's section has: ``classes``, rows with ``change`` of recall against the dense model, the worst
    first; ``matrix``, or None of many classes; ``confusions``, the most frequent; ``broken``, samples with pictures
    where there are any; ``unseen``, how many of ``count`` have none; ``compared``: whether a dense model is known.
    """
    rows = class_rows(answers.right, answers.final, answers.names)
    before = {row["class"]: row["recall"] for row in _dense_rows(answers)}
    for row in rows:
        row["change"] = row["recall"] - before[row["class"]] if row["class"] in before else None
    rows.sort(key=lambda row: (row["change"] or 0, row["recall"]) if row["samples"] else (1, 1))
    return {
        "classes": rows,
        "matrix": _matrix(answers) if len(rows) <= MOST_CLASSES else None,
        "confusions": _confusions(answers),
        "broken": [_broken(answers, place) for place in answers.broken if place in answers.pictures],
        "unseen": len(answers.broken) - len(answers.pictures),
        "count": len(answers.broken),
        "compared": answers.dense is not None,
    }


def _dense_rows(answers: Answers) -> list[dict[str, Any]]:
    return [] if answers.dense is None else class_rows(answers.right, answers.dense, answers.names)


def _matrix(answers: Answers) -> dict[str, Any]:
    """Rows of right classes, columns of answers: counts with their ``part`` of the row."""
    from sklearn.metrics import confusion_matrix

    known = sorted({*map(int, answers.right), *map(int, answers.final)})
    counts = confusion_matrix(answers.right, answers.final, labels=known)
    rows = [
        [{"count": int(one), "part": float(one) / max(int(row.sum()), 1), "right": a == b} for b, one in enumerate(row)]
        for a, row in enumerate(counts)
    ]
    return {"names": [answers.name(one) for one in known], "rows": rows}


def _confusions(answers: Answers) -> list[dict[str, Any]]:
    """What is most often taken for what by the file, and how often by the dense model."""
    from collections import Counter

    def pairs(answered: Any) -> Counter[tuple[int, int]]:
        wrong = answers.right != answered
        return Counter(zip(answers.right[wrong].tolist(), answered[wrong].tolist(), strict=True))

    now, was = pairs(answers.final), pairs(answers.dense) if answers.dense is not None else None
    return [
        {
            "right": answers.name(right),
            "answered": answers.name(answered),
            "count": count,
            "before": None if was is None else was[right, answered],
        }
        for (right, answered), count in now.most_common(MOST_CONFUSIONS)
    ]


def _broken(answers: Answers, place: int) -> dict[str, Any]:
    return {
        "place": place,
        "right": answers.name(int(answers.right[place])),
        "answered": answers.name(int(answers.final[place])),
        "picture": _png(answers.pictures[place]),
    }


def _png(picture: NDArray[Any]) -> str:
    """A ``data:`` URL of a picture (height, width, 1 or 3) of bytes."""
    import numpy as np
    from matplotlib import image

    buffer = io.BytesIO()
    whole = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
    image.imsave(buffer, np.ascontiguousarray(whole), format="png", metadata={"Software": None})
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
