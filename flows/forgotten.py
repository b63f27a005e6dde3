"""Runs that are deleted: their folders, their MLflow runs and their Prefect flow runs, together."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from deepcompression._atomic import storage_error
from deepcompression.errors import DeepCompressionError, one_line
from flows import history, upkeep
from tasks.console import say, size
from tasks.root import ROOT
from tasks.storage.store import file_digest
from tasks.tracking.runs import JOURNAL, Tracker

TOUCHED = ("recipe.yaml", "summary.json", JOURNAL)  # whose time says when a run was last at work


@dataclass(frozen=True)
class Old:
    """A run that is to go: its folder and what that takes, its MLflow run, its Prefect flow run."""

    folder: Path
    bytes: int
    tracker: Tracker
    flow_run: str | None


def forget(
    where: str, runs: str, older: str, uri: str, prefect: Callable[[], AbstractContextManager[object]], *, dry_run: bool
) -> list[str]:
    """Deletes runs that were last at work so long ago, and says which; the folder last, so that what is interrupted can
    be done again. What lives, what a champion is of, and what a tracking server has not got yet, stays.

    Args:
        where: the store, which knows what lives.
        runs: the folder that they lie in.
        older: such as 30d.
        uri: the MLflow server or database that knows the champions.
        prefect: a server is there while it lasts.
        dry_run: only tells.

    Returns:
        A line for each that could not be deleted.

    Raises:
        RecipeError: the time cannot be read.
        RunError: the registry does not answer: then nothing is deleted.
    """
    home = ROOT / runs
    old = [folder for folder in history.folders(home) if _age(folder) > upkeep.seconds(older)]
    going, kept = _parted(old, where, uri) if old else ([], Counter())
    stays = ", ".join(f"{count} {reason}" for reason, count in kept.items())
    for one in going if dry_run else ():
        say(f"would delete {one.folder.name}, {size(one.bytes)}")
    ids = _whole_flow_runs(going, home)
    failed = [] if dry_run or not going else _deleted(going, ids, prefect)
    done = len(going) - len(failed)
    verb = "would delete" if dry_run else "deleted"
    say(
        f"{verb} {done} runs older than {older} in {home}, in MLflow and in Prefect, "
        f"{size(sum(one.bytes for one in going))}{f'; stays: {stays}' if stays else ''}"
    )
    return failed


def _age(folder: Path) -> float:
    """Seconds since a run was last at work."""
    times = [(folder / name).stat().st_mtime for name in TOUCHED if (folder / name).exists()]
    return time.time() - max(times)


def _parted(old: Sequence[Path], where: str, uri: str) -> tuple[list[Old], Counter[str]]:
    """What goes, and how many stay for which reason."""
    from tasks.registry.models import champion_files

    live, champions = upkeep.live_names(where), champion_files(uri)
    going: list[Old] = []
    kept: Counter[str] = Counter()
    for folder in old:
        tracker = _tracker(folder, uri)
        if why := _stays(folder, tracker, live, champions):
            kept[why] += 1
        else:
            held = sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())
            going.append(Old(folder, held, tracker, flow_run_of(folder)))
    return going, kept


def _tracker(folder: Path, uri: str) -> Tracker:
    """With the address that the run's recipe names; of one that names none that can be read, the usual one."""
    with contextlib.suppress(DeepCompressionError):
        return upkeep.tracker_of(folder, None)
    return Tracker(str(folder), uri, "")


def _stays(folder: Path, tracker: Tracker, live: Collection[str], champions: Collection[str]) -> str:
    file = folder / "model.dcz"
    if folder.name in live:
        return "live"
    if champions and file.is_file() and file_digest(file) in champions:
        return "a champion's"
    return "not sent to MLflow yet (python -m flows sync)" if tracker.unsent() else ""


def flow_run_of(folder: Path) -> str | None:
    """The Prefect flow run that a run was part of, by its journal."""
    with contextlib.suppress(*history.DAMAGED), (folder / JOURNAL).open(encoding="utf-8") as journal:
        return str(json.loads(journal.readline())["tags"]["prefect.flow_run_id"]) or None
    return None


def _whole_flow_runs(going: Sequence[Old], home: Path) -> set[str]:
    """Flow runs of which no other folder is left: several seeds are one."""
    names = {one.folder.name for one in going}
    others = {flow_run_of(folder) for folder in history.folders(home) if folder.name not in names}
    return {one.flow_run for one in going if one.flow_run} - {one for one in others if one}


def _deleted(going: Sequence[Old], ids: set[str], prefect: Callable[[], AbstractContextManager[object]]) -> list[str]:
    with prefect() if ids else contextlib.nullcontext():
        return [line for one in going for line in _delete(one, ids)]


def _delete(one: Old, ids: set[str]) -> list[str]:
    """Deletes a run in Prefect, in MLflow, and its folder; a line where that fails."""
    from tasks.tracking.client import forget as forget_in_mlflow

    try:
        if one.flow_run in ids:
            _delete_flow_run(str(one.flow_run))
            ids.discard(str(one.flow_run))
        if run_id := one.tracker.run_id:
            forget_in_mlflow(one.tracker.uri, run_id)
        shutil.rmtree(one.folder)
    except OSError as error:
        return [str(storage_error(one.folder, error))]
    except Exception as error:  # whatever a server or its client throws
        return [f"run {one.folder.name} stays: {type(error).__name__}: {one_line(error)[:160]}"]
    say(f"deleted {one.folder.name}, {size(one.bytes)}")
    return []


def _delete_flow_run(flow_run: str) -> None:
    from uuid import UUID

    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with contextlib.suppress(ObjectNotFound), get_client(sync_client=True) as client:
        client.delete_flow_run(UUID(flow_run))
