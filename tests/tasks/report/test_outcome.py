from __future__ import annotations

from typing import Any

import pytest

from tasks.report.outcome import outcomes_of
from tasks.report.words import closing

ENDS = [{"metric": 1.0, "total": 100, "correct": count} for count in (98, 90)]
PLAIN = {"baseline": ENDS[0], "final": ENDS[1], "dense_bytes": 1000, "file_bytes": 20, "metric": "accuracy"}
KEPT = {"kept": True, "text": "0.1 points lost", "test": None}


def gate(name: str, passed: bool = False) -> dict[str, Any]:
    return {"gate": name, "passed": passed, "text": f"{name} says so"}


def promotion(*gates: dict[str, Any], version: int | None = None) -> dict[str, Any]:
    promoted = version is not None
    return {"model": "net", "promoted": promoted, "version": version, "champion": None, "gates": list(gates)}


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({}, [("good", "Done")]),
        ({"verdict": KEPT}, [("good", "Kept")]),
        ({"verdict": {**KEPT, "test": "on test more is lost"}}, [("doubtful", "Kept")]),
        ({"verdict": {**KEPT, "kept": False}}, [("bad", "Aim missed")]),
        ({"promotion": promotion(gate("min_ratio", True), version=3)}, [("good", "Promoted")]),
        ({"promotion": promotion(gate("new_file"))}, [("good", "The champion already")]),
        ({"promotion": promotion(gate("smaller_than_champion"))}, [("doubtful", "Worse than the champion")]),
        ({"promotion": promotion(gate("registry"))}, [("doubtful", "Not promoted")]),
        (
            {"verdict": KEPT, "promotion": promotion(gate("max_metric_loss_to_champion"))},
            [("good", "Kept"), ("doubtful", "Worse than the champion")],
        ),
    ],
)
def test_a_run_is_judged_by_what_was_asked_of_it(more: dict[str, Any], told: list[tuple[str, str]]) -> None:
    """Aims, then promotion; where neither was set, that is said; the reason stands behind the word."""
    found = outcomes_of({**PLAIN, **more})
    assert [(one.kind, one.word) for one in found] == told
    assert all(one.text and one.sign for one in found)


@pytest.mark.parametrize(("broken", "mended", "kind"), [(20, 1, "doubtful"), (1, 20, "good"), (2, 1, "good")])
def test_without_aims_the_dense_model_is_the_judge(broken: int, mended: int, kind: str) -> None:
    """Worse by more than chance is no green."""
    counts = {"broken": broken, "mended": mended, "total": 100, "low": 0.0, "high": 0.1, "difference": 0.1}
    found = {**counts, "p_value": 0.5 if broken < 3 and mended < 3 else 0.001}
    (one,) = outcomes_of({**PLAIN, "comparison": found})
    assert one.kind == kind and one.text.endswith("No aim was set.")


def test_the_closing_words_have_ratio_sentence_and_promotion() -> None:
    """What stands on Prefect's page: of one run, of one that gates refused, and of several seeds."""
    summary = {**PLAIN, "ratio": 50.0}
    start = "50.0x smaller. 8 more errors in 100 than the dense model"
    assert closing(summary).startswith(start) and closing(summary).endswith("bytes.")
    promoted = closing({**summary, "promotion": promotion(version=3)})
    assert promoted.endswith(" Version 3 of net is the champion.")
    refused = closing({**summary, "promotion": promotion(gate("min_ratio"), gate("budget", True))})
    assert refused.endswith(" Not promoted: min_ratio says so.")
    seeds = {"runs": [summary, summary], "ratio": {"mean": 50.0, "worst": 40.0}, "verdict": None}
    assert closing(seeds) == "2 seeds: 50.0x smaller on average, 40.0x at worst."
