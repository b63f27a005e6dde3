from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepcompression.errors import RecipeError
from flows.history import Found, admit, find
from flows.recipe import load as recipes

ROOT = Path(__file__).resolve().parents[2]
Tiny = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def finished(tiny_run: dict[str, Any]) -> dict[str, Any]:
    """One finished run, and where it lies."""
    recipe = tiny_run["recipe"]
    return {"summary": tiny_run["summary"], "uri": recipe["tracking"]["uri"], "runs": recipe["runs"]}


def _rerun(words: list[str], server: str) -> tuple[int, str, str]:
    environment = {**os.environ, "PREFECT_API_URL": server}
    command = [sys.executable, "-m", "flows", "rerun", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900, check=False)
    return done.returncode, done.stdout, done.stderr


def test_rerun_gives_the_same_bytes_and_says_what_was_reused(
    finished: dict[str, Any], prefect_server: str, tmp_path: Path
) -> None:
    """The stored recipe again, in a new process with an empty store, ends in the same file, byte for byte."""
    first = finished["summary"]
    elsewhere = [f"store={tmp_path}/store", f"runs={tmp_path}/runs"]
    code, out, err = _rerun([first["folder"], *elsewhere, "--json"], prefect_server)
    assert code == 0, err
    again = json.loads(out)
    assert again["reused"] == [] and Path(again["file"]).read_bytes() == Path(first["file"]).read_bytes()


def test_a_run_is_found_by_folder_name_mlflow_and_prefect_id(finished: dict[str, Any]) -> None:
    """Every name that a run goes by leads to its folder, where that is on this machine."""
    summary, folder = finished["summary"], Path(finished["summary"]["folder"])
    for word in (str(folder), folder.name, summary["mlflow_run_id"], summary["prefect_flow_run_id"]):
        found = find(word, finished["uri"], finished["runs"])
        assert found.folder is not None and found.folder.name == folder.name and not found.foreign, word
        assert found.recipe["train"]["epochs"] == 6


def test_a_run_of_another_machine_is_found_through_the_servers(finished: dict[str, Any], tmp_path: Path) -> None:
    """Without its folder, MLflow's id, and Prefect's by way of MLflow's tag, give the recipe, marked as foreign."""
    summary = finished["summary"]
    for word in (summary["mlflow_run_id"], summary["prefect_flow_run_id"]):
        found = find(word, finished["uri"], str(tmp_path))
        assert found.foreign and found.folder is None and found.recipe["train"]["epochs"] == 6


def test_prefect_alone_knows_the_recipe(finished: dict[str, Any], tmp_path: Path, mlflow_template: Path) -> None:
    """Where MLflow never heard of a flow run, its parameters are the recipe."""
    shutil.copy(mlflow_template, tmp_path / "empty.db")
    word = finished["summary"]["prefect_flow_run_id"]
    found = find(word, f"sqlite:///{tmp_path}/empty.db", str(tmp_path))
    assert found.foreign and found.recipe["train"]["epochs"] == 6


@pytest.mark.parametrize("word", ["nothing-of-the-kind", "0" * 32, "00000000-0000-0000-0000-000000000000"])
def test_what_is_not_found_is_one_line(word: str, finished: dict[str, Any], tmp_path: Path) -> None:
    """A wrong name says where was looked."""
    with pytest.raises(Exception, match=word[:8]) as told:
        find(word, finished["uri"], str(tmp_path))
    assert type(told.value).__module__ == "deepcompression.errors" and "\n" not in str(told.value)


def _foreign(**changes: Any) -> Found:
    text = (ROOT / "conf" / "digits.yaml").read_text()
    return Found("r", {**yaml.safe_load(text), **changes}, foreign=True)


@pytest.mark.parametrize(
    "spec",
    [
        "os:system",
        "subprocess:run",
        "torch:load",
        "torch.hub:load",
        "deepcompression.factory:build",
        "deepcompression.data:Path.unlink",
        "torch.nn.functional:os.system",
        "torch.optim.lr_scheduler:types.CodeType",
        "torchvision_evil:run",
    ],
)
def test_a_recipe_from_a_server_runs_only_code_that_is_allowed(spec: str) -> None:
    """Neither a module outside the list nor one reached through an attribute of one inside it is ever called."""
    with pytest.raises(RecipeError, match=r"--allow|has no attribute"):
        try:
            admit(_foreign(model={"factory": spec}), [], None, {})
        except Exception as error:
            raise RecipeError(str(error)) from None


def test_every_place_that_names_code_is_judged() -> None:
    """Optimizers, schedules, stages, metrics, wherever they stand in the recipe."""
    stages = [{"stage": "os:getcwd"}]
    optimizer = {"train": {"optimizer": {"factory": "os:getcwd"}}}
    for changes in ({"stages": stages}, optimizer, {"metric": {"factory": "os:getcwd"}}):
        with pytest.raises(RecipeError, match="os:getcwd"):
            admit(_foreign(**changes), [], None, {})


def test_this_library_and_torch_are_allowed_and_so_is_what_the_user_names(tmp_path: Path) -> None:
    """The shipped recipes pass; a package passes by --allow, or by standing in a local recipe's python_path."""
    admit(_foreign(), [], None, {})
    admit(_foreign(step={"factory": "os:getcwd"}), ["os", "posix"], None, {})
    (tmp_path / "ownpackage_xyz.py").write_text("def model():\n    return None\n")
    foreign = _foreign(model={"factory": "ownpackage_xyz:model"})
    with pytest.raises(RecipeError, match="ownpackage_xyz"):
        admit(foreign, [], None, {})
    ours = recipes.load("conf/digits.yaml", {"python_path": [str(tmp_path)]})
    assert admit(foreign, [], ours, {})["python_path"] == [str(tmp_path)]


def test_a_recipe_from_a_server_does_not_say_where_things_are_written_or_read_from() -> None:
    """Store, runs, tracking and import path are this machine's; variables of this machine are not handed out."""
    evil = {"store": "/evil", "runs": "/evil", "tracking": {"uri": "http://evil"}, "python_path": ["/evil"]}
    assert not set(admit(_foreign(**evil), [], None, {})) & set(evil)
    leaking = _foreign(data={"factory": "deepcompression.data:mnist", "kwargs": {"root": "${oc.env:HOME}"}})
    with pytest.raises(RecipeError, match=r"data.kwargs.root"):
        admit(leaking, [], None, {})
    admit(leaking, [], None, {"data.kwargs.root": "/data"})


def test_a_password_that_was_not_stored_is_asked_for() -> None:
    """A masked password would only fail later, at the server."""
    own = Found("r", {**_foreign().recipe, "tracking": {"uri": "http://me:***@server"}})
    with pytest.raises(RecipeError, match=r"tracking.uri=\.\.\."):
        admit(own, [], None, {})
    admit(own, [], None, {"tracking.uri": "http://me:secret@server"})
