"""What is told of a run before it: all that is wrong, and what would come out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcompression.errors import BudgetError, FactoryError, InputError, StructureError, ValuesError
from flows import checked, plan, planned, rehearsed
from flows.recipe import load as recipes
from flows.recipe.stored import as_stored
from tasks.execution import rehearsal
from tasks.stages import prune

Tiny = Callable[..., dict[str, Any]]


def _written(folder: Path, recipe: dict[str, Any]) -> str:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return str(folder / "recipe.yaml")


def test_every_wrong_key_is_told_at_once(tiny: Tiny) -> None:
    """Not the first and how many more: each has its own line, and those of one union have one together."""
    stages = [{"stage": "prune", "density": 2}, {"stage": "pruen"}, {"stage": "share", "bits": "x", "per": {"goup": 4}}]
    recipe = tiny(stages=stages, sed=1, train={"epochs": 0, "schedule": {"factory": 3}})
    with pytest.raises(InputError) as caught:
        recipes.load(recipe)
    told = [str(one) for one in (caught.value, *caught.value.others)]
    places = ("stages.0.density", "stages.1", "stages.2.bits", "stages.2.per", "sed: unknown", "train.epochs")
    for place in (*places, "train.schedule.factory"):
        assert len([one for one in told if place in one]) == 1, (place, told)
    assert len(told) == 7, told
    with pytest.raises(InputError) as caught:
        recipes.load(tiny(sed=1, seed=1, seeds=[1, 2]))
    assert "seed and seeds are both given" in str(caught.value.others[0]) and len(caught.value.others) == 1


def test_wrong_names_are_told_with_wrong_keys(tiny: Tiny, tmp_path: Path) -> None:
    """What does not fit the model is found in every stage, and beside a key that is wrong."""
    stages = [
        {"stage": "prune", "density": {"conv9": 0.5}},
        {"stage": "finetune", "epochs": 1, "optimizer": {"factory": "torch.optim:Adm"}},
        {"stage": "share", "bits": {"fc9": 4}},
    ]
    source = _written(tmp_path, tiny(stages=stages, seeed=1))
    problems = plan.plan(source, {"model.weights": {"path": str(tmp_path / "no.pt")}})["problems"]
    for part in ("seeed: unknown", "stage prune: ", "Adm", "stage share: ", "no.pt: no such file"):
        assert len([one for one in problems if part in one]) == 1, (part, problems)


def test_weights_of_another_model_are_told_before_anything_runs(tiny: Tiny, tmp_path: Path) -> None:
    """A checkpoint that is there is read, too: one that does not fit would stop the run."""
    import torch
    from safetensors.torch import save_file

    save_file({"other.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    recipe = tiny()
    recipe["model"]["weights"] = {"path": str(tmp_path / "other.safetensors")}
    with pytest.raises(InputError, match=r"other\.safetensors"):
        checked.refuse_recipe(recipe, {})


@pytest.fixture
def foreseen(tiny: Tiny, tmp_path: Path) -> dict[str, Any]:
    return plan.plan(_written(tmp_path, tiny()), {})


def test_a_plan_foresees_stages_tensors_and_bytes(foreseen: dict[str, Any], tmp_path: Path) -> None:
    """Nothing is trained or stored but the prediction, whose error later plans tell from the run's folder."""
    assert foreseen["problems"] == [] and not foreseen["not_rehearsed"]
    labels = ["baseline", "prune", "finetune", "share", "quantize", "encode"]
    assert [row["stage"] for row in foreseen["stages"]] == labels
    assert [row["epochs"] for row in foreseen["stages"]] == [6, 0, 2, 0, 1, 0]
    assert all(row["seconds"] > 0 and not row["reused"] for row in foreseen["stages"])
    size = foreseen["predicted"]["bytes"]
    assert 8_000 < size < 20_000 and foreseen["predicted"]["seconds"] > 1 and foreseen["peak_memory_bytes"] > 1e8
    rows = {row["tensor"]: row for row in foreseen["tensors"]}
    assert {"prune", "share"} <= set(rows["conv1.weight"]["stages"]) and rows["conv1.weight"]["density"] < 0.4
    assert any("only when named" in reason for row in rows.values() for reason in row["left_alone"].values())
    assert not (tmp_path / "store" / "keys").exists() and not (tmp_path / "runs").exists()
    run = tmp_path / "runs" / "tiny-20261126-000000-aaaa"
    run.mkdir(parents=True)
    parsed = recipes.load(str(tmp_path / "recipe.yaml"))
    (run / "recipe.yaml").write_text(yaml.safe_dump(as_stored(parsed, str(tmp_path / "recipe.yaml")), sort_keys=False))
    (run / "summary.json").write_text(json.dumps({"file_bytes": 2 * size, "stages": []}))
    (earlier,) = plan.earlier_of(plan.store_of(parsed), parsed)
    assert (earlier["run"], earlier["error"]) == (run.name, -0.5)


def test_a_plan_says_what_the_store_has(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    """Of a run that was made everything is reused, and the bytes are those of its file."""
    found = plan.plan(_written(tmp_path, tiny_run["recipe"]), {})
    assert all(row["reused"] for row in found["stages"]) and found["predicted"]["exact"]
    assert found["predicted"]["bytes"] == tiny_run["summary"]["file_bytes"]
    other = plan.plan(str(tmp_path / "recipe.yaml"), {"stages.share.bits": 3})
    assert [row["reused"] for row in other["stages"]] == [True, True, True, False, False, False]
    assert other["predicted"]["bytes"] < found["predicted"]["bytes"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"metric": {"factory": "deepcompression.models:digits_net"}}, "has no 'name'"),
        ({"step": {"factory": "no_such_module:step"}}, "no_such_module does not import"),
        ({"model": {"factory": "torchvison.models:resnet18"}}, "torchvison"),
        ({"promote": {"model": "m", "inputs": ["x"]}}, "promote.inputs"),
        ({"stages": [{"stage": "prune", "density": {"conv9": 0.5}}]}, "nearest are conv2"),
    ],
)
def test_what_is_wrong_stops_a_run_before_it_has_a_folder(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any], part: str
) -> None:
    """The verb looks at all that the run would look at before it trains: no folder, no store, no failed run."""
    with pytest.raises(InputError, match=part):
        checked.refuse_recipe(tiny(**changes), {})
    assert not (tmp_path / "runs").exists() and not (tmp_path / "store").exists()


def stage_of_mine(model: Any, problem: Any, *, seed: int) -> list[str]:
    """Half of the last layer's weights go."""
    model.fc2.weight.data[:, ::2] = 0.0
    return ["fc2.weight"]


def test_what_learns_from_a_teacher_and_a_stage_of_yours_are_rehearsed(tiny: Tiny, tmp_path: Path) -> None:
    """The teacher is rehearsed first; a training that learns from it has one; your stage is called."""
    teacher = {"factory": "deepcompression.models:digits_net", "train": {"epochs": 2}}
    distil = {"temperature": 2, "weight": 0.5}
    stages = [{"stage": "test_plan:stage_of_mine"}, {"stage": "finetune", "epochs": 2, "distil": distil}]
    recipe = tiny(teacher=teacher, stages=stages, python_path=[str(Path(__file__).parent)])
    found = plan.plan(_written(tmp_path, recipe), {})
    assert found["problems"] == [] and found["not_rehearsed"] == ""
    labels = ["teacher", "baseline", "test_plan.stage_of_mine", "finetune", "encode"]
    assert [row["stage"] for row in found["stages"]] == labels and found["predicted"]["bytes"] > 100_000


def test_a_run_is_called_by_its_recipe_in_prefect_too(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by the name of the file; what is given on the command line counts."""
    from types import SimpleNamespace

    from flows import compress

    source = _written(tmp_path, tiny())
    for recipe, overrides, name in (
        (source, None, "tiny"),
        (source, {"name": "mine"}, "mine"),
        ("/no/x.yaml", {}, "x"),
    ):
        asked = SimpleNamespace(parameters={"recipe": recipe, "overrides": overrides})
        monkeypatch.setattr(compress, "flow_run", asked)
        assert compress._flow_run_name().startswith(f"{name}-20")


def test_what_a_rehearsal_finds_stops_plan_and_run_alike(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the stage's name, before there is a folder; what other weights may allow stops neither, nor a metric that
    few samples do not suffice for."""
    raised: list[Exception] = [StructureError("conv1: no")]
    recipe = _written(tmp_path, tiny(stages=[{"stage": "prune", "density": 0.5}]))

    def work(bench: Any, settings: Any) -> Any:
        raise raised[0]

    monkeypatch.setattr(prune, "work", work)
    with pytest.raises(StructureError, match=r"^stage prune: conv1: no \(found by a rehearsal.*--no-rehearsal"):
        rehearsed.refuse_rehearsed(recipe, {})
    found = plan.plan(recipe, {})
    assert found["problems"] == ["stage prune: conv1: no"] and not found["not_rehearsed"] and found["stages"]
    for error in (ValuesError("conv1: all zero"), FactoryError("metric: few")):
        raised[0] = error
        rehearsed.refuse_rehearsed(recipe, {})
        found = plan.plan(recipe, {})
        assert not found["problems"] and found["not_rehearsed"] == f"stage prune: {error}"
    assert not (tmp_path / "runs").exists() and not (tmp_path / "store" / "keys").exists()


def test_a_stage_of_ones_own_is_rehearsed_by_plan_alone(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How long it takes nobody knows; what it raises, plan tells with its place."""
    code = "def mine(model, problem, *, seed):\n    raise KeyError('x')\n"
    (tmp_path / "own_stage.py").write_text(code)
    monkeypatch.setattr(sys, "path", [*sys.path])
    recipe = _written(tmp_path, tiny(stages=[{"stage": "own_stage:mine"}], python_path=[str(tmp_path)]))
    rehearsed.refuse_rehearsed(recipe, {})
    (told,) = plan.plan(recipe, {})["problems"]
    assert told.startswith("stage own_stage.mine: KeyError: 'x'") and "own_stage.py, line 2" in told


def test_a_rehearsal_before_a_run_ends_in_time(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No stage begins after the limit, nor a training whose steps would go beyond it; a large model has none at all."""
    from dataclasses import fields

    parsed = recipes.load(tiny())
    run = checked.first_run(parsed)
    stages = rehearsed.stages_of(run, parsed)
    assert list(rehearsal.rehearse(run, stages, None, tmp_path, 0.0)) == []
    slow = rehearsal.Rehearsing(
        rehearsal.Few(**{one.name: getattr(run, one.name) for one in fields(run)}), "baseline", None, tmp_path,
        whole=run, a_look=1000.0, until=time.perf_counter() + 60,
    )  # fmt: skip
    with pytest.raises(rehearsal.TooLong):
        slow.problem(parsed.train)
    monkeypatch.setattr(rehearsed, "LARGEST", 1000)
    monkeypatch.setattr(rehearsed, "rehearse", lambda *arguments: pytest.fail("it began"))
    rehearsed.refuse_rehearsed(tiny(), {})


def test_what_the_store_has_is_not_rehearsed(tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is reused begins as soon as before."""
    monkeypatch.setattr(rehearsed, "rehearse", lambda *arguments: pytest.fail("it began"))
    rehearsed.refuse_rehearsed(tiny_run["recipe"], {})


@pytest.mark.parametrize(
    ("budget", "first", "told"),
    [
        ({"metric_loss": 1.0}, [8833, 100620], ["1 points lost at most", "20 epochs, then shared in 10", "8,833 to"]),
        (
            {"file_bytes": 20_000, "time_limit": 5},
            [20_000, 20_000],
            ["20,000 bytes at most, 10.6x", "4 to 60 epochs", "about 5 min at most", "until one has no more"],
        ),
    ],
)
def test_a_plan_of_a_budget_says_limits_and_searches(
    tiny: Tiny, tmp_path: Path, budget: dict[str, Any], first: list[int], told: list[str],
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What is asked for, what is tried on which tensors, from which sizes on; no bytes of the file are made up."""
    monkeypatch.setenv("COLUMNS", "200")
    recipe = tiny(budget=budget)
    del recipe["stages"]
    found = plan.plan(_written(tmp_path, recipe), {})
    assert not found["problems"] and found["predicted"]["bytes"] is None and found["budget"]["tensors"] == 4
    assert found["budget"]["first_bytes"] == first and found["budget"]["unit"] == "points"
    planned.show(found)
    printed = capsys.readouterr().out
    assert [one for one in ["sensitivity of 4 tensors", *told] if one not in printed] == []


@pytest.mark.parametrize(
    ("budget", "part"),
    [
        ({"metric_loss": 0.1}, r"0.22 of 216 validation samples.*smallest usable is 0.47"),
        ({"file_bytes": 300_000}, "the dense model has 212,008 bytes already"),
    ],
)
def test_a_budget_that_nothing_can_keep_stops_a_run_before_it_trains(
    tiny: Tiny, budget: dict[str, Any], part: str
) -> None:
    """The dense model need not be trained to know it."""
    recipe = tiny(budget=budget)
    del recipe["stages"]
    with pytest.raises(BudgetError, match=part):
        checked.refuse_recipe(recipe, {})
