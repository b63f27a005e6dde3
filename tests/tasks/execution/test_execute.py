"""A stage's run without Prefect: used again, worked on once, checked before it is stored, measured anew."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from quiet_runs import quiet_run

from deepcompression.errors import InvariantError
from deepcompression.structure.constraints import structured
from tasks.execution import execute as executing
from tasks.execution import keys, measure
from tasks.execution.bench import Bench, Product
from tasks.execution.execute import Work, execute, left_alone, plain
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Model, Stage
from tasks.root import CODE as HERE
from tasks.stages import finetune, prune, slim
from tasks.storage import lease, store

CODE = """
import torch
def data():
    x, y = torch.arange(24.0).reshape(8, 3), torch.arange(8) % 2
    return (x, y), (x, y), (x, y)
"""
SETTINGS = prune.Settings(stage="prune", density=0.5)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A run on a small net, told to nobody."""
    linear = Model(factory="torch.nn:Linear", kwargs={"in_features": 3, "out_features": 2})
    with quiet_run(tmp_path, monkeypatch, "dce_mine", CODE, linear) as made:
        yield made


def _weights(*rows: list[float]) -> dict[str, torch.Tensor]:
    return {"weight": torch.tensor(rows), "bias": torch.zeros(2)}


def _work(calls: list[str], state: dict[str, torch.Tensor], **more: Any) -> Work:
    def work(bench: Bench, settings: Stage) -> Product:
        calls.append(bench.label)
        return Product(state, **more)

    work.__module__ = "tasks.stages.prune"
    return work


HELD = structured(["weight"])
PRUNED = _weights([0.0, 2.0, 0.0], [1.0, 0.0, 0.0])


def _pruned(run: Run) -> Reference:
    return execute(run, "prune", 1, SETTINGS, None, _work([], PRUNED, structure=HELD))[0]


def _keys(run: Run) -> list[Path]:
    return sorted(Path(run.store_folder).glob("keys/*.json"))


def test_a_stage_that_is_stored_is_used_again(run: Run) -> None:
    """The second call does not work, returns the same weights and numbers, and is told to the tracker too."""
    calls: list[str] = []
    first, reused = execute(run, "prune", 1, SETTINGS, None, _work(calls, PRUNED, structure=HELD))
    again, reused_then = execute(run, "prune", 1, SETTINGS, None, _work(calls, PRUNED, structure=HELD))
    assert (calls, reused, reused_then) == (["prune"], False, True)
    assert (first.key, first.object, first.zeros) == (again.key, again.object, again.zeros)
    assert first.numbers["density"] == again.numbers["density"] == pytest.approx(2 / 6)
    assert [told[1] for told in run.tracker.told] == [1, 1]  # type: ignore[attr-defined]
    assert torch.equal(run.state(again)["weight"], PRUNED["weight"])


def test_a_result_whose_file_is_damaged_is_made_again(run: Run) -> None:
    """Nothing damaged or missing is served from the store."""
    calls: list[str] = []
    first, _ = execute(run, "prune", 1, SETTINGS, None, _work(calls, PRUNED))
    run.store.object_path(first.object).unlink()
    assert execute(run, "prune", 1, SETTINGS, None, _work(calls, PRUNED))[1] is False
    assert calls == ["prune", "prune"]


def test_two_who_want_the_same_work_once(run: Run) -> None:
    """Who comes second waits for the lease, and then uses what the first has stored."""
    calls: list[str] = []
    begun, found = threading.Event(), []

    def slow(bench: Bench, settings: Stage) -> Product:
        calls.append("slow")
        begun.set()
        time.sleep(0.3)
        return Product(PRUNED)

    slow.__module__ = "tasks.stages.prune"
    first = threading.Thread(target=lambda: found.append(execute(run, "prune", 1, SETTINGS, None, slow)))
    first.start()
    assert begun.wait(60)
    second, reused = execute(run, "prune", 1, SETTINGS, None, _work(calls, PRUNED))
    first.join()
    assert calls == ["slow"] and reused and found[0][1] is False and found[0][0].object == second.object
    assert not list(Path(run.store_folder).glob("leases/*.json"))


@pytest.mark.parametrize(
    ("state", "kept"),
    [
        (_weights([3.0, 2.0, 0.0], [1.0, 0.0, 0.0]), {"structure": HELD}),
        (_weights([-0.0, 2.0, 0.0], [1.0, 0.0, 0.0]), {"structure": HELD}),
        (_weights([3.0, 2.0, 0.0], [1.0, 0.0, 0.0]), {}),  # a stage cannot drop what it was given to hold
    ],
)
def test_lost_structure_stops_with_the_tensors_name(
    run: Run, state: dict[str, torch.Tensor], kept: dict[str, Any]
) -> None:
    """A weight that comes alive again ends the run, and what broke the promise is not stored."""
    pruned = _pruned(run)
    before = _keys(run)
    with pytest.raises(InvariantError, match="weight"):
        execute(run, "finetune", 2, finetune.Settings(stage="finetune"), pruned, _work([], state, **kept))
    assert _keys(run) == before and not list(Path(run.store_folder).glob("leases/*.json"))


def test_a_tensor_that_was_not_selected_stays_as_it_was(run: Run) -> None:
    """What a stage leaves alone is compared bit for bit."""
    pruned, changed = _pruned(run), {**PRUNED, "bias": torch.tensor([0.0, -0.0])}
    with pytest.raises(InvariantError, match="bias: changed, although the stage did not select it"):
        execute(run, "slim", 2, slim.Settings(stage="slim"), pruned, _work([], changed, selected=["weight"]))


def test_growth_is_counted(run: Run) -> None:
    """More zeros are no loss; the numbers tell how many."""
    pruned = _pruned(run)
    thinner = _weights([0.0, 0.0, 0.0], [1.0, 0.0, 0.0])
    reference, _ = execute(run, "slim", 2, slim.Settings(stage="slim"), pruned, _work([], thinner, structure=HELD))
    assert sum(reference.numbers["coarsened"].values()) >= 1


def test_what_measures_changed_measures_anew(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other measuring code changes numbers, not weights: the stage is not worked on again, and measured once."""
    calls: list[str] = []
    measured: list[Any] = []
    first, _ = execute(run, "prune", 1, SETTINGS, None, _work(calls, PRUNED, structure=HELD))
    monkeypatch.setattr(executing, "measuring_code", lambda: "another")
    monkeypatch.setattr(
        executing, "measure", lambda *given: measured.append(given) or {"val_metric": 0.75, "density": 0.25}
    )
    for _ in range(2):
        again, reused = execute(run, "prune", 1, SETTINGS, None, _work(calls, PRUNED, structure=HELD))
        assert reused and again.object == first.object and again.numbers["val_metric"] == 0.75
    assert calls == ["prune"] and len(measured) == 1


def test_a_metric_that_is_no_number_is_one_again() -> None:
    """JSON has null for it; whoever compares gets NaN, which wins over nothing."""
    numbers = executing.numbers_of({"numbers": {"val_metric": None, "val_loss": 1.0, "density": 0.5}})
    assert numbers["val_metric"] != numbers["val_metric"] and numbers["val_loss"] == 1.0


def test_what_is_stored_is_plain() -> None:
    """Dataclasses and tuples become what JSON holds; older entries have left nothing alone."""
    assert plain({1: (Reference("k", "o"), {"a"})}) == {"1": [plain(Reference("k", "o")), ["a"]]}
    row = {"tensor": "w", "elements": 1, "bytes": 4, "reason": "small", "done": False, "more": 0}
    assert left_alone({"report": {"covered": [row, {**row, "done": True}]}}) == [
        {"tensor": "w", "elements": 1, "bytes": 4, "reason": "small"}
    ]
    assert left_alone({"report": None}) == []


def test_running_a_stage_loads_neither_prefect_nor_mlflow() -> None:
    """Key, lease, store, measuring and the run of a stage can be tried, and used, without a server's client."""
    names = [one.__name__ for one in (executing, keys, lease, measure, store)]
    code = (
        f"import sys, {', '.join(names)};print({{m.partition('.')[0] for m in sys.modules}} & {{'prefect', 'mlflow'}})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
