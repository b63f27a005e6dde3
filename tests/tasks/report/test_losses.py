"""The table of which layers lose it, as report and compare read it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from deepcompression.errors import RecipeError
from flows.compare.layers import layers_of, render
from tasks.report.losses import FILE, by_op, rows_in

COLUMNS = ["stage", "op", "kind", "sqnr_alone", "cosine_alone", "sqnr", "cosine", "clipped", "why"]
ROWS = [
    ["prune", "fc1", "Linear", 20.0, 0.99, 20.0, 0.99, None, ""],
    ["prune", "fc2", "Linear", None, 1.0, 15.0, 0.98, None, ""],
    ["quantize", "fc1", "Linear", 12.5, 0.97, 12.5, 0.97, 0.25, ""],
    ["quantize", "fc2", "Linear", None, None, None, None, None, "is gone from the compressed net"],
]


def left(folder: Path, rows: Any = ROWS) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(json.dumps({"columns": COLUMNS, "data": rows}))
    return folder


def test_what_is_missing_without_a_reason_is_equal(tmp_path: Path) -> None:
    """JSON has no infinity; a dash where a layer loses nothing would read as not measured."""
    rows = rows_in(left(tmp_path))
    assert [row["sqnr_alone"] for row in rows] == [20.0, math.inf, 12.5, None]
    assert rows_in(tmp_path / "none") == []


def test_an_op_has_the_last_stage_s_figures_and_every_stage_s_ratio(tmp_path: Path) -> None:
    """The table has a row an op; a stage that is not the last must not be read as the result."""
    first, last = by_op(rows_in(left(tmp_path)))
    assert (first["op"], first["stage"], first["clipped"]) == ("fc1", "quantize", 0.25)
    assert first["stages"] == {"prune": 20.0, "quantize": 12.5}
    assert last["why"] and last["stages"] == {"prune": 15.0, "quantize": None}


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_compare_shows_each_run_s_layers(tmp_path: Path, form: str) -> None:
    """Every op and its figures are there in each format, of one run and of two side by side."""
    one, two = left(tmp_path / "one"), left(tmp_path / "two", [[*ROWS[0][:3], 7.25, *ROWS[0][4:]]])
    for folders in ([one], [one, two]):
        text = render(layers_of(folders)[0], form)
        assert "fc1" in text and "12.5" in text
        assert ("7.2" in text) == (len(folders) == 2)
    if form == "json":
        assert json.loads(text)["one"][0]["stages"] == {"prune": 20.0, "quantize": 12.5}


@pytest.mark.parametrize("text", ["{", "[]", '{"columns": [], "data": [[1]]}', '{"columns": ["op"], "data": [["a"]]}'])
def test_a_damaged_or_missing_table_is_one_line(tmp_path: Path, text: str) -> None:
    """Files of a run may be cut by a full disk; and runs of older releases have none."""
    with pytest.raises(RecipeError, match=r"has no differences\.json"):
        layers_of([tmp_path])
    (tmp_path / FILE).write_text(text)
    with pytest.raises(RecipeError, match="cannot be read"):
        layers_of([tmp_path])


def test_runs_without_a_table_are_named_beside_those_that_have_one(tmp_path: Path) -> None:
    """One run of an older release, or a damaged one, does not take the others' tables away."""
    one, none, broken = left(tmp_path / "one"), tmp_path / "none", left(tmp_path / "broken")
    (broken / FILE).write_text("{")
    found, told = layers_of([none, one, broken])
    assert [*found] == ["one"] and len(told) == 2
    assert told[0].startswith(f"run {none}: has no {FILE}") and told[1].startswith(f"run {broken}: {FILE} cannot")
    with pytest.raises(RecipeError, match=f"run .*none: has no {FILE}.*; run .*broken: {FILE} cannot be read"):
        layers_of([none, broken])


def test_a_run_of_several_seeds_stands_for_its_seeds_and_equal_names_for_their_folders(tmp_path: Path) -> None:
    """It has no table of its own; and of two runs of one name none hides the other."""
    seeds = [left(tmp_path / name) for name in ("a", "b")]
    (tmp_path / "both").mkdir()
    runs = [{"folder": f"/elsewhere/{one.name}"} for one in seeds]
    (tmp_path / "both" / "summary.json").write_text(json.dumps({"runs": runs}))
    assert [*layers_of([tmp_path / "both", seeds[0]])[0]] == ["a", "b"]
    (tmp_path / "other").mkdir()
    again = left(tmp_path / "other" / "a")
    assert [*layers_of([seeds[0], again])[0]] == [str(seeds[0]), str(again)]
