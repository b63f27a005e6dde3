"""What was asked of a run, and whether it was kept."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import typer

from deepcompression.errors import AimMissed
from flows.table import show
from flows.verbs.running import tell as _print
from tasks.report.words import sentence
from tasks.storage.store import as_json
from tasks.verdict import budget_aims, lost, missed, told, verdict_of, verdict_of_seeds


def outcome(**changes: Any) -> dict[str, Any]:
    """Of a budget's search, of one step."""
    step = {"file_bytes": 9880, "loss": 12.67, "expected_loss": 12.9}
    step |= {key: changes.pop(key) for key in tuple(changes) if key in step}
    asked = {"metric": "accuracy", "in_points": True, "metric_loss": 1.0, "file_bytes": None, "margin": 0.25}
    return {**asked, "kept": False, "chosen": 1, "steps": [step], **changes}


def gate(name: str, passed: bool) -> dict[str, Any]:
    return {"gate": name, "passed": passed, "wanted": 1.0, "got": 2.0, "by": 1.0, "text": f"{name} in words"}


def summary(**changes: Any) -> dict[str, Any]:
    """Of a finished run, as far as the verdict and the closing table look at it."""
    end = {"metric": 0.95, "correct": 342, "total": 360, "error": 0.05, "split": "test", "higher_is_better": True}
    plain = {
        "name": "mine", "seed": 0, "metric": "accuracy", "dense_bytes": 212_008, "file_bytes": 9880, "ratio": 21.4,
        "baseline": end, "final": end, "comparison": None, "stages": [], "file": "/r/model.dcz", "folder": "/r",
        "mlflow_run_id": "abc", "tracking_uri": "sqlite:///m.db",
    }  # fmt: skip
    made = {**plain, **changes}
    return {**made, "verdict": verdict_of(made)}


def test_a_missed_budget_is_told_with_what_was_lost_and_allowed() -> None:
    """The tag, and the aim itself, say how much was lost where how much was allowed."""
    verdict = verdict_of({"budget": outcome()})
    assert verdict is not None
    assert told(verdict) == "aim missed: 12.67 points lost on validation, 1 allowed"
    aim = verdict["aims"][0]
    assert (aim["aim"], aim["kept"], aim["wanted"], aim["got"]) == ("metric_loss", False, 1.0, 12.67)
    large = verdict_of({"budget": {**outcome(metric_loss=None), "file_bytes": 5000}})
    assert large is not None and told(large) == "aim missed: 9,880 bytes, 5,000 allowed"


def test_aims_of_the_recipe_are_judged_beside_budget_and_gates() -> None:
    """One that is missed is the verdict, in its words; kept ones are told, with what the test split says against it."""
    kept = {"aim": "max_metric_loss", "kept": True, "wanted": 2.0, "got": 0.5, "text": "half a point worse"}
    lacking = {"aim": "min_ratio", "kept": False, "wanted": 30.0, "got": 21.4, "text": "21.4x smaller, 30x wanted"}
    both = summary(aims=[kept, lacking])["verdict"]
    assert not both["kept"] and both["text"] == "21.4x smaller, 30x wanted" and len(both["aims"]) == 2
    end = {"metric": 0.90, "correct": 324, "total": 360, "split": "test", "higher_is_better": True}
    alone = summary(aims=[kept], final=end)["verdict"]
    assert alone["kept"] and alone["text"] == "half a point worse" and "5.00 points lost" in alone["test"]


def test_what_is_only_expected_to_be_lost_is_a_miss_that_says_so() -> None:
    """A file that lost little so far, but is not expected to keep it up, misses its budget in understandable words."""
    (aim,) = budget_aims(outcome(loss=0.6, expected_loss=0.93))
    assert aim.text == (
        "0.60 points lost on validation, 1 allowed, but 0.93 points lost expected on new samples, where 0.25 is kept "
        "back"
    )


@pytest.mark.parametrize(
    ("size", "loss", "kept"),
    [(9_880, 0.5, [True, True]), (22_000, 0.5, [True, False]), (9_880, 1.5, [False, True]), (22_000, 2.0, [False] * 2)],
)
def test_two_limits_are_two_aims(size: int, loss: float, kept: list[bool]) -> None:
    """At least 10 times smaller within a point: what was missed is told of each, and a run keeps both or misses."""
    step = {"file_bytes": size, "loss": loss, "expected_loss": loss}
    asked = {**outcome(), "metric_loss": 1.0, "file_bytes": 21_200, "kept": all(kept), "steps": [step]}
    named = list(zip(("metric_loss", "file_bytes"), kept, strict=True))
    assert [(aim.aim, aim.kept) for aim in budget_aims(asked)] == named
    verdict = verdict_of(summary(budget=asked))
    assert verdict is not None and verdict["kept"] == all(kept)


@pytest.mark.parametrize(
    ("loss", "unit", "words"),
    [
        (12.671, "points", "12.67 points lost"),
        (-0.0, "points", "0.00 points lost"),
        (-0.001, "points", "0.00 points lost"),
        (-0.28, "points", "0.28 points gained"),
        (0.01234, "auc", "0.01234 auc lost"),
        (math.nan, "auc", "auc is not a number: all of it lost"),
    ],
)
def test_losses_have_a_unit_and_no_minus_zero(loss: float, unit: str, words: str) -> None:
    """Nothing lost is no minus nothing, and what is gained is not called a loss."""
    assert lost(loss, unit) == words


def test_gates_that_need_no_champion_are_aims_and_the_others_are_not() -> None:
    """max_metric_loss and min_ratio miss the aim; losing against the champion, or a registry that is away, does not."""
    for name in ("max_metric_loss", "min_ratio"):
        verdict = verdict_of({"promotion": {"gates": [gate(name, False)]}})
        assert verdict is not None and told(verdict) == f"aim missed: {name} in words"
    for name in ("smaller_than_champion", "max_metric_loss_to_champion", "registry", "model", "new_file"):
        assert verdict_of({"promotion": {"gates": [gate(name, False)]}}) is None
    assert verdict_of({}) is None and not missed({"verdict": None}) and not missed({})


def test_seeds_keep_it_together() -> None:
    """One seed that missed is a miss of all, named; without aims there is no verdict."""
    good, bad = summary(budget=outcome(kept=True, loss=0.1)), summary(budget=outcome(), seed=1)
    verdict = verdict_of_seeds([good, bad])
    assert verdict is not None and not verdict["kept"] and verdict["text"].startswith("seed 1: 12.67 points")
    assert verdict_of_seeds([summary()]) is None
    kept = verdict_of_seeds([good, good])
    assert kept is not None and kept["kept"]


def test_a_worse_test_result_is_shown_and_is_no_missed_aim() -> None:
    """Aims are judged on validation: what test says beside it is told plainly, with the reason."""
    worse = {**summary()["final"], "metric": 0.93, "correct": 335}
    verdict = summary(budget=outcome(kept=True, loss=0.1), final=worse)["verdict"]
    assert verdict["kept"] and verdict["test"].startswith("on the test split 2.00 points lost, more than the 1 that")
    assert summary(budget=outcome(kept=True, loss=0.1))["verdict"]["test"] is None


def test_the_closing_words_begin_with_the_miss(capsys: pytest.CaptureFixture[str]) -> None:
    """The red line comes before any ratio, in the table and in the sentence of report, note and artifact."""
    one = summary(budget=outcome())
    show(one)
    out = capsys.readouterr().out
    assert out.index("AIM MISSED  12.67 points lost on validation, 1 allowed") < out.index("21.4x")
    assert sentence(one).startswith("Aim missed: 12.67 points lost on validation, 1 allowed. ")
    show(summary(budget=outcome(kept=True, loss=0.1)))
    assert "kept  0.10 points lost on validation, 1 allowed" in capsys.readouterr().out


def test_counts_are_told_with_thousands_wherever_they_stand(capsys: pytest.CaptureFixture[str]) -> None:
    """As in the sentence below it, which has 10,000."""
    show(summary(final={**summary()["final"], "metric": 0.88, "error": 0.12, "correct": 8800, "total": 10_000}))
    assert "(1,200 errors in 10,000) decoded file" in capsys.readouterr().out


def test_json_has_null_for_what_is_not_a_number() -> None:
    """No bare NaN or Infinity, which other readers than Python's refuse, at any depth; the rest is as it was."""
    value = {"a": math.nan, "b": [1.5, {"c": -math.inf}], "d": (1, None, True), "e": "NaN"}
    text = as_json(value)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": None, "b": [1.5, {"c": None}], "d": [1, None, True], "e": "NaN",
    }  # fmt: skip


def test_the_error_keeps_the_summary_between_processes() -> None:
    """Whoever catches it, here or in another process, has the finished run's summary."""
    import pickle

    error = pickle.loads(pickle.dumps(AimMissed("aim missed: x", {"file": "f"})))
    assert str(error) == "aim missed: x" and error.summary == {"file": "f"}


def test_a_missed_aim_is_exit_code_3_with_the_result_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    """A script gets the summary, as JSON that any reader takes, and tells by the exit code that it is not good."""
    for one, text in ((summary(budget=outcome(), p=math.nan), True), (summary(budget=outcome()), False)):
        with pytest.raises(typer.Exit) as stopped:
            _print(one, text)
        assert stopped.value.exit_code == 3
        out, err = capsys.readouterr()
        if text:
            assert json.loads(out, parse_constant=pytest.fail)["p"] is None
            assert err == "aim missed: 12.67 points lost on validation, 1 allowed\n"
        else:
            assert "AIM MISSED" in out
    _print(summary(budget=outcome(kept=True, loss=0.1)), True)
    assert json.loads(capsys.readouterr().out)["verdict"]["kept"]
