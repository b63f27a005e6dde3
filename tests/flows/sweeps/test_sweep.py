from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import yaml
from conftest import free_port

from deepcompression.errors import AimMissed, InputError, RecipeError, RunError
from flows import process
from flows.recipe.schema import Recipe
from flows.sweeps import checked, study, workers
from flows.sweeps import sweep as sweeps
from flows.sweeps.study import Trial
from flows.sweeps.sweep import load, sweep
from flows.verbs import running
from tasks.storage.lease import leases
from tasks.storage.places import place_at

ROOT = Path(__file__).resolve().parents[3]
Tiny = Callable[..., dict[str, Any]]
STAGES = [{"stage": "prune", "density": 0.3}, {"stage": "share", "bits": 4}, {"stage": "encode"}]


@pytest.fixture
def plan(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """A sweep whose trials take a second each; everything it writes is in the test's folder."""
    monkeypatch.setattr(sweeps, "SWEEPS", tmp_path / "sweeps")

    def made(recipe: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
        recipe = recipe or tiny(train={"epochs": 2}, stages=STAGES)
        return {"name": "s", "recipe": recipe, "parameters": {"stages.share.bits": [2, 3, 4]}, "workers": 2, **changes}

    return made


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"parameters": {"stages.share.bit": [2]}}, "bit"),
        ({"parameters": {"stages.share.bits": []}}, "at least one choice"),
        ({"parameters": {"stages.share.bits": {"low": 4, "high": 2}}}, "low < high"),
        ({"parameters": {"stages.prune.density": {"low": 0.1, "high": 0.2}}}, "use random or tpe"),
        ({"method": "tpe"}, "needs trials"),
        ({"trials": 3}, "remove trials"),
        ({"name": "../../etc"}, "name"),
        ({"worker": 2}, "did you mean 'workers'"),
        ({"parameters": {"stages.nothing.bits": [2]}}, "nothing"),
        ({"labels": {"stages.nothing.bits": ["two"]}}, "1 words for no choices"),
    ],
)
def test_a_wrong_sweep_is_one_line(plan: Callable[..., dict[str, Any]], changes: dict[str, Any], part: str) -> None:
    """Every key is checked, with the recipe that a trial would run, before anything starts."""
    with pytest.raises(RecipeError) as told:
        load(plan(**changes))
    assert part in str(told.value) and "\n" not in str(told.value)


def test_points_that_can_be_known(plan: Callable[..., dict[str, Any]]) -> None:
    """Every value first, once; then all of a grid. Of what is drawn from, the ends."""
    asked = {"stages.share.bits": [2, 3, 4], "seed": [0, 1]}
    grid = [tuple(one.values()) for one in checked.points(load(plan(parameters=asked)))]
    assert grid[:4] == [(2, 0), (3, 0), (4, 0), (2, 1)] and sorted(grid) == [(a, b) for a in (2, 3, 4) for b in (0, 1)]
    drawn = {"stages.share.bits": {"low": 2, "high": 5, "integer": True}, "stages.prune.density": [0.1, 0.2]}
    random = load(plan(parameters=drawn, method="random", trials=3))
    assert [tuple(one.values()) for one in checked.points(random)] == [(2, 0.1), (5, 0.1), (2, 0.2)]


def test_an_override_within_a_recipe_that_is_a_file_says_what_does_it() -> None:
    """Else the file's name would be lost, and what remains would be no recipe."""
    with pytest.raises(RecipeError, match=r"recipe is a file here, conf/digits.yaml; .* overrides=\{'seed': \.\.\.\}$"):
        checked.load("conf/sweeps/digits.yaml", {"recipe.seed": 3})
    assert checked.load("conf/sweeps/three-nets.yaml", {"recipe.seed": 3}).recipe["seed"] == 3


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"parameters": {"stages.share.bits": [2, 3, 40]}}, r"^sweep s, point stages.share.bits=40: .*, got 40$"),
        (
            {
                "parameters": {"stages.share.bits": {"low": 2, "high": 40, "integer": True}},
                "method": "tpe",
                "trials": 2,
            },
            "^sweep s, point stages.share.bits=40: ",
        ),
        (
            {"parameters": {"stages.share.bits": [2, 3], "metric": ["accuracy", "akkuracy"]}},
            "^sweep s, point stages.share.bits=2, metric=akkuracy and 1 more: .*did you mean 'accuracy'",
        ),
        ({"overrides": {"sed": 3}}, "^recipe: sed: unknown key; did you mean 'seed'"),
    ],
)
def test_a_wrong_key_at_any_point_is_told_with_it(
    plan: Callable[..., dict[str, Any]], changes: dict[str, Any], told: str
) -> None:
    """In one line; what is wrong at all points names none."""
    with pytest.raises(RecipeError, match=told) as found:
        load(plan(**changes))
    assert "\n" not in str(found.value) and not found.value.others


def test_a_wrong_name_at_a_point_is_told_before_prefect_is_asked(
    plan: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run of the point would find by its model and data; no trial fails of it, and no flow run."""
    asked = plan(parameters={"stages.prune.density": [0.1, {"fc9": 0.2}]})
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(asked))
    monkeypatch.setattr(running, "begin", lambda tell, check: check())
    monkeypatch.setattr(process, "_settings", lambda verbose: None)
    monkeypatch.setattr(process, "fail", lambda error, verbose: (_ for _ in ()).throw(error))
    monkeypatch.setattr(sweeps, "sweep", lambda *arguments: pytest.fail("the flow began"))
    with pytest.raises(InputError, match=r"^sweep s, point .*\{fc9: 0.2\}: .*'fc9' matches no tensor"):
        running.sweep(str(tmp_path / "sweep.yaml"))


def test_shipped_sweeps_are_right() -> None:
    """What lies in conf/sweeps can be run."""
    for path in (ROOT / "conf" / "sweeps").glob("*.yaml"):
        assert load(str(path)).name


def test_choices_have_words_in_tables() -> None:
    """A list of stages is no name of a trial; as many words as there are choices."""
    from flows.sweeps.study import Sweep

    asked = {"stages": [[{"stage": "share"}], [{"stage": "prune"}]], "seed": [0, 1]}
    plan = Sweep.model_validate({"name": "s", "recipe": {}, "parameters": asked, "labels": {"stages": ["a", "b"]}})
    assert plan.label("stages", [{"stage": "prune"}]) == "b" and plan.label("seed", 1) == "1"
    trial = Trial(0, {"stages": [{"stage": "share"}]}, None, {"baseline": {"metric": 1}, "metric": "accuracy"})
    trial.summary |= {"dense_bytes": 1, "final": {"higher_is_better": True}}
    (row,) = sweeps._result(plan, [trial], set(), Path("f"), SimpleNamespace(run_id=None))["trials"]  # type: ignore
    assert row["labels"] == {"stages": "a"}
    with pytest.raises(ValueError, match="2 words for no choices"):
        Sweep.model_validate({"name": "s", "recipe": {}, "parameters": {"seed": [0]}, "labels": {"x": ["a", "b"]}})
    unnamed = Sweep.model_validate({"name": "s", "recipe": {}, "parameters": {**asked, "x": [{"conv1": 0.5}]}})
    assert [unnamed.label("stages", one) for one in asked["stages"]] != [str(one) for one in asked["stages"]]
    assert unnamed.label("x", {"conv1": 0.5}) == "{conv1: 0.5}"


def test_lists_of_stages_are_called_by_what_differs() -> None:
    """Tables and picture say the keys that are not the same in all lists, and the stages where these differ."""
    from flows.sweeps.study import Sweep

    lists = [
        [{"stage": "quantize", "weights": {"bits": bits, "per": "tensor"}}, {"stage": "encode"}] for bits in (8, 4)
    ]
    plan = Sweep.model_validate({"name": "s", "recipe": {}, "parameters": {"stages": lists}})
    assert [plan.label("stages", one) for one in lists] == ["quantize.weights.bits 8", "quantize.weights.bits 4"]
    lists.append([{"stage": "prune", "density": 0.1}, {"stage": "encode"}])
    plan = Sweep.model_validate({"name": "s", "recipe": {}, "parameters": {"stages": lists}})
    assert plan.label("stages", lists[2]) == "prune, encode"


def test_exports_of_trials_are_in_the_table_and_in_the_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bytes and milliseconds beside the file's, a second picture of latency; a trial without one has an empty cell."""
    from flows import table
    from flows.sweeps.study import Sweep

    plan = Sweep.model_validate(
        {"name": "s", "recipe": {}, "parameters": {"stages.share.bits": [2, 3]}, "export": ["onnx"]}
    )
    end = {"metric": 0.9, "higher_is_better": True, "split": "validation"}
    summary = {"file_bytes": 1000, "ratio": 4.0, "metric": "accuracy", "final": end, "verdict": None, "folder": "f"}
    timed = {"target": "onnx", "bytes": 1234, "latency_ms": 0.0184, "times_as_fast": 6.0}
    trials = [Trial(0, {"stages.share.bits": 2}, None, {**summary, "exports": [timed]}), Trial(1, {}, None, summary)]
    found = sweeps._latency(plan, trials)
    assert found is not None and found.target == "onnx" and found.milliseconds == {0: 0.0184}
    rows = [asdict(one) | {"pareto": not one.number} for one in trials]
    assert sweeps._figures(rows[0])["onnx ms"] == 0.0184 and "onnx ms" not in sweeps._figures(rows[1])
    points, result = (
        [sweeps._point(one) for one in trials],
        {"name": "s", "metric": "accuracy", "dense_val_metric": 0.9},
    )
    sweeps.picture(points, points[:1], {}, result, tmp_path / "a.svg", latency=found)
    assert "latency of export onnx" in (tmp_path / "a.svg").read_text() or (tmp_path / "a.svg").stat().st_size > 10_000
    monkeypatch.setenv("COLUMNS", "200")
    table.show_sweep({**result, "parameters": ["stages.share.bits"], "trials": rows, "folder": "f"})
    printed = capsys.readouterr().out
    assert "onnx bytes" in printed and "1,234" in printed and "0.0184" in printed


def test_grid_chooses_by_validation_and_reads_test_for_the_chosen_only(
    plan: Callable[..., dict[str, Any]], prefect_server: str, tmp_path: Path
) -> None:
    """All points are tried, the shared prefix is computed once, a failed trial is reported, the sweep resumes."""
    parameters = {"stages.share.bits": [2, 3], "data.validation": [0.15, 5000]}
    result = sweep(plan(parameters=parameters, chosen=2))
    assert len(result["trials"]) == 4
    failed = [one for one in result["trials"] if one["error"]]
    assert [one["parameters"]["data.validation"] for one in failed] == [5000] * 2 and "5000" in failed[0]["error"]
    good = [one for one in result["trials"] if not one["error"]]
    assert all(one["summary"]["final"]["split"] == "validation" for one in good)
    tested = [one for one in good if one["test"]]
    assert 1 <= len(tested) <= 2 and all(one["pareto"] for one in tested)
    assert all(one["test"]["final"]["split"] == "test" and len(one["test"]["reused"]) == 4 for one in tested)
    reused = [len(one["summary"]["reused"]) for one in good]
    assert sum(reused) >= 2 and min(reused) < 2  # baseline and pruning are done once, by one trial or by one each
    folder = Path(result["folder"])
    assert {"sweep.json", "pareto.svg", "study.log"} <= {path.name for path in folder.iterdir()}
    _children_have_parent(result)
    again = sweep(plan(parameters=parameters, chosen=2))
    assert again["mlflow_run_id"] == result["mlflow_run_id"]
    trials = {one["number"]: one["summary"].get("folder") for one in again["trials"] if not one["error"]}
    assert trials == {one["number"]: one["summary"]["folder"] for one in good}  # none was run again


def _children_have_parent(result: dict[str, Any]) -> None:
    from mlflow import MlflowClient

    summary = next(one["summary"] for one in result["trials"] if not one["error"])
    uri = json.loads((Path(summary["folder"]) / "summary.json").read_text())["tracking_uri"]
    child = MlflowClient(uri).get_run(summary["mlflow_run_id"])
    assert child.data.tags["mlflow.parentRunId"] == result["mlflow_run_id"]
    assert "share.bits" in child.data.params and "file_bytes" in child.data.metrics
    assert "test_accuracy" not in child.data.metrics


RANGES = {
    "stages.prune.density": {"low": 0.1, "high": 0.5, "log": True},
    "stages.share.bits": {"low": 2, "high": 5, "integer": True},
}


def _inside(drawn: dict[str, Any]) -> bool:
    return 0.1 <= drawn["stages.prune.density"] <= 0.5 and drawn["stages.share.bits"] in (2, 3, 4, 5)


@pytest.mark.parametrize("method", ["random", "tpe"])
def test_what_is_drawn_lies_inside_its_ranges(plan: Callable[..., dict[str, Any]], tmp_path: Path, method: str) -> None:
    """Points are all different, inside their ranges, and the same again from the same seed."""
    asked = load(plan(parameters=RANGES, method=method, trials=3))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    studies = [study.open_study(asked, tmp_path / name, Recipe.model_validate(asked.recipe)) for name in ("a", "b")]
    drawn, again = ([one.ask(study.distributions(asked)).params for _ in range(3)] for one in studies)
    assert drawn == again and len({str(one) for one in drawn}) == 3 and all(map(_inside, drawn))


@pytest.mark.slow
def test_tpe_draws_from_ranges_and_asked_for_more_only_the_missing_trials_run(
    plan: Callable[..., dict[str, Any]], prefect_server: str
) -> None:
    """What is drawn does not depend on how many are asked for, so a sweep can be made longer."""
    first = sweep(plan(parameters=RANGES, method="tpe", trials=1, workers=1))
    more = sweep(plan(parameters=RANGES, method="tpe", trials=2, workers=1))
    same = [(one["parameters"], one["summary"]["folder"]) for one in (first["trials"][0], more["trials"][0])]
    drawn = [one["parameters"] for one in more["trials"]]
    assert same[0] == same[1] and len(drawn) == 2 and drawn[0] != drawn[1] and all(map(_inside, drawn))


def test_all_trials_failing_is_an_error(plan: Callable[..., dict[str, Any]], prefect_server: str) -> None:
    """A sweep that has nothing to show says why."""
    with pytest.raises(RunError, match="all 1 trials failed; the first"):
        sweep(plan(parameters={"data.validation": [5000]}))


def _die(marker: str) -> str:
    """Kills its process the first time."""
    if not Path(marker).exists():
        Path(marker).write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def _always_die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_work_of_a_killed_process_is_done_again(tmp_path: Path, prefect_server: str) -> None:
    """SIGKILL (or the kernel's out-of-memory killer) costs one process, not the sweep; what always dies is given up."""
    with workers.local(1) as crew:
        assert crew.submit(_die, str(tmp_path / "marker")).result(timeout=900) == "done"
        with pytest.raises(workers.Died, match="3 times"):
            crew.submit(_always_die).result(timeout=900)
        assert crew.submit(_die, str(tmp_path / "marker")).result(timeout=900) == "done"


@pytest.mark.slow
def test_a_killed_sweep_leaves_no_process_and_goes_on(
    plan: Callable[..., dict[str, Any]], prefect_server: str, tmp_path: Path
) -> None:
    """However it dies, its workers end with it; started again it finishes, with the trials that it had."""
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(plan(parameters={"stages.share.bits": [2, 3, 4]})))
    code = (
        "import sys; from pathlib import Path; from flows.sweeps import sweep; sweep.SWEEPS = Path(sys.argv[2]);"
        "from flows.__main__ import app; app(['sweep', sys.argv[1], '--json'])"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "sweeps")]
    environment = {**os.environ, "PREFECT_API_URL": prefect_server}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for how in (signal.SIGKILL, signal.SIGTERM):
        before = len(list(tmp_path.glob("runs/*/summary.json")))
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True, **pipes)
        deadline = time.monotonic() + 600
        while len(list(tmp_path.glob("runs/*/summary.json"))) <= before and time.monotonic() < deadline:
            time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
        process.communicate(timeout=900)
        _, alive = psutil.wait_procs(children, timeout=60)
        assert children and not alive, alive
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=900, check=False, **pipes)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["trials"]) == 3 and not [one for one in result["trials"] if one["error"]]
    assert len(list(tmp_path.glob("sweeps/*/study.log"))) == 1


@contextmanager
def _dask(folders: list[Path], environment: dict[str, str]) -> Iterator[str]:
    """A Dask scheduler and one worker a folder, as somebody else would have started them."""
    port = free_port()
    start = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    words = ["--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://127.0.0.1:{port}", "--nthreads", "1"]
    processes = []
    with ExitStack() as stack:
        for folder, command in [(folders[0], start + words), *((one, [*worker, "--no-dashboard"]) for one in folders)]:
            log = stack.enter_context((folder / "log").open("ab"))
            own = {**environment, "PYTHONPATH": ""}
            processes.append(
                subprocess.Popen(command, cwd=folder, env=own, stdout=log, stderr=log, start_new_session=True)
            )
        try:
            yield f"tcp://127.0.0.1:{port}"
        finally:
            for process in processes:
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_dask_workers_that_share_no_folder(
    plan: Callable[..., dict[str, Any]],
    tiny: Tiny,
    tmp_path: Path,
    prefect_server: str,
    mlflow_server: str,
    s3: str,
) -> None:
    """Workers of a foreign cluster get the code, the user's too, and share store and runs through S3 alone."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "mynets.py").write_text(
        "from deepcompression.models import digits_net\ndef net():\n    return digits_net()\n"
    )
    recipe = tiny(
        train={"epochs": 2},
        stages=STAGES,
        python_path=[str(tmp_path / "own")],
        model={"factory": "mynets:net"},
        store=f"{s3}/store",
        runs=f"{s3}/runs",
        tracking={"uri": mlflow_server, "experiment": "dask"},
    )
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        folder.mkdir()
    environment = {**os.environ, "PREFECT_API_URL": prefect_server, "OMP_NUM_THREADS": "1"}
    with _dask(folders, environment) as address:
        result = sweep(plan(recipe=recipe, runner="dask", dask={"address": address}, chosen=1))
    good = [one for one in result["trials"] if not one["error"]]
    assert len(good) == 3, result["trials"]
    assert {str(Path(one["summary"]["folder"]).is_relative_to(ROOT)) for one in good} == {"False"}
    assert sum("baseline" in one["summary"]["reused"] for one in good) == 2
    names = {info.name.rpartition("/")[2] for info in place_at(f"{s3}/runs").files("")}
    assert {"model.dcz", "report.html", "summary.json"} <= names
    assert place_at(f"{s3}/store").files("partial") == []


def test_another_version_on_a_worker_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What would fail in the middle of a trial, or give other bytes, is told before the first one."""

    class Client:
        def wait_for_workers(self, *_: Any, **__: Any) -> None:
            pass

        def run(self, function: Callable[[], dict[str, str]]) -> dict[str, dict[str, str]]:
            return {"tcp://far:1": {**function(), "torch": "1.0", "mlflow": "missing"}}

    with pytest.raises(RunError, match=r"tcp://far:1 has torch 1\.0 \(here .*mlflow missing") as told:
        workers._same_versions(Client())
    assert "\n" not in str(told.value)


def test_nobody_at_the_address_is_one_clear_error(
    plan: Callable[..., dict[str, Any]], prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster that is away is not waited for."""
    monkeypatch.setattr(workers, "ANSWERS", 1)
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(RunError, match="no scheduler answers"):
        sweep(plan(runner="dask", dask={"address": address}))


@pytest.mark.slow
def test_a_dask_worker_that_dies_in_a_trial_costs_no_trial(
    plan: Callable[..., dict[str, Any]], tiny: Tiny, tmp_path: Path, prefect_server: str
) -> None:
    """On a cluster of its own: the worker is replaced, the trial is done again and goes on from its last epoch."""
    recipe = tiny(train={"epochs": 60, "batch_size": 64}, stages=STAGES)
    killed: list[int] = []

    def kill() -> None:
        for how in (signal.SIGKILL, signal.SIGTERM):
            victims: set[int] = set()
            while not victims:
                time.sleep(0.1)
                if list(tmp_path.glob("store/partial/*/checkpoint.pt")):
                    pids = {one.facts["pid"] for one in leases(place_at(recipe["store"])) if one.key.startswith("run-")}
                    victims = pids - {os.getpid(), *killed}  # the sweep itself lives here
            killed.append(victims.pop())
            os.kill(killed[-1], how)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    parameters = {"stages.share.bits": [2, 3]}
    result = sweep(plan(recipe=recipe, parameters=parameters, runner="dask", workers=1, chosen=1))
    assert len(killed) == 2 and [one["error"] for one in result["trials"]] == [None, None]
    ends = [Path(path).read_text() for path in tmp_path.glob("runs/*/tracking.jsonl")]
    assert sum('"status": "KILLED"' in text for text in ends) == 2 and all('"kind": "finish"' in text for text in ends)


@pytest.mark.parametrize("metric", [math.nan, math.inf])
def test_a_trial_without_a_number_fails(metric: float) -> None:
    """It is told as failed, with the reason, and never reaches the study's memory, which is JSON."""
    told: dict[str, Any] = {}
    study = SimpleNamespace(tell=lambda trial, values=None, state=None: told.update(values=values, state=state))
    trial = SimpleNamespace(number=0, set_user_attr=told.__setitem__)
    sweeps._tell(study, trial, {"file_bytes": 5, "ratio": 2.0, "metric": "auc", "final": {"metric": metric}})
    assert told["values"] is None and told["state"].name == "FAIL" and "summary" not in told
    assert told["error"] == "its validation metric is not a number"


def test_trials_that_missed_their_aim_are_chosen_only_where_all_did(
    plan: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller and better file that missed its budget is on no front beside one that kept it; all missed is a miss."""
    monkeypatch.setattr(sweeps, "_read_test", lambda *arguments: None)
    monkeypatch.setattr(sweeps, "_prefect_artifacts", lambda *arguments: None)
    quiet: Any = SimpleNamespace(metrics=lambda values: None, artifact=lambda path: None, run_id=None)

    def trial(number: int, size: int, kept: bool) -> Trial:
        end = {"metric": 0.9, "higher_is_better": True}
        verdict = {"kept": kept, "text": f"{number} in words", "aims": [], "test": None}
        numbers = {"file_bytes": size, "dense_bytes": 9000, "ratio": 9000 / size, "metric": "accuracy"}
        return Trial(number, {}, summary={**numbers, "baseline": end, "final": end, "verdict": verdict})

    def finish(*trials: Trial) -> dict[str, Any]:
        return sweeps._finish(load(plan()), {}, trials, tmp_path, quiet, cast(Any, None))

    result = finish(trial(0, 100, False), trial(1, 200, True))
    assert [one["pareto"] for one in result["trials"]] == [False, True]
    with pytest.raises(AimMissed, match="aim missed: no trial of 2 kept what was asked for; trial 0: 0 in words"):
        finish(trial(0, 100, False), trial(1, 200, False))
