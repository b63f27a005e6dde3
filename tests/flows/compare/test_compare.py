"""Comparisons of runs, from summaries and recipes made by hand."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from made_runs import RECIPE, csv_rows, end_of, entry_of, five_runs, recipe_of, run_of, scored

from deepcompression.errors import InputError
from flows.compare.compare import Comparison, Entry, compare, last, read, render

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def seeds() -> Comparison:
    """Three seeds of one recipe and two of another."""
    return five_runs()


def test_one_change_is_one_sentence() -> None:
    """What was changed, the change in size, and the change in error read as one sentence of a paper."""
    found = compare([entry_of("digits-ab12"), entry_of("b", run_of("b", 7904, 4), stages__2__bits=4)])
    assert found.changed == ("stages.share.bits",)
    assert found.sentences == (
        "digits-ab12: 212,008 → 8,601 bytes, 24.6x smaller, test error 0.56 % → 0.83 %.",
        "Compared with digits-ab12, stages.share.bits 4 instead of 5 makes the file 8.1 % smaller "
        "(8,601 → 7,904 bytes) at +0.28 points of test error (0.83 % → 1.11 %).",
    )


def test_bookkeeping_is_no_difference() -> None:
    """Where a run was kept, its name and older recipes without keys that are null do not count as changes."""
    moved = recipe_of(name="other", store="s", runs="r", tracking={"uri": "x"}, python_path=["/home"])
    del moved["train"]["patience"], moved["metric"]
    found = compare([entry_of("a"), Entry("b", run_of("b"), moved)])
    assert found.changed == () and len(found.groups) == 2
    assert "the same recipe in b leaves the file at 8,601 bytes at the same test error (0.83 %)" in found.sentences[1]


@pytest.mark.parametrize(
    ("changes", "key", "values"),
    [
        ({"stages__0__density": 0.1}, "stages.prune.density", [{"conv1": 0.5, "default": 0.15}, 0.1]),
        ({"stages__0__density": {"default": 0.15}}, "stages.prune.density.conv1", [0.5, None]),
        ({"stages__0__gradual": {"epochs": 3}}, "stages.prune.gradual", [None, {"epochs": 3}]),
        ({"data__augment": {"factory": "m:f"}}, "data.augment", [None, {"factory": "m:f"}]),
        ({"train__epochs": 1}, "train.epochs", [60, 1]),
    ],
)
def test_changes_have_the_names_of_overrides(changes: dict[str, Any], key: str, values: list[Any]) -> None:
    """A changed key is addressed as on the command line, and is one key even where a number became a mapping."""
    found = compare([entry_of("a"), entry_of("b", **changes)])
    assert found.changed == (key,) and [group.settings[key] for group in found.groups] == values


def test_other_stages_are_told_by_name() -> None:
    """A stage more or less, or another order, is said as such, not setting by setting; equal stages are numbered."""
    less = [stage for stage in RECIPE["stages"] if stage["stage"] != "finetune"]
    more = [*RECIPE["stages"][:2], {"stage": "prune", "density": 0.1}, *RECIPE["stages"][2:]]
    turned = [RECIPE["stages"][i] for i in (0, 2, 1, 3)]
    found = compare([entry_of("a"), *(entry_of(f"b{i}", stages=one) for i, one in enumerate((less, more, turned)))])
    assert found.changed == ("stages",)
    assert [text.partition(", ")[2].partition(" (b")[0] for text in found.sentences[1:]] == [
        "no finetune",
        "prune-2 added",
        "the order prune, share, finetune, encode instead of prune, finetune, share, encode",
    ]
    assert "–" not in render(found, "csv")


def test_many_changes_are_counted() -> None:
    """A sentence names three changes and counts the rest; the table has all."""
    changes = {"train__epochs": 1, "train__lr": 0.1, "stages__1__epochs": 2, "stages__2__bits": 4, "threads": 2}
    found = compare([entry_of("a"), entry_of("b", **changes)])
    assert len(found.changed) == 5 and "and 2 more changes of the recipe leave the file" in found.sentences[1]


def test_runs_that_differ_in_the_seed_alone_are_one_group(seeds: Comparison) -> None:
    """Mean, sample standard deviation (numpy is the oracle) and the worst seed, in every form."""
    sizes, errors = np.array([8600, 8640, 8680]), np.array([2, 3, 4]) / 360
    row = csv_rows(seeds)[0]
    assert [group.n for group in seeds.groups] == [3, 2] and row["seeds"] == "0 1 2" and row["n"] == "3"
    assert float(row["file_bytes"]) == sizes.mean() and float(row["file_bytes_worst"]) == 8680
    assert float(row["file_bytes_sd"]) == pytest.approx(np.std(sizes, ddof=1))
    assert float(row["file_score"]) == pytest.approx(errors.mean())
    assert float(row["file_score_sd"]) == pytest.approx(np.std(errors, ddof=1))
    assert float(row["ratio_worst"]) == pytest.approx(212008 / 8680)
    assert "(n = 3 seeds): 212,008 → 8,640 ± 40 bytes" in seeds.sentences[0]
    assert "0.83 ± 0.28 % → 1.81 ± 0.20 %, n = 3 and 2" in seeds.sentences[1]
    assert any("same seeds" in note for note in seeds.notes) and "n = 3 seeds (0, 1, 2)" in render(seeds, "table")


def test_a_run_of_several_seeds_equals_its_runs(seeds: Comparison) -> None:
    """The summary of `seeds=[0,1,2]` says what its three runs say; one of them given too is counted once."""
    runs = [run_of(f"a{seed}", 8600 + 40 * seed, 2 + seed, seed) for seed in range(3)]
    parent = Entry(
        "parent", {"name": "digits", "seeds": [0, 1, 2], "runs": runs}, recipe_of(seeds=[0, 1, 2], seed=None)
    )
    found = compare([entry_of("a1", runs[1]), parent, parent])
    assert len(found.groups) == 1 and found.groups[0].results == seeds.groups[0].results
    assert sum("counted once" in note for note in found.notes) == 2


def test_a_repeated_seed_is_no_sample() -> None:
    """The same recipe and seed run again stands beside the first run: it says nothing about spread."""
    found = compare([entry_of("a"), entry_of("again", run_of("again", 8700)), entry_of("c", run_of("c", seed=1))])
    assert [group.names for group in found.groups] == [("a", "c"), ("again",)]


def test_groups_can_be_taken_apart() -> None:
    """Without grouping each run is a row, and a sentence names the seed."""
    found = compare([entry_of("a"), entry_of("b", run_of("b", seed=1))], group=False)
    assert len(found.groups) == 2 and "the same recipe with seed 1 instead of 0 in b" in found.sentences[1]


def test_difference_below_the_spread_is_said() -> None:
    """A reader is told when the seeds differ more than the recipes."""
    entries = [entry_of(f"a{s}", run_of(f"a{s}", seed=s, wrong=2 + 4 * s)) for s in range(2)]
    entries += [entry_of(f"b{s}", run_of(f"b{s}", seed=s, wrong=3 + 4 * s), stages__2__bits=4) for s in range(2)]
    assert compare(entries).sentences[1].endswith("less than the spread over seeds.")


def test_p_of_single_runs_is_shown_and_no_mean_of_it() -> None:
    """Each run's own paired test has a column; over seeds, and in summaries of older releases, there is none."""
    runs = [run_of(f"a{seed}", seed=seed, comparison={"p_value": p}) for seed, p in enumerate((0.2123, 1e-9, 0.5))]
    single = compare([entry_of(run["folder"], run) for run in runs[:2]], group=False)
    assert [row["p_value"] for row in csv_rows(single)] == ["0.2123", "1e-09"]
    table = render(single, "table")
    assert "test error, change, p" in table and "0.21" in table and "< 0.0001" in table and "McNemar" in table
    for entries in (
        [entry_of(run["folder"], run) for run in runs],
        [entry_of("old"), entry_of("older", run_of("older"))],
    ):
        found = compare(entries)
        assert csv_rows(found)[0]["p_value"] == "" and "change, p" not in render(found, "table")


@pytest.mark.parametrize(
    ("summary", "changes", "reason", "sizes"),
    [
        (
            {},
            {"data__factory": "mine:splits"},
            "data.factory mine:splits instead of deepcompression.data:digits",
            False,
        ),
        ({"final": end_of(3, 10_000)}, {}, "10,000 samples instead of 360", False),
        ({"final": end_of(3, 216, "validation")}, {}, "split validation instead of test", True),
        (scored(31, 30, True), {}, "metric psnr instead of error", True),
        ({}, {"metric": {"factory": "m:Metric"}}, "metric {factory: m:Metric} instead of none", True),
    ],
)
def test_incomparable_runs_are_said_to_be(
    summary: dict[str, Any], changes: dict[str, Any], reason: str, sizes: bool
) -> None:
    """Other data: no difference at all; another metric or split: sizes only. The table marks no best score."""
    found = compare([entry_of("a"), entry_of("b", run_of("b", 7904, **summary), **changes)])
    assert reason in found.sentences[1] and "not comparable" in found.sentences[1] and "at +" not in found.sentences[1]
    assert ("8.1 % smaller" in found.sentences[1]) == sizes
    assert reason in csv_rows(found)[1]["incomparable"] and csv_rows(found)[0]["incomparable"] == ""
    marked = re.findall(r"^(.*?) &.*textbf", render(found, "latex"), re.MULTILINE)
    assert marked == (["file bytes", "ratio"] if sizes else [])


def test_training_data_may_differ() -> None:
    """Augmentation and the size of the validation split change a result, not what it is a result of."""
    found = compare([entry_of("a"), entry_of("b", data__augment={"factory": "m:f"}, data__validation=0.2)])
    assert not found.groups[1].incomparable


def test_reused_stages_are_named() -> None:
    """A run's seconds are only understood beside the stages that it did not compute."""
    stages = [{"stage": "baseline", "cached": True, "seconds": 0.1}, {"stage": "encode", "cached": False, "seconds": 2}]
    found = compare([entry_of("a"), entry_of("b", run_of("b", seed=1, stages=stages))])
    assert found.groups[0].reused == {"baseline": 1} and "baseline (1 of 2)" in render(found, "table")
    assert any("reused" in note for note in found.notes)


Keep = Callable[..., Path]


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Writes a run's folder."""

    def folder(name: str, summary: Any = None, recipe: Any = RECIPE) -> Path:
        path = tmp_path / name
        path.mkdir()
        if summary is not None:
            (path / "summary.json").write_text(summary if isinstance(summary, str) else json.dumps(summary))
        if recipe is not None:
            (path / "recipe.yaml").write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
        return path

    return folder


def test_read_gives_what_a_run_left(keep: Keep) -> None:
    """Name, summary and recipe come back as they were written, NaN too."""
    entry = read(keep("digits-20261121-083034-e980", run_of("x", wrong=math.nan)))
    assert entry.name == "digits-20261121-083034-e980" and entry.recipe == RECIPE
    assert math.isnan(entry.summary["final"]["error"])


@pytest.mark.parametrize(
    ("summary", "recipe", "part"),
    [
        (None, RECIPE, "unfinished or failed"),
        ("{", RECIPE, "summary.json cannot be read"),
        ("[]", RECIPE, "summary.json is damaged"),
        ({}, None, "recipe.yaml cannot be read"),
        ({}, "a: [", "recipe.yaml cannot be read"),
        ({}, "text", "recipe.yaml is damaged"),
    ],
)
def test_read_says_what_is_wrong_in_one_line(keep: Keep, summary: Any, recipe: Any, part: str) -> None:
    """An unfinished run or a damaged file is the user's error, with the folder's name and the reason."""
    folder = keep("digits-1", summary, recipe)
    with pytest.raises(InputError, match=part) as caught:
        read(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no such folder"):
        read(folder / "no")
    with pytest.raises(InputError, match="no finished run"):
        compare([])


def test_last_lists_finished_runs_oldest_first(keep: Keep, tmp_path: Path) -> None:
    """The newest by the time in the name, not by when a copy was made; unfinished and damaged ones are left out."""
    names = ("digits-20270101-000000-aa", "digits-20250101-000000-bb", "digits-20260101-000000-cc")
    new, old, middle = (keep(name, run_of(name)) for name in names)
    keep("digits-20280101-000000-dd")
    keep("digits-20280101-000000-ee", "{")
    other = keep("other-20290101-000000-ff", run_of("x") | {"name": "other"})
    os.utime(old / "summary.json", (2e9, 2e9))
    assert last(tmp_path, 9) == [old, middle, new, other] and last(tmp_path, 2) == [new, other]
    assert last(tmp_path, 2, "digits") == [middle, new] and last(tmp_path, 0) == last(tmp_path / "no", 3) == []


def test_last_lists_several_seeds_once(keep: Keep, tmp_path: Path) -> None:
    """The runs of a run's seeds are not listed beside it, wherever the folder lay when they ran."""
    children = [keep(f"digits-20260101-00000{seed}-ab{seed}", run_of("x", seed=seed)) for seed in range(2)]
    runs = [run_of("x", seed=seed, folder=f"/elsewhere/{child.name}") for seed, child in enumerate(children)]
    parent = keep("digits-20260101-000000-0000", {"name": "digits", "runs": runs})
    assert last(tmp_path, 9) == [parent]


def test_nothing_heavy_is_imported() -> None:
    """Comparing needs neither Prefect nor MLflow nor torch; the page's template engine waits until it is asked for."""
    code = "import sys, flows.compare; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {module.partition(".")[0] for module in done.stdout.split()}
    assert not loaded & {"torch", "prefect", "mlflow", "jinja2", "numpy", "pydantic", "rich"}
