"""Budget mode, whole: from a recipe without stages to a file that keeps to what was asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient

from deepcompression.errors import BudgetError, RecipeError
from flows import recipe as recipes
from flows.compress import compress

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


def test_started_again_it_goes_on(asked: dict[str, Any], found: dict[str, Any]) -> None:
    """With more asked for, every step that was made before is reused, and the search goes on from there."""
    again = compress({**asked, "budget": {**asked["budget"], "ratio": 26}})
    assert isinstance(again, dict)
    assert set(again["reused"]) >= {"baseline", "prune-1", "slim-1"}
    assert again["budget"]["steps"][0] == found["budget"]["steps"][0]


def test_killed_between_steps_it_ends_in_the_same_bytes(
    asked: dict[str, Any], found: dict[str, Any], tiny_in: Tiny, tmp_path: Path, prefect_server: str
) -> None:
    """A search whose process is killed hard goes on with what it had, and takes the same decisions."""
    recipe = tiny_in(tmp_path, **{key: asked[key] for key in ("train", "stages", "budget")})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "flows", "run", str(tmp_path / "recipe.yaml"), "--json"]
    environment = {**os.environ, "PREFECT_API_URL": prefect_server}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 200
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


def test_time_ends_the_search_and_a_file_is_there(tiny: Tiny) -> None:
    """After the first step there is no time for another; whether it keeps to the loss, less the margin, is told."""
    summary = compress(
        tiny(train={"epochs": 4}, stages=[], budget={"metric_loss": 1.0, "epochs": 1, "time_limit": 0.01})
    )
    assert isinstance(summary, dict)
    outcome = summary["budget"]
    assert len(outcome["steps"]) == outcome["chosen"] == 1 and "minutes are spent" in outcome["stopped"]
    step = outcome["steps"][0]
    assert outcome["kept"] == (step["loss"] <= 1.0 and step["expected_loss"] <= 1.0 - outcome["margin"])
    assert 0 < outcome["margin"] <= 0.25
    assert Path(summary["file"]).exists()


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
        ({"stages": [], "budget": {}}, "exactly one of metric_loss, file_bytes and ratio"),
        ({"stages": [], "budget": {"ratio": 20, "file_bytes": 500}}, "exactly one of"),
        ({"stages": [], "budget": {"ratio": 20, "margin": 0.1}}, "margin goes with metric_loss"),
        ({"stages": [], "budget": {"metric_loss": 0.1, "margin": 0.1}}, "margin goes with metric_loss"),
    ],
)
def test_recipes_say_one_thing(tiny: Tiny, changes: dict[str, Any], message: str) -> None:
    """Stages or a budget, and one limit: anything else is refused by name."""
    with pytest.raises(RecipeError, match=message):
        recipes.load(tiny(**changes))
