"""Sweeps: many runs of one recipe, chosen among by size and validation; the test split is read for the chosen alone."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Completed, Failed, State

from deepcompression.errors import AimMissed, RunError
from flows import watchdog
from flows.recipe import load as recipes
from flows.recipe import merge
from flows.recipe.schema import Recipe
from flows.sweeps.checked import asked, load
from flows.sweeps.study import (
    Sweep,
    Trial,
    as_overrides,
    distributions,
    failed,
    finished,
    open_study,
    points_to_try,
)
from flows.sweeps.workers import Crew, Died, local, on_dask, run_trial
from tasks.console import bar, say
from tasks.execution.sources import code_digest
from tasks.report.pareto import Latency, Point, front, picture, spread_out
from tasks.root import ROOT
from tasks.secrets import hidden, masked, restored, sealed
from tasks.stages import OTHERS, STAGES
from tasks.storage.places import is_url
from tasks.storage.store import Store, write_json
from tasks.tracking.client import resolve_uri
from tasks.tracking.runs import Tracker
from tasks.upkeep.liveness import ending, living, recover
from tasks.verdict import missed, told

SWEEPS = ROOT / "artifacts" / "sweeps"


def _name() -> str:
    source = flow_run.parameters.get("sweep_")
    name = source.get("name", "sweep") if isinstance(source, Mapping) else Path(str(source)).stem
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


@flow(name="sweep", flow_run_name=_name, validate_parameters=False)
def sweep(
    sweep_: str | dict[str, Any], overrides: dict[str, Any] | None = None
) -> dict[str, Any] | State[dict[str, Any]]:
    """Runs all trials of a sweep and returns its result. Started again, it goes on where it was.

    Args:
        sweep_: path or URL of a YAML file, or the mapping itself.
        overrides: dotted key -> value, of the sweep's own keys.

    Raises:
        InputError: the sweep, its recipe, or a key of its parameters is wrong.
        AimMissed: trials were made, and every one missed its budget; ``summary`` is the result. A trial that did is
            never chosen while another did not.
        RunError: not one trial succeeded; or the cluster's workers have other versions.
    """
    result = _sweep(restored(sweep_), restored(overrides))
    return result if isinstance(result, State) else Completed(message=_closing(result), data=result)


def _closing(result: Mapping[str, Any]) -> str:
    """How a sweep ended, in a line, as the state of its Prefect run says it."""
    front = [trial["summary"] for trial in result["trials"] if trial["pareto"]]
    failed = sum(bool(trial["error"]) for trial in result["trials"])
    ratios = [summary["ratio"] for summary in front] or [1.0]
    told = (
        f"{len(result['trials'])} trials, {len(front)} of them on the front: {min(ratios):.1f}x to {max(ratios):.1f}x"
    )
    return f"{told} smaller{f'; {failed} failed' if failed else ''}."


@sealed
def _sweep(source: str | dict[str, Any], overrides: dict[str, Any] | None) -> dict[str, Any]:
    plan = load(source, overrides)
    raw = merge.raw(plan.recipe, plan.overrides)
    parsed = recipes.load(raw)
    folder = SWEEPS / f"{plan.name}-{_digest(plan, raw)[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    recover(_place(parsed), resolve_uri(parsed.tracking.uri))
    tracker = _open(plan, parsed, folder)
    alive = living(_place(parsed), tracker, str(flow_run.id) if flow_run.id else None)
    try:
        with ending(tracker), alive, _crew(plan, parsed) as crew:
            trials = _search(plan, raw, folder, tracker, crew)
            return _finish(plan, raw, trials, folder, tracker, crew)
    except AimMissed as error:
        return Failed(name="AimMissed", message=str(error), data=error)


def _place(parsed: Recipe) -> Any:
    return Store(parsed.store if is_url(parsed.store) else ROOT / parsed.store).place


def _digest(plan: Sweep, raw: Mapping[str, Any]) -> str:
    """What makes trials comparable: started again with any of it changed, it is another sweep."""
    ours = plan.model_dump(mode="json", include={"parameters", "method", "seed", *(["export"] if plan.export else [])})
    text = json.dumps([ours, raw, code_digest(*STAGES.values(), *OTHERS.values())], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _open(plan: Sweep, parsed: Recipe, folder: Path) -> Tracker:
    tracker = Tracker(str(folder), resolve_uri(parsed.tracking.uri), parsed.tracking.experiment)
    if tracker.run_id is None:
        tags = {"sweep.method": plan.method, "prefect.flow_run_id": str(flow_run.id or ""), "run.folder": str(folder)}
        tracker.start(folder.name, {key: value for key, value in tags.items() if value})
        tracker.params(plan.model_dump(mode="json", include={"name", "method", "trials", "seed", "parameters"}))
    return tracker


def _crew(plan: Sweep, parsed: Recipe) -> Any:
    if plan.runner == "dask":
        return on_dask(plan.dask.address, plan.workers, parsed)
    return local(plan.workers)


# ---------------------------------------------------------------- searching


def _search(plan: Sweep, raw: dict[str, Any], folder: Path, tracker: Tracker, crew: Crew) -> list[Trial]:
    """Runs what is missing; returns all trials that there are, those of earlier starts too."""
    study = open_study(plan, folder, recipes.load(raw))
    todo, done = points_to_try(plan, study), finished(plan, study)
    total = len(todo) if plan.method == "grid" else int(plan.trials or 0) - len(done)
    if done:
        say(f"{len(done)} trials are done already; {max(total, 0)} to go, in {folder}")
    for parameters in todo:
        study.enqueue_trial(parameters)
    running: dict[Future[Any], Any] = {}
    asked = 0
    with bar("trials", total) as advance:
        while asked < total or running:
            while asked < total and len(running) < crew.size:
                trial = study.ask(distributions(plan))
                asked += 1
                running[_submit(plan, raw, trial, tracker, crew)] = trial
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                trial = running.pop(future)
                advance(_tell(study, trial, _answer(future)))
    return finished(plan, study) + failed(plan, study)


def _submit(plan: Sweep, raw: dict[str, Any], trial: Any, tracker: Tracker, crew: Crew) -> Future[Any]:
    name = f"{plan.name}-{trial.number:03d}"
    changes = {**as_overrides(plan, trial.params), "name": name, "test": False, "promote": None}
    changes |= {"export": asked(plan)}
    return crew.submit(run_trial, raw, changes, tracker.as_parent())


def _answer(future: Future[Any]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = future.result()
        return answer
    except Died as error:
        return {"error": str(error)}


def _tell(study: Any, trial: Any, answer: Mapping[str, Any]) -> str:
    from optuna.trial import TrialState

    values = None
    if "error" not in answer and math.isfinite(answer["final"]["metric"]):
        trial.set_user_attr("summary", hidden(answer))
        values = [answer["file_bytes"], answer["final"]["metric"]]
    if values is None:
        reason = masked(answer.get("error") or "its validation metric is not a number")
        trial.set_user_attr("error", reason)
        study.tell(trial, state=TrialState.FAIL)
        say(f"[yellow]trial {trial.number} failed:[/] {reason}")
        return "a trial failed"
    study.tell(trial, values)
    return f"{answer['ratio']:.1f}x at {answer['metric']} {answer['final']['metric']:.4f}"


# ---------------------------------------------------------------- choosing


def _finish(
    plan: Sweep, raw: dict[str, Any], trials: Sequence[Trial], folder: Path, tracker: Tracker, crew: Crew
) -> dict[str, Any]:
    good = [trial for trial in trials if not trial.error]
    if not good:
        first = trials[0].error if trials else "there was nothing to try"
        raise RunError(f"sweep {plan.name}: all {len(trials)} trials failed; the first: {first}")
    points = [_point(trial) for trial in good]
    kept = [_point(trial) for trial in good if not missed(trial.summary)]
    best = front(kept or points, higher=bool(good[0].summary["final"]["higher_is_better"]))
    chosen = spread_out(best, plan.chosen)
    _read_test(plan, raw, [trial for trial in good if trial.number in {one.number for one in chosen}], tracker, crew)
    result = {**_result(plan, trials, {one.number for one in best}, folder, tracker), "verdict": _verdict(good, kept)}
    write_json(folder / "sweep.json", result)
    tested = {trial.number: trial.test for trial in good if trial.test}
    path, said = folder / "pareto.svg", {trial.number: _said(plan, trial) for trial in good}
    picture(points, best, tested, result, path, latency=_latency(plan, good), told=said)
    watchdog.done(result)
    tracker.metrics(
        {
            "trials": len(trials),
            "failed_trials": len(trials) - len(good),
            "best_ratio": max(trial.summary["ratio"] for trial in good),
            "dense_bytes": good[0].summary["dense_bytes"],
        }
    )
    for name in ("sweep.json", "pareto.svg"):
        tracker.artifact(folder / name)
    _prefect_artifacts(plan, result)
    if missed(result):
        raise AimMissed(told(result["verdict"]), result)
    return result


def _said(plan: Sweep, trial: Trial) -> str:
    """What a trial was made with, in a line."""
    said = [(key.removeprefix("stages."), plan.label(key, value)) for key, value in trial.parameters.items()]
    return ", ".join(value if key == "stages" else f"{key} {value}" for key, value in said)


def _verdict(good: Sequence[Trial], kept: Sequence[Point]) -> dict[str, Any] | None:
    """None where trials kept their aims, or had none; a miss where all missed theirs, with the first one's words."""
    if kept:
        return None
    first = f"trial {good[0].number}: {good[0].summary['verdict']['text']}"
    text = f"no trial of {len(good)} kept what was asked for; {first}"
    return {"kept": False, "text": text, "aims": [], "test": None}


def _latency(plan: Sweep, trials: Sequence[Trial]) -> Latency | None:
    """Milliseconds of the first export that was timed, by trial."""
    for target in (one.to for one in plan.export):
        found = {one.number: _exports(one.summary).get(target, {}).get("latency_ms") for one in trials}
        if times := {number: float(ms) for number, ms in found.items() if ms}:
            return Latency(target, times)
    return None


def _exports(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {one["target"]: one for one in summary.get("exports") or []}


def _point(trial: Trial) -> Point:
    return Point(trial.number, trial.summary["file_bytes"], trial.summary["final"]["metric"])


def _read_test(plan: Sweep, raw: dict[str, Any], chosen: Sequence[Trial], tracker: Tracker, crew: Crew) -> None:
    """The chosen once more, every stage reused, with the test split read and a report."""
    futures = {}
    for trial in chosen:
        name = f"{plan.name}-{trial.number:03d}-chosen"
        changes = {**trial.parameters, "name": name, "test": True, "promote": None, "export": []}
        futures[crew.submit(run_trial, raw, changes, tracker.as_parent())] = trial
    for future, trial in futures.items():
        answer = _answer(future)
        if "error" in answer:
            say(f"[yellow]test of trial {trial.number} failed:[/] {answer['error']}")
        else:
            trial.test = answer


def _result(plan: Sweep, trials: Sequence[Trial], best: set[int], folder: Path, tracker: Tracker) -> dict[str, Any]:
    first = next(trial.summary for trial in trials if not trial.error)
    return {
        "sweep_version": 1,
        "name": plan.name,
        "method": plan.method,
        "metric": first["metric"],
        "higher_is_better": first["final"]["higher_is_better"],
        "dense_bytes": first["dense_bytes"],
        "dense_val_metric": first["baseline"]["metric"],
        "parameters": list(plan.parameters),
        "trials": [
            {
                **asdict(trial),
                "labels": {key: plan.label(key, value) for key, value in trial.parameters.items()},
                "pareto": trial.number in best,
            }
            for trial in trials
        ],
        "folder": str(folder),
        "mlflow_run_id": tracker.run_id,
        "prefect_flow_run_id": str(flow_run.id) if flow_run.id else None,
    }


def _prefect_artifacts(plan: Sweep, result: Mapping[str, Any]) -> None:
    from prefect.artifacts import create_table_artifact

    if flow_run.id:
        rows = [{**trial["labels"], **_figures(trial)} for trial in result["trials"]]
        create_table_artifact(
            key="sweep", table=hidden(rows), description=f"{plan.name}: size and validation of every trial"
        )


def _figures(trial: Mapping[str, Any]) -> dict[str, Any]:
    summary = trial["summary"]
    if not summary:
        return {"trial": trial["number"], "error": trial["error"]}
    tested = trial["test"]["final"]["metric"] if trial["test"] else None
    exports = {
        f"{target} {name}": one.get(key)
        for target, one in _exports(summary).items()
        for name, key in (("bytes", "bytes"), ("ms", "latency_ms"), ("times as fast as dense", "times_as_fast"))
    }
    return {
        "trial": trial["number"],
        "bytes": summary["file_bytes"],
        "ratio": round(summary["ratio"], 2),
        "val": summary["final"]["metric"],
        **exports,
        "test": tested,
        "pareto": trial["pareto"],
    }
