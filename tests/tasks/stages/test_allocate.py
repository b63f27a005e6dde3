"""Bits by the stage `allocate`, and stages that take them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from quiet_runs import SMALL, quiet_run

from deepcompression.errors import RecipeError, StructureError
from flows.recipe import schema
from flows.recipe.admission import Trust, judge
from tasks.execution.allocated import asks, with_bits, with_found
from tasks.execution.check import check
from tasks.execution.execute import execute
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Data, Model, Training
from tasks.report.allocation import picture
from tasks.report.methods import method_tables
from tasks.stages import baseline, settings_of, work_of
from tasks.stages.allocate import Settings

TWO = {"epochs": 2, "lr": 0.01, "batch_size": 16}
FAST = {"samples": 32, "vectors": 8}
NAMES = ("0.weight", "2.weight", "4.weight")
SORTED = """
def by_class():
    x, y = data()[0]
    pair = torch.cat([torch.zeros_like(x), x]), torch.cat([torch.zeros_like(y), y])
    return pair, pair, pair
"""
BOTH = {"weights": {"bits": "allocated"}, "activations": {"bits": "allocated"}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """A run on a small net, told to nobody."""
    folder = tmp_path_factory.mktemp("allocated")
    with (
        pytest.MonkeyPatch.context() as patch,
        quiet_run(folder, patch, "tsa_mine", SMALL + SORTED, Model(factory="tsa_mine:net")) as made,
    ):
        yield made


def made(run: Run, label: str, keys: dict[str, Any], *before: Reference) -> Reference:
    """The result of a stage with these keys, which takes bits of those before."""
    settings = with_found(run, settings_of(keys["stage"])(**keys), before)
    return execute(run, label, 1, settings, before[-1], work_of(keys["stage"]))[0]


def dense(run: Run) -> Reference:
    """The dense model of a run."""
    return execute(run, "baseline", 0, baseline.Settings(train=Training(**TWO)), None, baseline.work)[0]


def report(run: Run, reference: Reference) -> Mapping[str, Any]:
    entry = run.store.find(reference.key)
    assert entry is not None
    return {**entry["report"], "notes": entry["notes"]}


def bits_in(structure: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
    """Of grids."""
    return {name: int(words[0].removeprefix("grid(").split(",")[0].rstrip(")")) for name, words in structure.items()}


def test_later_stages_take_the_bits_that_were_found(run: Run, tmp_path: Path) -> None:
    """Weights and inputs of layers, after training and in it; told by tensor, in the report's tables and a picture."""
    first = dense(run)
    found = made(run, "allocate", {"stage": "allocate", "ratio": 1.8, **FAST}, first)
    told = report(run, found)
    bits = told["allocated"]
    assert found.object == first.object and set(bits) == set(NAMES) and len(set(bits.values())) > 1
    points = {one["allocation"]: one for one in told["methods"][0]["allocations"]}
    assert points["taken"]["cost"] <= told["limit"] == points["8 bits"]["cost"] / 1.8
    assert points["taken"]["tried"] < points["2 bits"]["tried"]
    rows, _ = method_tables([{"stage": "allocate", "methods": told["methods"]}])
    assert rows.columns == ["tensor", "weights", "bits", "bytes", "trace", "standard error", "predicted loss"]
    assert "by hawq, 8 vectors" in told["notes"][0] and [one["tensor"] for one in told["covered"] if one["done"]]
    picture(told, tmp_path / "allocation.svg")
    assert "the same bits everywhere" in (tmp_path / "allocation.svg").read_text()
    after = made(run, "quantize", {"stage": "quantize", **BOTH}, first, found)
    assert bits_in(after.structure) == bits
    inputs = {site: edit["bits"] for edit in after.edits for site in edit["sites"]}
    assert inputs == {f"{name[0]}:input[0]": width for name, width in bits.items()}
    trained = {"stage": "train", **TWO, "epochs": 1, "methods": [{"quantize": {"weights": {"bits": "allocated"}}}]}
    assert bits_in(made(run, "train", trained, first, found).structure) == bits


def test_a_split_that_is_sorted_is_judged_by_samples_from_all_of_it(run: Run) -> None:
    """By its first samples, of which all are zero, the first layer would not matter at all."""
    run = replace(run, data=Data(factory="tsa_mine:by_class"))
    told = report(
        run,
        made(
            run, "allocate", {"stage": "allocate", "like": 4, "samples": 16, "vectors": 2, "cost": "flops"}, dense(run)
        ),
    )
    assert told["methods"][0]["tensors"][0]["trace"] > 0


@pytest.mark.parametrize(
    "keys",
    [
        {"cost": "flops", "ratio": 1.5, "order": True},
        {"by": "measured", "like": 4},
        {"cost": "latency", "most": 2.5, "latency": {name: {2: 0.5, 4: 0.75, 8: 1.0} for name in NAMES}},
        {"ratio": 2, "bits": {"default": [2, 4, 8], "4": [8]}, "per": "tensor"},
    ],
    ids=["flops", "measured", "latency", "ratio of bytes"],
)
def test_each_cost_and_measure_keeps_to_its_limit(run: Run, keys: dict[str, Any]) -> None:
    """The ratio is against 8 bits; bits of one tensor may be fixed."""
    fast = {"samples": 32} if "by" in keys else FAST
    told = report(run, made(run, "allocate", {"stage": "allocate", **keys, **fast}, dense(run)))
    points = {one["allocation"]: one["cost"] for one in told["methods"][0]["allocations"]}
    assert points["taken"] <= told["limit"] < points["8 bits"]
    if "ratio" in keys:
        assert told["limit"] == pytest.approx(points["8 bits"] / keys["ratio"])
    if "bits" in keys:
        assert told["allocated"]["4.weight"] == 8
    if "order" in keys:
        rows = sorted(told["methods"][0]["tensors"], key=lambda row: row["trace"])
        assert [row["bits"] for row in rows] == sorted(row["bits"] for row in rows)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (
            {"cost": "flops", "ratio": 5},
            r"ratio: 5 is out of reach; the most that these tensors reach by their bits is 4",
        ),
        ({"bits": {"7": [2]}, "like": 4}, r"pattern '7' matches no tensor"),
        ({"per": {"group": 7}, "like": 4}, r"0.weight: groups of 7 do not divide the 6 elements"),
        (
            {"cost": "latency", "most": 1, "latency": {"0": {2: 1, 4: 1, 8: 1}}},
            r"latency: the table has no row of 2.weight",
        ),
        (
            {"cost": "latency", "most": 1, "latency": {name: {2: 0.5, 4: 0.75, 8: 1.0} for name in NAMES}},
            r"most: 1 ms are too few; the least that these tensors reach by their bits is 1.5 ms",
        ),
    ],
    ids=str,
)
def test_what_is_out_of_reach_is_told_before_anything_trains(run: Run, keys: dict[str, Any], words: str) -> None:
    """With what would be in reach, where that can be counted."""
    with pytest.raises(StructureError, match=f"^stage allocate: {words}"):
        check(run, [("allocate", Settings(stage="allocate", **keys))])


def test_bits_that_are_not_known_yet_are_checked_as_the_most(run: Run) -> None:
    """Before anything trains, later stages have the grids and inputs that they will have."""
    allocate, quantize = Settings(stage="allocate", like=4), settings_of("quantize")(stage="quantize", **BOTH)
    check(run, [("allocate", allocate), ("quantize", quantize)])
    with pytest.raises(StructureError, match=r"^stage quantize-2: 0.weight: is grid\(8, 0\) already"):
        other = settings_of("quantize")(stage="quantize", weights={"bits": 3})
        check(run, [("allocate", allocate), ("quantize", quantize), ("quantize-2", other)])


def test_bytes_out_of_reach_are_told_with_the_least(run: Run) -> None:
    """These are known when weights are."""
    with pytest.raises(
        StructureError, match=r"^stage allocate: most: 100 bytes are too few; the least .* is \d,\d\d\d bytes$"
    ):
        made(run, "allocate", {"stage": "allocate", "most": 100, **FAST}, dense(run))


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "exactly one of like, ratio and most, got none"),
        ({"like": 4, "ratio": 2}, "exactly one of like, ratio and most, got like and ratio"),
        ({"cost": "flops", "most": 9}, "most is of file_bytes and latency"),
        ({"cost": "latency", "like": 4}, "cost: latency goes with latency"),
        ({"like": 4, "by": "measured", "vectors": 5}, "vectors is of by: hawq"),
        ({"like": 4, "by": "measured", "order": True}, "ranks tensors by their traces"),
        ({"like": 4, "bits": [4, 4]}, "repeat"),
        ({"like": 4, "bits": [1, 4]}, "greater than or equal to 2"),
    ],
    ids=str,
)
def test_keys_that_do_not_go_together_are_refused(keys: dict[str, Any], words: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(ValidationError, match=words):
        Settings(stage="allocate", **keys)


def test_a_table_in_a_file_is_read_and_judged(tmp_path: Path) -> None:
    """What it says is part of the key; one that is none is told; a foreign recipe reads no file of yours."""
    path = tmp_path / "table.json"
    keys = {"stage": "allocate", "cost": "latency", "most": 9, "latency": {"path": str(path)}}
    settings = Settings(**keys)
    with pytest.raises(RecipeError, match=r"latency.path .*table.json: cannot be read: No such file"):
        settings.also()
    path.write_text(json.dumps({"0": {"2": "fast"}}))
    with pytest.raises(RecipeError, match=r"table.json: 0\.2: .*valid number.*; expected \{tensor: \{bits: milliseco"):
        settings.also()
    path.write_text(json.dumps({"0": {"2": 0.5}}))
    assert settings.also() == {"latency": {"0": {2: 0.5}}}
    factory = "deepcompression.models:lenet5", "deepcompression.data:mnist"
    recipe = {"name": "a", "model": {"factory": factory[0]}, "data": {"factory": factory[1]}, "stages": [keys]}
    with pytest.raises(RecipeError, match=r"is not below a folder that a recipe from a tracking server may read"):
        judge("r", schema.Recipe(**recipe), {}, Trust())


def test_allocated_bits_need_a_stage_that_finds_them() -> None:
    """In the recipe's order; and every place in which bits can be said is filled."""
    parts = {"name": "a", "model": {"factory": "a:b"}, "data": {"factory": "a:b"}}
    quantize, allocate = {"stage": "quantize", **BOTH}, {"stage": "allocate", "like": 4}
    with pytest.raises(ValidationError, match=r"stage 0 \(quantize\) has bits: allocated: a stage allocate must come"):
        schema.Recipe(**parts, stages=[quantize, allocate])
    recipe = schema.Recipe(**parts, stages=[allocate, quantize])
    filled = with_bits(recipe.stages[1], {"a.weight": 2})
    assert asks(recipe.stages[1]) and not asks(filled)
    assert filled.weights.bits == filled.activations.bits == {"a.weight": 2}
    methods = [{"quantize": {"weights": {"bits": "allocated", "range": "minmax"}}}, "distil"]
    train = settings_of("train")(stage="train", methods=methods)
    few, many = (with_bits(train, {"a.weight": bits}) for bits in (2, 8))
    assert [one.methods[1].distil.temperature for one in (few, many)] == [2.0, 4.0]  # the default follows bits
    assert few.methods[0].quantize.weights.range == "minmax"
