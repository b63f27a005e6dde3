"""Budget mode, whole: from a recipe without stages to a file that keeps to what was asked for."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from mlflow import MlflowClient

from deepcompression.allocation import budget as library
from deepcompression.allocation.budget import Clock
from deepcompression.errors import BudgetError, DivergedError, RecipeError
from flows import budget as flow_budget
from flows.candidates import Search, Trying
from flows.compress import compress
from flows.recipe import load as recipes
from flows.recipe import schema
from tasks.execution.run import Reference

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.usefixtures("prefect_server")
Tiny = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, tiny_in: Tiny) -> dict[str, Any]:
    """A recipe that wants a file 25 times smaller, in short trainings."""
    return tiny_in(
        tmp_path_factory.mktemp("budget"),
        train={"epochs": 4},
        stages=[],
        budget={"ratio": 25, "epochs": 2, "steps": 4, "coder": "huffman"},
    )


@pytest.fixture(scope="module")
def found(asked: dict[str, Any], prefect_server: str) -> dict[str, Any]:
    """Its summary."""
    summary = compress(asked)
    assert isinstance(summary, dict)
    return summary


def test_the_file_keeps_to_its_bytes(found: dict[str, Any]) -> None:
    """The file is as small as was asked for, and is that of the step that was chosen."""
    outcome = found["budget"]
    chosen = outcome["steps"][outcome["chosen"] - 1]
    assert found["ratio"] >= 25 and outcome["kept"] and chosen["kept"]
    assert chosen["file_bytes"] == found["file_bytes"] == Path(found["file"]).stat().st_size
    assert chosen["val_metric"] == found["stages"][-1]["val_metric"]
    assert f"{chosen['file_bytes']:,} bytes" in outcome["stopped"]


def test_the_chain_leads_from_the_dense_model_to_the_file(found: dict[str, Any]) -> None:
    """Stages of the summary are those whose work is in the file, in order; every step says what each layer got."""
    outcome = found["budget"]
    labels = [row["stage"] for row in found["stages"]]
    last = str(outcome["chosen"])
    assert labels[0] == "baseline" and labels[-1] == f"encode-{last}"
    assert labels[-6:] == [f"{stage}-{last}" for stage in ("prune", "slim", "share", "order", "quantize", "encode")]
    densities = [row["density"] for row in found["stages"]]
    assert densities == sorted(densities, reverse=True)
    for step in outcome["steps"]:
        assert set(step["density"]) == set(step["bits"]) == {f"{n}.weight" for n in ("conv1", "conv2", "fc1", "fc2")}


def test_the_search_is_left_for_people(found: dict[str, Any]) -> None:
    """Table, Pareto picture and sensitivity curves lie in the folder and in MLflow, the report tells of the budget."""
    folder = Path(found["folder"])
    assert json.loads((folder / "budget.json").read_text())["steps"][0]["pareto"] in (True, False)
    client = MlflowClient(found["tracking_uri"])
    names = {one.path for one in client.list_artifacts(found["mlflow_run_id"], "figures")}
    assert {"figures/pareto.svg", "figures/sensitivity.svg", "figures/sensitivity.json"} <= names
    assert "budget.json" in {one.path for one in client.list_artifacts(found["mlflow_run_id"])}
    page = (folder / "report.html").read_text()
    assert "The budget, and what was tried for it" in page and 'id="budget-table"' in page


@pytest.mark.slow
def test_started_again_it_goes_on(asked: dict[str, Any], found: dict[str, Any]) -> None:
    """With more asked for, every step that was made before is reused, and the search goes on from there."""
    again = compress({**asked, "budget": {**asked["budget"], "ratio": 26}})
    assert isinstance(again, dict)
    assert set(again["reused"]) >= {"baseline", "prune-1", "slim-1"}
    assert again["budget"]["steps"][0] == found["budget"]["steps"][0]


@pytest.mark.slow
def test_killed_between_steps_it_ends_in_the_same_bytes(
    asked: dict[str, Any], found: dict[str, Any], tiny_in: Tiny, tmp_path: Path, prefect_server: str
) -> None:
    """A search whose process is killed hard goes on with what it had, and takes the same decisions."""
    recipe = tiny_in(tmp_path, **{key: asked[key] for key in ("train", "stages", "budget")})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "flows", "run", str(tmp_path / "recipe.yaml"), "--json"]
    environment = {**os.environ, "PREFECT_API_URL": prefect_server}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while not any('"encode-1"' in path.read_text() for path in tmp_path.glob("store/keys/*.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    again = compress(recipe)
    assert isinstance(again, dict)
    assert Path(again["file"]).read_bytes() == Path(found["file"]).read_bytes()
    assert {"baseline", "prune-1"} <= set(again["reused"])
    assert [one["file_bytes"] for one in again["budget"]["steps"]] == [
        one["file_bytes"] for one in found["budget"]["steps"]
    ]


@pytest.mark.slow
def test_where_no_step_fits_into_the_time_a_nearly_lossless_file_is_made(tiny: Tiny) -> None:
    """No step is begun that the limit cannot hold; what needs no training keeps to the budget, and that is said."""
    summary = compress(tiny(train={"epochs": 4}, stages=[], budget={"metric_loss": 1.0, "time_limit": 1e-4}))
    assert isinstance(summary, dict)
    outcome = summary["budget"]
    assert outcome["stopped"].endswith("by the dense model alone; what is nearly lossless was made instead")
    step = outcome["steps"][outcome["chosen"] - 1]
    assert outcome["kept"] == (step["loss"] <= 1.0 and step["expected_loss"] <= 1.0 - outcome["margin"]) is True
    assert [row["stage"] for row in summary["stages"]] == ["baseline", "share-1", "quantize-1", "encode-1"]
    assert step["note"] == "nothing pruned, weights shared at 8 bits" and summary["ratio"] > 3
    assert summary["verdict"]["kept"] and summary["verdict"]["text"].endswith("on validation, 1 allowed")


def planned(plan: dict[str, Any], spent: float = 60.0, train: dict[str, Any] | None = None) -> Search:
    """A search that has not begun, of a run whose dense model took so many seconds."""
    budget = schema.Budget.model_validate({"metric_loss": 1.0, **plan})
    metric = SimpleNamespace(name="auc", higher_is_better=True)
    run: Any = SimpleNamespace(name="mine", metric_object=lambda: metric)
    numbers = {"val_metric": 0.9, "val_loss": 0.5, "val_correct": None, "val_total": 1000, "dense_bytes": 10_000}
    dense = Reference("dense", "dense", numbers={**numbers, "worked_seconds": spent})
    limits = library.Budget(metric_loss=budget.metric_loss, margin=0.25)
    return Search(run, budget, schema.Training.model_validate(train or {}), limits, dense, cast(Any, None), 0, spent)


CLOCK = Clock(an_epoch=4.0, a_look=0.5, tensors=4, others=6, samples=1000, cut=True)


@pytest.mark.parametrize(
    ("plan", "clock", "epochs", "reason"),
    [
        ({}, CLOCK, 20, ""),
        ({"time_limit": 30}, CLOCK, 15, ""),
        ({"time_limit": 4}, CLOCK, 4, ""),
        ({"time_limit": 1.5}, CLOCK, 1, ""),
        ({"time_limit": 1.4}, CLOCK, 0, "1.0 minutes of 1.4 minutes are spent and the shortest step takes 0.4 minutes"),
        ({"time_limit": 1}, CLOCK, 20, "1.0 minutes of 1 minutes are spent by the dense model alone"),
        ({"time_limit": 5, "epochs": 40}, CLOCK, 40, "and a step of 40 epochs (budget.epochs) takes 6."),
        ({"time_limit": 5}, replace(CLOCK, an_epoch=200), 0, "the shortest step takes"),
        ({"time_limit": 5}, replace(CLOCK, tensors=4000, cut=False), 0, "the shortest step takes"),
    ],
)
def test_steps_are_planned_into_the_time(
    plan: dict[str, Any], clock: Clock, epochs: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer epochs where there is less time, none begun that does not fit, sensitivity's and rounding's time counted.

    Epochs that the recipe gives are not changed: where they do not fit, that is the reason.
    """
    monkeypatch.setattr(flow_budget, "_clock", lambda now, recipe: clock)
    now = planned(plan)
    told = flow_budget._plan(now, cast(Any, None))
    assert now.epochs == epochs and (reason in told if reason else told == "")
    if not reason and plan:
        assert now.first <= now.left


def test_a_step_that_diverges_ends_the_search_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was made before, or the nearly lossless file, is taken; why there is no other is said."""

    def diverges(now: Search, following: Any) -> Any:
        raise DivergedError("training: the loss became nan")

    monkeypatch.setattr(flow_budget, "made_step", diverges)
    reason = flow_budget._search_on(planned({}), 1000)
    assert reason == "step 1 came to nothing (training: the loss became nan)"


def test_little_time_is_spent_on_less_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where looking takes long, tensors are tried on fewer samples, at fewer points, and every few tensors alone; the
    rest is rounded without trying.
    """
    monkeypatch.setattr(flow_budget, "_clock", lambda now, recipe: clock)
    for looks, trying, rest in (
        (0.5, Trying(2000), "auto"),
        (3.0, Trying(500), "bfloat16"),
        (14.0, Trying(250, 3, (3, 5)), "bfloat16"),
        (70.0, Trying(100, 3, (3, 5), 2), "bfloat16"),
        (1e4, Trying(50, 2, (4,), 8), "bfloat16"),
    ):
        clock, now = replace(CLOCK, a_look=looks, samples=2000), planned({"time_limit": 4})
        flow_budget._plan(now, cast(Any, None))
        assert (now.trying, now.rest) == (trying, rest)


def fallen_back(metrics: dict[str, float], plan: dict[str, Any]) -> Search:
    """A search in which no step was made, after it fell back; files have these metrics and bytes by their labels."""
    now = planned(plan)
    if "file_bytes" in plan:
        now.budget = library.Budget(most_bytes=plan["file_bytes"])
    numbers = {**now.dense.numbers, "worked_seconds": 1.0, "cached": False}
    sizes = {"encode-1": 2500, "encode-2": 5000 if "file_bytes" not in plan else 1300, "encode-3": 9800}

    def call(task: Any, run: Any, label: str, number: Any, config: Any, source: Any) -> Reference:
        changes = {"val_metric": metrics.get(label, 0.9), "size_bytes": sizes.get(label, 10_000)}
        return Reference(label, label, numbers={**numbers, **changes})

    now.call = call
    flow_budget._fall_back(now, flow_budget._fallbacks(now))
    return now


@pytest.mark.parametrize(
    ("metrics", "plan", "labels"),
    [
        ({}, {}, ["share-1", "quantize-1", "encode-1"]),
        ({"encode-1": -0.5}, {}, ["quantize-2", "encode-2"]),
        ({"encode-1": -0.5, "encode-2": math.nan}, {}, ["quantize-3", "encode-3"]),
        ({"encode-1": -0.5, "encode-2": math.nan, "encode-3": -0.5}, {}, ["encode-4"]),
        ({}, {"metric_loss": None, "file_bytes": 1300}, ["share-2", "quantize-2", "encode-2"]),
        ({}, {"metric_loss": None, "file_bytes": 1000}, ["share-2", "quantize-2", "encode-2"]),
    ],
)
def test_what_is_nearly_lossless_is_always_there(
    metrics: dict[str, float], plan: dict[str, Any], labels: list[str]
) -> None:
    """The smallest that keeps to the budget, at last the dense model itself; by bytes the nearest, though it misses."""
    now = fallen_back(metrics, plan)
    chosen = library.best_of(now.budget, [step.result for step in now.steps])
    assert [one.key for one in flow_budget._chain(now, chosen)] == ["dense", *labels]
    assert now.steps[chosen].result.kept == (plan.get("file_bytes") != 1000)
    outcome = flow_budget._outcome(now, chosen, "reason")
    assert outcome["steps"][chosen]["note"] and outcome["steps"][chosen]["density"] == {}


def test_by_bytes_only_what_may_be_small_enough_is_a_fallback() -> None:
    """Weights at 8 or 4 bits are not tried where far fewer bytes are asked for, unless there is no file at all."""
    tried = {}
    for most in (1000, 15_000, 30_000):
        now = planned({})
        now.budget, now.dense = library.Budget(most_bytes=most), replace(now.dense, numbers={"dense_bytes": 200_000})
        assert len(flow_budget._fallbacks(now)) == 2
        now.steps.append(cast(Any, SimpleNamespace()))
        tried[most] = [one.shared for one in flow_budget._fallbacks(now)]
    assert tried == {1000: [], 15_000: [4], 30_000: [8, 4]}


@pytest.mark.parametrize("name", ["val_metric", "val_loss"])
def test_a_dense_model_without_a_number_is_refused(name: str) -> None:
    """Right after the baseline, in a line that names the metric: nothing could be measured against it."""
    now = planned({})
    dense = replace(now.dense, numbers={**now.dense.numbers, name: math.nan})
    with pytest.raises(BudgetError, match=r"budget: the dense model's val (auc|loss) is not a number \(nan\)"):
        flow_budget._refuse_unmeasured("auc", dense)


def test_budgets_that_cannot_be_measured_are_refused(tiny: Tiny) -> None:
    """Less than two validation samples, and more bytes than the dense model has, are errors before any step."""
    with pytest.raises(BudgetError, match="smallest usable is"):
        compress(tiny(train={"epochs": 1}, stages=[], budget={"metric_loss": 0.1}))
    with pytest.raises(BudgetError, match="has 212,008 bytes already"):
        compress(tiny(train={"epochs": 1}, stages=[], budget={"file_bytes": 300_000}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {"ratio": 20}}, "either stages, with at least one, or budget"),
        ({"stages": []}, "either stages, with at least one, or budget"),
        ({"stages": [], "budget": {}}, "one of metric_loss, file_bytes and ratio"),
        ({"stages": [], "budget": {"ratio": 20, "file_bytes": 500}}, "both say how large"),
        ({"stages": [], "budget": {"ratio": 20, "margin": 0.1}}, "margin goes with metric_loss"),
        ({"stages": [], "budget": {"metric_loss": 0.1, "margin": 0.1}}, "margin goes with metric_loss"),
    ],
)
def test_recipes_say_one_thing(tiny: Tiny, changes: dict[str, Any], message: str) -> None:
    """Stages or a budget, and one limit: anything else is refused by name."""
    with pytest.raises(RecipeError, match=message):
        recipes.load(tiny(**changes))
