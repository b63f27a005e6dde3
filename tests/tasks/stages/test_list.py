"""The list of stages: one file and one line, and all that the house asks of a stage follows."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from quiet_runs import quiet_run

from deepcompression.errors import InputError
from flows.recipe import rounds, schema
from tasks import stages
from tasks.execution.check import check
from tasks.execution.execute import execute
from tasks.execution.run import Run
from tasks.execution.settings import Model, Training
from tasks.execution.stage import task_of
from tasks.execution.trial import _trainings
from tasks.root import CODE
from tasks.stages import OTHERS, STAGES, settings_of, work_of

HALVE = '''
"""Halves weights: a stage that this project has not."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from tasks.execution.bench import Bench, Product
from tasks.execution.patterns import SELECTED
from tasks.execution.settings import ByName, Stage, Training, table_of


class Settings(Stage):
    """Halves the weights of some layers."""

    draws: ClassVar[bool] = False
    rounds_values: ClassVar[bool] = True

    stage: Literal["halve"]
    times: Annotated[int | dict[str, int], ByName, SELECTED] = Field(1, description="how often")
    train: Training | None = None


def work(bench: Bench, settings: Settings) -> Product:
    """Weights halved."""
    from deepcompression.network.names import resolve

    model = bench.model() if bench.input else bench.run.blank_model()
    state = dict(model.state_dict())
    for name, times in resolve(model, table_of(settings.times)).items():
        state[name] = state[name] / 2**times
    return Product(state)
'''


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[schema.Recipe]]:
    """What a recipe may say once the file ``halve.py`` lies beside the others and the list has its line."""
    (tmp_path / "halve.py").write_text(HALVE)
    monkeypatch.setattr(stages, "__path__", [*stages.__path__, str(tmp_path)])
    monkeypatch.setitem(STAGES, "halve", "tasks.stages.halve")
    spec = importlib.util.spec_from_file_location("flows.recipe.schema_again", schema.__file__)
    assert spec and spec.loader
    again = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, again)
    spec.loader.exec_module(again)
    yield again.Recipe
    sys.modules.pop("tasks.stages.halve", None)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run on a small net, told to nobody."""
    text = "import torch\ndef data():\n    x, y = torch.arange(24.0).reshape(8, 3), torch.arange(8) % 2\n"
    code = text + "    return (x, y), (x, y), (x, y)\n"
    linear = Model(factory="torch.nn:Linear", kwargs={"in_features": 3, "out_features": 2})
    with quiet_run(tmp_path, monkeypatch, "dcl_mine", code, linear) as made:
        yield made


def _recipe(*given: dict[str, Any]) -> dict[str, Any]:
    factory = {"factory": "torch.nn:Linear"}
    return {"name": "r", "model": factory, "data": {"factory": "dcl_mine:data"}, "stages": list(given)}


def test_a_further_stage_is_its_file_and_one_line(
    recipe: type[schema.Recipe], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recipe, JSON schema, order, names of tensors, trial, work, key and Prefect task of a stage that is new."""
    assert "how often" in json.dumps(recipe.model_json_schema())
    parsed = recipe.model_validate(_recipe({"stage": "halve", "times": {"weight": 2}, "train": {"epochs": 3}}))
    (label, settings), (_, last) = rounds.expand(parsed)  # type: ignore[arg-type]
    assert (label, last.stage) == ("halve", "encode") and settings.trains and len(_trainings(settings)) == 1
    with pytest.raises(ValueError, match=r"stage 1 \(finetune\) trains after halve, which undoes its rounding"):
        recipe.model_validate(_recipe({"stage": "halve"}, {"stage": "finetune"}))
    with pytest.raises(ValueError, match=r"expected stage: one of .*prune, .*, halve, or package.module:callable"):
        recipe.model_validate(_recipe({"stage": "half"}))
    check(run, [(label, settings)])
    with pytest.raises(InputError, match=r"^stage halve: .*wight"):
        check(run, [(label, settings.model_copy(update={"times": {"wight": 1}}))])
    monkeypatch.setattr("tasks.execution.keys.code_digest", lambda *modules: str(modules))  # its file lies elsewhere
    made, reused = execute(run, label, 1, settings, None, work_of("halve"))
    assert not reused and execute(run, label, 2, settings, None, work_of("halve"))[1]
    assert torch.equal(run.state(made)["weight"], run.blank_model().weight / 4)
    assert task_of("halve").name == "halve" and task_of("halve").description == "Weights halved."


@pytest.mark.parametrize("name", [*STAGES, *OTHERS])
def test_every_line_of_the_list_leads_to_a_stage(name: str) -> None:
    """The word, the file and the key ``stage`` are the same; its keys are frozen and know whether it draws."""
    kind = settings_of(name)
    assert kind.__module__.rpartition(".")[2] == name == work_of(name).__module__.rpartition(".")[2]
    if name in STAGES:
        assert get_args(kind.model_fields["stage"].annotation) == (name,)
    assert kind.model_config["frozen"] and kind.model_config["extra"] == ("allow" if name == "custom" else "forbid")
    assert task_of(name).name == name and task_of(name).description


def test_keys_of_stages_load_nothing_heavy() -> None:
    """The list imports no stage; recipes are read, and refused, before torch or Prefect is there."""
    code = (
        "import sys, tasks.stages; print({m for m in sys.modules if m.startswith('tasks.stages.')});"
        "import flows.recipe.schema;"
        "print({m.partition('.')[0] for m in sys.modules} & {'torch', 'prefect', 'mlflow', 'sklearn', 'matplotlib'})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=CODE, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["set()", "set()"]


@pytest.mark.parametrize(
    ("name", "keys", "draws", "trains"),
    [
        ("prune", {"density": 0.5}, False, False),
        ("prune", {"density": 0.5, "gradual": {}}, True, True),
        ("finetune", {}, True, True),
        ("share", {}, False, False),
        ("share", {"init": "random"}, True, False),
        ("share", {"train": {}}, True, True),
        ("quantize", {}, False, False),
        ("quantize", {"train": {}}, True, True),
        ("recalibrate", {}, True, False),
        ("slim", {}, False, False),
        ("encode", {}, False, False),
    ],
)
def test_keys_know_whether_the_seed_decides(name: str, keys: dict[str, Any], draws: bool, trains: bool) -> None:
    """What does not depend on the seed is used again by other seeds; what trains may not follow rounding."""
    settings = settings_of(name).model_validate({"stage": name, **keys})
    assert (settings.draws, settings.trains) == (draws, trains)
    assert len(_trainings(settings)) == (trains or name == "recalibrate")


def test_a_stage_of_the_users_may_call_its_arguments_as_it_likes() -> None:
    """Words that mean something in other stages are arguments of the callable, and no training of ours."""
    given = {"stage": "mine:halve", "draws": 1, "trains": True, "batch_size": 3, "train": {"epochs": 1}, "last": True}
    custom = settings_of("custom").model_validate(given)
    assert custom.model_dump() == given and custom.draws is True and not custom.trains and not custom.last
    assert _trainings(custom) == [] and _trainings(Training()) == [Training()]


def test_runs_and_keys_reach_a_worker_anywhere(run: Run) -> None:
    """What a task is given survives pickling, a user's own keys too, and is the same to the store."""
    custom = settings_of("custom").model_validate({"stage": "mine:halve", "by": {"a": [1]}})
    for one in (
        replace(run, tracker=None),
        custom,
        settings_of("prune").model_validate({"stage": "prune", "density": 1}),
    ):
        assert pickle.loads(pickle.dumps(one)) == one
