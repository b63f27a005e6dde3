"""The main flow: baseline, the recipe's stages, verification, one tracked task each."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import Task, flow
from prefect.runtime import deployment, flow_run
from prefect.states import Completed, Failed, State
from prefect.utilities.annotations import quote
from rich.markup import escape

from deepcompression.errors import AimMissed, ExportError, InputError, InvariantError, one_line
from flows import watchdog
from flows.budget import search
from flows.checked import refuse, start_of
from flows.folders import new_folder, store_of
from flows.overdue import skip_missed
from flows.recipe import load as recipes
from flows.recipe import merge, rounds
from flows.recipe.schema import Recipe
from flows.recipe.stored import as_logged, as_stored
from flows.runs import run_of
from flows.summary import SUMMARY_VERSION, leave, spread_of, summary_of
from tasks.console import say
from tasks.difference import difference
from tasks.execution.allocated import with_found
from tasks.execution.run import Reference, Run
from tasks.execution.stage import task_of
from tasks.execution.warned import kept
from tasks.export_settings import Export
from tasks.exports import export
from tasks.machine.revision import git_revision
from tasks.registry.promote import judged_aims, promote
from tasks.report.seeds import write_seeds
from tasks.report.words import closing, sentence
from tasks.secrets import restored, sealed
from tasks.stages.verify import verify
from tasks.storage.places import is_url, place_at
from tasks.storage.store import UNSENT, publish, write_json
from tasks.tracking.client import resolve_uri
from tasks.tracking.results import results_of_seeds
from tasks.tracking.runs import Parent, Tracker
from tasks.upkeep.liveness import ending, living, recover
from tasks.verdict import aims_in, budget_aims, emit_missed, missed, told, verdict_of, verdict_of_seeds

HIDDEN = Run | Reference | list | dict  # what Prefect would look into for results of other tasks


def _flow_run_name() -> str:
    """The recipe's name, as its folder and its MLflow run have it; the file's where it cannot be read here."""
    source, overrides = flow_run.parameters.get("recipe"), flow_run.parameters.get("overrides")
    name = Path(str(source)).stem if isinstance(source, str) else "recipe"
    if isinstance(source, Mapping) or not is_url(str(source)):
        with contextlib.suppress(InputError):
            said = merge.merge(source or {}, overrides)[0].get("name")
            name = said if isinstance(said, str) else name
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"


@flow(name="compress", flow_run_name=_flow_run_name, validate_parameters=False)
def compress(
    recipe: str | dict[str, Any], overrides: dict[str, Any] | None = None, parent: Parent | None = None
) -> dict[str, Any] | State[dict[str, Any]]:
    """Runs Deep Compression as the recipe says and returns the summary; in a state named NotPromoted where the file
    did not become the champion: it lost against it, the registry was away, or the model could not be handed over.

    Args:
        recipe: path or URL of a YAML file, or the mapping itself.
        overrides: dotted key -> value, such as {"seed": 3, "stages.prune.density": 0.05}.
        parent: the MLflow run of which this one is a child (a sweep's trial); leave it out otherwise.

    Raises:
        InputError: the recipe, or what it names, is wrong.
        RunError: a stage failed; finished stages are kept, and the same call goes on from there.
        AimMissed: the budget, or a gate of ``promote`` that is no champion's, was not kept, by any one seed. The file
            and the report are there, the error has the ``summary``; the state is Failed, named AimMissed, and is
            never retried, since the same recipe would miss again.
    """
    try:
        with _announced():
            summary = _run(recipe, overrides, parent)
    except AimMissed as error:
        _no_retries()
        return Failed(name="AimMissed", message=str(error), data=error)
    refused = any(_refused(one) for one in summary.get("runs", [summary]))
    return Completed(name="NotPromoted" if refused else None, message=closing(summary), data=summary)


def _no_retries() -> None:
    """Retries are for what may go better the next time; Prefect's server decides by what the flow run itself says."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.objects import FlowRunPolicy

    if not flow_run.id:
        return
    with contextlib.suppress(Exception), get_client(sync_client=True) as client:  # a server that is away
        client.update_flow_run(UUID(str(flow_run.id)), empirical_policy=FlowRunPolicy(retries=0))


@contextlib.contextmanager
def _announced() -> Iterator[None]:
    """Of a deployment's run: when it began and how it ended, in a log that holds those of many nights."""
    if deployment.id is None:
        yield
        return
    name = f"{escape(str(deployment.name))}, {escape(str(flow_run.name))}"
    say(f"[bold]{time.strftime('%F %T')}  {name} begins[/]")
    try:
        yield
    except BaseException as error:
        reason = one_line(error) or type(error).__name__
        say(f"[red]{time.strftime('%F %T')}  {name} failed: {escape(reason)}[/]")
        raise
    say(f"{time.strftime('%F %T')}  {name} ended")


@sealed
def _run(recipe: str | dict[str, Any], overrides: dict[str, Any] | None, parent: Parent | None) -> dict[str, Any]:
    recipe, overrides = restored(recipe), restored(overrides)
    parsed = recipes.load(recipe, overrides)
    stored = as_stored(parsed, recipe, overrides)
    recover(store_of(parsed).place, resolve_uri(parsed.tracking.uri))
    skip_missed(flow_run.id)
    if parsed.seeds is None:
        assert parsed.seed is not None
        return _run_seed(parsed, stored, parsed.seed, parent)
    return _run_seeds(parsed, stored, parsed.seeds, parent)


def _refused(summary: Mapping[str, Any]) -> bool:
    """Whether gates kept a file from being promoted; one that already is the champion was not refused."""
    gates = (summary.get("promotion") or {}).get("gates", [])
    return any(not gate["passed"] and gate["gate"] != "new_file" for gate in gates)


def _run_seeds(parsed: Recipe, stored: dict[str, Any], seeds: Sequence[int], parent: Parent | None) -> dict[str, Any]:
    """Each seed is a run of its own, a child of one MLflow parent; then mean, worst and spread."""
    folder = new_folder(parsed, stored)
    with _living(parsed, stored, folder, parent) as tracker:
        summaries = []
        for seed in seeds:
            say(f"[bold]seed {seed}[/]")
            one = {**stored, "seed": seed, "seeds": None}
            summaries.append(_whatever_came(parsed, one, seed, tracker.as_parent()))
        summary = {
            "summary_version": SUMMARY_VERSION,
            "name": parsed.name,
            "seeds": list(seeds),
            "runs": summaries,
            "dense_bytes": summaries[0]["dense_bytes"],
            **spread_of(summaries),
            "verdict": verdict_of_seeds(summaries),
            "folder": str(folder),
            "mlflow_run_id": tracker.run_id,
        }
        tracker.metrics(results_of_seeds(summary))
        write_json(folder / "summary.json", summary)
        write_seeds(summary, folder / "report.html")
        watchdog.done(summary)
        tracker.artifact(folder / "summary.json")
        _judge(tracker, summary)
    return summary


def _whatever_came(parsed: Recipe, stored: dict[str, Any], seed: int, parent: Parent) -> dict[str, Any]:
    """A seed's summary, also where it missed an aim: the other seeds are run all the same."""
    try:
        return _run_seed(parsed, stored, seed, parent)
    except AimMissed as error:
        return error.summary


def _judge(tracker: Tracker, summary: Mapping[str, Any]) -> None:
    """The verdict as a tag; AimMissed, which ends the MLflow run as FAILED, where an aim was missed."""
    if verdict := summary["verdict"]:
        tracker.tags({"verdict": told(verdict)[:5000]})
    if missed(summary):
        raise AimMissed(told(summary["verdict"]), summary)


def _run_seed(parsed: Recipe, stored: dict[str, Any], seed: int, parent: Parent | None) -> dict[str, Any]:
    folder = new_folder(parsed, stored)
    with _living(parsed, stored, folder, parent) as tracker:
        run, stages = run_of(parsed, seed, folder, tracker), rounds.expand(parsed)
        start = start_of(run.model, parsed.train)
        refuse(run, parsed, stored)
        if parsed.teacher:
            taught = replace(run, model=run.teacher)
            first = start_of(taught.model, parsed.teacher.train)
            run = replace(run, taught_by=_call(task_of("baseline"), taught, "teacher", None, first))
        references = [_call(task_of("baseline"), run, "baseline", 0, start)]
        if not parsed.teacher:
            run = replace(run, taught_by=references[0])
        outcome = None
        if parsed.budget:
            references, outcome = search(run, parsed, references[0], _call)
        for number, (label, settings) in enumerate(stages, 1):
            settings = with_found(run, settings, references)
            references.append(_call(task_of(settings.stage), run, label, number, settings, references[-1]))
        path = folder / "model.dcz"
        verified = _call(verify, run, "verify", references[0], references[-2], references[-1], str(path), parsed.test)
        _call(difference, run, "difference", references[0], references[1:-1], after=verified)
        summary = {**summary_of(run, references, verified, path), **({"budget": outcome} if outcome else {})}
        ends = references[0], references[-1]
        if parsed.aims:
            summary["aims"] = judged_aims(run, parsed.aims.model_dump(), *ends, str(path))
        exported, failed = exports_of(run, parsed.export, str(path), summary["final"], references[0], verified)
        summary |= {"exports": exported, "warnings": kept(run.folder)} if parsed.export else {}
        if parsed.promote:
            gates = parsed.promote.model_dump(mode="json")
            aims = [*aims_in(summary), *budget_aims(outcome)]
            summary["promotion"] = _call(promote, run, "promote", gates, *ends, str(path), aims, after=verified)
        summary["verdict"] = verdict_of(summary)
        leave(run, references, summary, stored, alone=parsed.seeds is None)
        if failed is not None:
            raise failed
        if missed(summary):
            emit_missed(summary)
        if deployment.id is not None:  # who typed a command gets a table from it
            say(f"{escape(sentence(summary))} {escape(summary['file'])}")
        _judge(tracker, summary)
    return summary


def exports_of(
    run: Run,
    exports: Sequence[Export],
    path: str,
    final: Mapping[str, Any],
    dense: Reference | None,
    after: Any = None,
) -> tuple[list[dict[str, Any]], ExportError | InvariantError | None]:
    """What each target gave, or why not; and the first that failed, to be raised when the run has left its results.

    Args:
        run: the run.
        exports: the targets.
        path: its ``.dcz``.
        final: what verify found of that.
        dense: the dense net, which each is timed beside; None where the store has it no more.
        after: the result of the task behind which these are.
    """
    rows: list[dict[str, Any]] = []
    failed = None
    for one in exports:
        try:
            rows.append(_call(export, run, f"export-{one.to}", one, path, final, dense, after=after))
        except (ExportError, InvariantError) as error:
            rows.append({"target": one.to, "error": str(error)})
            failed = failed or error
    return rows, failed


def _call(task: Task[..., Any], *arguments: Any, after: Any = None) -> Any:
    """A task's result, whether it worked or was reused; its own exception if it failed.

    Prefect draws it behind ``after``, another's result, or behind the stage whose reference comes last: not behind all
    that the run, or an argument, mentions.
    """
    places = [place for place, one in enumerate(arguments) if isinstance(one, Reference)]
    seen = places[-1:] if after is None else []
    hidden = [isinstance(one, HIDDEN) and place not in seen for place, one in enumerate(arguments)]
    given = [quote(one) if hide else one for one, hide in zip(arguments, hidden, strict=True)]
    return task(*given, wait_for=None if after is None else [after], return_state=True).result()


@contextlib.contextmanager
def _living(parsed: Recipe, stored: Mapping[str, Any], folder: Path, parent: Parent | None) -> Iterator[Tracker]:
    """Tracks a run while the block works, says that it lives, and ends it as the block ends, whatever happens."""
    tracker, store = _open_tracker(parsed, stored, folder, parent), store_of(parsed)
    try:
        with ending(tracker), living(store.place, tracker, str(flow_run.id) if flow_run.id else None):
            yield tracker
    finally:
        if tracker.unsent():
            publish(folder, store.place, f"{UNSENT}/{folder.name}")
        if is_url(parsed.runs):
            publish(folder, place_at(parsed.runs), folder.name)


def _open_tracker(parsed: Recipe, stored: Mapping[str, Any], folder: Path, parent: Parent | None) -> Tracker:
    tracker = Tracker(str(folder), resolve_uri(parsed.tracking.uri), parsed.tracking.experiment)
    text = json.dumps(stored, sort_keys=True)
    tags = {
        "recipe.digest": hashlib.sha256(text.encode()).hexdigest(),
        "run.folder": str(folder),
        "prefect.flow_run_id": str(flow_run.id or ""),
        "prefect.flow_run_name": str(flow_run.name or ""),
        "mlflow.source.name": "flows/compress.py:compress",
        "mlflow.source.git.commit": git_revision(),
    }
    tracker.start(_called(folder.name, parsed, stored), {key: value for key, value in tags.items() if value}, parent)
    labelled = as_logged(parsed, stored)
    recipe = {key: value for key, value in stored.items() if key != "name"}  # a run's name, not what it was told
    tracker.params({**recipe, "stages": list(labelled), **labelled})
    tracker.artifact(folder / "recipe.yaml")
    return tracker


def _called(folder: str, parsed: Recipe, stored: Mapping[str, Any]) -> str:
    """An MLflow run's name, which in a narrow column differs from that of others: 0c60 digits 20261127-000824."""
    stamp = folder.removeprefix(f"{parsed.name}-")
    when, _, drawn = stamp.rpartition("-")
    seed = f", seed {stored['seed']}," if parsed.seeds and stored.get("seeds") is None else ""
    return f"{drawn} {parsed.name}{seed} {when}"
