"""The page of a run with several seeds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from flows.summary import spread_of
from tasks.report.seeds import outcomes_of_seeds, stages_of, strip, write_seeds

KEPT = {"kept": True, "text": "0.1 points lost", "test": None}


def _seed(seed: int, folder: Path, wrong: int, p_value: float = 0.5, **more: Any) -> dict[str, Any]:
    """A seed's summary, as far as the page looks at it; its page lies in its folder."""
    own = folder / f"net-{seed}"
    own.mkdir(exist_ok=True)
    (own / "report.html").touch()

    def end(errors: int) -> dict[str, Any]:
        rates = {"metric": 1 - errors / 360, "accuracy": 1 - errors / 360, "error": errors / 360}
        return {**rates, "correct": 360 - errors, "total": 360, "split": "test", "higher_is_better": True}

    told = {"broken": wrong, "mended": 0, "total": 360, "low": 0.0, "high": 0.1, "difference": 0.01, "p_value": p_value}
    return {
        **{"seed": seed, "file_bytes": 8000 + 100 * seed, "dense_bytes": 200_000, "ratio": 25.0 - seed},
        **{"metric": "accuracy", "baseline": end(2), "final": end(2 + wrong), "comparison": told, "verdict": None},
        **{"folder": str(own), "started": 1.0e9, "seconds": 30.0},
        "stages": [{"stage": "prune", "size_bytes": 9000 + 200 * seed, "val_metric": 0.98}],
        **more,
    }


def _together(folder: Path, *runs: dict[str, Any], **more: Any) -> dict[str, Any]:
    same = {"name": "net", "dense_bytes": 200_000, "folder": str(folder / "net-all"), "verdict": None}
    return {**same, "seeds": [one["seed"] for one in runs], "runs": list(runs), **spread_of(runs), **more}


def test_the_page_has_every_seed_with_its_page_and_mean_worst_and_deviation(tmp_path: Path) -> None:
    """The verdict first; links are relative, so that the folders can be moved together; nothing is loaded."""
    (tmp_path / "net-all").mkdir()
    summary = _together(tmp_path, *(_seed(seed, tmp_path, wrong=seed) for seed in (0, 1, 2)))
    write_seeds(summary, tmp_path / "net-all" / "report.html")
    text = (tmp_path / "net-all" / "report.html").read_text()
    assert re.findall(r'href="(\.\./[^"]+)"', text) == [f"../net-{seed}/report.html" for seed in (0, 1, 2)]
    assert text.index("✓ Done") < text.index("24.0× <small>smaller on average") < text.index("Each seed")
    for cell in ("8,100", "8,200", "100", "23.0×", "1.00×", "0.83 %", "1.11 %", "0.28 %", "4 of 360"):
        assert f">{cell}<" in text or f"({cell})" in text, cell
    assert "9,200" in text and "http:" not in text and "https:" not in text and len(text) < 40_000


def test_one_seed_that_lost_more_than_chance_is_told_first(tmp_path: Path) -> None:
    """By its number; aims and promotions, where there are any, are the judges instead."""
    runs = [_seed(0, tmp_path, 1), _seed(1, tmp_path, 9, p_value=0.004)]
    (found,) = outcomes_of_seeds(_together(tmp_path, *runs))
    assert found.kind == "doubtful" and "seed 1." in found.text
    kept = [{**one, "verdict": KEPT} for one in runs]
    (found,) = outcomes_of_seeds(_together(tmp_path, *kept, verdict={**KEPT, "text": "all 2 seeds kept it"}))
    assert (found.kind, found.word, found.text) == ("good", "Kept", "all 2 seeds kept it")
    doubt = [kept[0], {**kept[1], "verdict": {**KEPT, "test": "on test more is lost"}}]
    assert outcomes_of_seeds(_together(tmp_path, *doubt, verdict=KEPT))[0].kind == "doubtful"
    promotion = {"model": "m", "promoted": True, "version": 3, "champion": None, "gates": []}
    found = outcomes_of_seeds(_together(tmp_path, runs[0], {**runs[1], "promotion": promotion}))[0]
    assert found.word == "Seed 1: promoted"


@pytest.mark.parametrize(
    ("values", "dots"),
    [
        ([(0, 10.0), (1, 20.0), (2, 20.0)], ["0", "1, 2"]),
        ([(0, 5.0), (1, 5.0)], ["0, 1"]),
        ([(0, 5.0), (1, float("nan"))], None),
    ],
)
def test_dots_lie_within_the_picture(values: list[tuple[int, float]], dots: list[str] | None) -> None:
    """Seeds of one number share a dot; what is no number has no picture."""
    found = list(strip("bytes", values, "{:.0f}"))
    if dots is None:
        assert found == []
        return
    (one,) = found
    assert [dot["seeds"] for dot in one["dots"]] == dots
    places = [*(dot["x"] for dot in one["dots"]), *one["band"], one["mean"]]
    assert all(0 < place < one["wide"] for place in places) and one["band"][0] <= one["mean"] <= one["band"][1]


def test_seeds_with_unlike_stages_have_no_table_of_stages(tmp_path: Path) -> None:
    """As budgets find them."""
    other = {"stages": [{"stage": "share", "size_bytes": 1, "val_metric": 0.5}]}
    assert stages_of([_seed(0, tmp_path, 1), _seed(1, tmp_path, 1, **other)]) == []
    assert stages_of([_seed(0, tmp_path, 1), _seed(2, tmp_path, 1)])[0]["bytes"]["mean"] == 9200
