"""What needs doing between runs: sending what a tracking server missed, and looking after the store."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from deepcompression.errors import DeepCompressionError, RecipeError
from flows import history
from flows.recipe import load as recipes
from flows.recipe.schema import Tracking
from tasks.console import say, size
from tasks.root import ROOT
from tasks.storage.lease import leases
from tasks.storage.places import Near, is_url
from tasks.storage.store import UNSENT, Store
from tasks.tracking.client import resolve_uri
from tasks.tracking.journal import MOST_BYTES
from tasks.tracking.runs import JOURNAL, Tracker, masked
from tasks.upkeep import eviction
from tasks.upkeep.liveness import PREFIX

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,150}")  # a run's folder
SAME = "${oc.env:MLFLOW_TRACKING_URI}"  # in a recipe of another machine it means that machine's; both use one server
SCALES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def seconds(text: str) -> float:
    """``30d``, ``12h``, ``90m`` as seconds.

    Raises:
        RecipeError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip())
    if not found:
        raise RecipeError(f"{text!r}: expected a time such as 90m, 12h, 30d or 8w")
    return float(found[1]) * UNITS[found[2]]


def byte_count(text: str) -> int:
    """``10GB``, ``500 MB`` as bytes (powers of 1,000).

    Raises:
        RecipeError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)", text.strip(), re.IGNORECASE)
    if not found:
        raise RecipeError(f"{text!r}: expected a size such as 500MB or 10GB")
    return int(float(found[1]) * SCALES[found[2].upper()])


def sync(words: Sequence[str], runs: str, store: str, uri: str | None) -> list[str]:
    """Sends what tracking servers did not get, of the runs named or of all; parents before their children.

    Args:
        words: folders or names of runs; none for all below ``runs``, and all that the store keeps for other machines.
        runs: where runs lie.
        store: the store; what it keeps below ``unsent/`` is sent too.
        uri: the server, where it is not that of the run's recipe.

    Returns:
        A line for each server that still does not answer.

    Raises:
        RecipeError: one of ``words`` is no run's folder.
    """
    home = ROOT / runs
    named = [path if (path := Path(word)).is_dir() else home / word for word in words]
    missing = [str(path) for path in named if not (path / JOURNAL).is_file()]
    if missing:
        raise RecipeError(f"{missing[0]}: not the folder of a run (there is no {JOURNAL})")
    opened, count = _open(store), 0
    live = _live_names(opened)
    with tempfile.TemporaryDirectory() as borrowed:
        own = [path.parent for path in home.glob(f"*/{JOURNAL}")]
        others, failures = ([], []) if named else _left_by_others(opened, {one.name for one in own}, Path(borrowed))
        folders = named or [*own, *others]
        for folder in sorted((one for one in folders if one.name not in live), key=_childish):
            theirs = folder in others or _in_store(folder, opened)
            try:
                tracker = _their_tracker(folder, uri, own) if theirs else tracker_of(folder, uri)
                sent = tracker.sync(theirs)
            except DeepCompressionError as error:
                failures.append(str(error))
                continue
            opened.place.clear(f"{UNSENT}/{folder.name}")
            count += sent
            if sent:
                say(f"{folder.name}: {sent} records sent")
    if not count and not failures:
        say("nothing to send: MLflow has everything of these runs")
    return failures


def live_names(where: str) -> set[str]:
    """Names of the runs that live, by the leases in a store."""
    return _live_names(_open(where))


def _live_names(store: Store) -> set[str]:
    return {one.key.removeprefix(PREFIX) for one in leases(store.place) if one.alive}


def _open(where: str) -> Store:
    return Store(where if is_url(where) else ROOT / where)


def _childish(folder: Path) -> bool:
    try:
        with (folder / JOURNAL).open(encoding="utf-8") as journal:
            return bool(json.loads(journal.readline(MOST_BYTES)).get("parent"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return True


def _left_by_others(store: Store, known: set[str], borrowed: Path) -> tuple[list[Path], list[str]]:
    """Folders of runs of other machines, fetched from the store; and a line for each that is not taken."""
    names, refused = dict[str, bool](), list[str]()
    for info in store.place.files(UNSENT):
        run, _, rest = info.name.removeprefix(f"{UNSENT}/").partition("/")
        if run in known or not names.get(run, True):
            continue
        try:
            _check_own(store, run, rest)
            store.place.fetch(info.name, borrowed / run / rest)
            names[run] = True
        except (DeepCompressionError, OSError) as error:
            names[run] = False
            refused.append(f"{UNSENT}/{run[:100]!r} in {store.place.where} is not sent: {error}")
    return [borrowed / name for name, whole in sorted(names.items()) if whole], refused


def _check_own(store: Store, run: str, rest: str) -> None:
    """A file below ``unsent/`` must be a run's own: its name leads nowhere else, and no link does.

    Raises:
        RecipeError: it is not.
    """
    if not RUN.fullmatch(run) or not rest or any(not part or part.startswith(".") for part in rest.split("/")):
        raise RecipeError(f"{rest[:100]!r}: expected the name of a run's folder, and of a file in it")
    if isinstance(store.place, Near):
        folder = store.place.root / UNSENT / run
        if (folder / rest).resolve() != folder.parent.resolve() / run / rest:
            raise RecipeError(f"{rest[:100]!r} is a link, or lies behind one")


def _in_store(folder: Path, store: Store) -> bool:
    """Whether a folder that you named is the store's: others write there."""
    return isinstance(store.place, Near) and folder.resolve().is_relative_to(store.place.root.resolve())


def tracker_of(folder: Path, uri: str | None) -> Tracker:
    """With the address that the run's recipe names; passwords are read from the environment, as in the run."""
    resolved = recipes.resolve(_tracking(folder), f"{folder}/recipe.yaml: tracking")
    return Tracker(str(folder), resolve_uri(uri or resolved["uri"]), resolved["experiment"])


def _their_tracker(folder: Path, uri: str | None, own: Sequence[Path]) -> Tracker:
    """Of a run that came from a shared store: its recipe is plain data, and only a server that you use gets it.

    Raises:
        RecipeError: it names another server, or a value of this machine's.
    """
    said = _tracking(folder)
    try:
        wanted = Tracking.model_validate({**said, "uri": str(said["uri"])})
    except ValidationError as error:
        raise RecipeError(f"run {folder.name}: tracking: {error.errors()[0]['msg']}; it is not sent") from None
    if "${" in wanted.experiment or not wanted.experiment.isprintable():
        raise RecipeError(
            f"run {folder.name}: tracking.experiment {wanted.experiment[:80]!r} is no plain text, and the run came "
            "from a shared store; it is not sent"
        )
    known = {_anonymous(one): one for one in _your_servers(own)}
    asked = "" if "${" in wanted.uri else _anonymous(resolve_uri(wanted.uri))
    if wanted.uri == SAME and os.environ.get("MLFLOW_TRACKING_URI"):
        asked = _anonymous(history.default_uri())
    if uri is None and asked not in known:
        raise RecipeError(
            f"run {folder.name}: it came from a shared store and names the tracking server "
            f"{masked(wanted.uri)[:200]!r}, which is neither MLFLOW_TRACKING_URI nor that of a run of yours; it is not "
            "sent; if that is where it belongs: --tracking-uri URI"
        )
    return Tracker(str(folder), resolve_uri(uri) if uri is not None else known[asked], wanted.experiment)


def _anonymous(uri: str) -> str:
    """A URI as stored recipes have it, whatever its password."""
    return re.sub(r"(\w+://[^/:@\s]*):[^@/\s]+@", r"\1:***@", uri)


def _tracking(folder: Path) -> dict[str, Any]:
    said = history.find(str(folder), "").recipe.get("tracking") or {}
    if not isinstance(said, dict):
        raise RecipeError(f"{folder}/recipe.yaml: tracking: expected a mapping")
    return {**Tracking().model_dump(), **said}


def _your_servers(own: Sequence[Path]) -> list[str]:
    """Addresses that this user's configuration names: the environment's, the default one, those of runs made here."""
    found = [resolve_uri(Tracking().uri), history.default_uri()]
    for folder in own:
        with contextlib.suppress(DeepCompressionError):  # a run's variable that is not set any more
            found.append(tracker_of(folder, None).uri)
    return found


def show_store(where: str) -> None:
    """A table of what a store holds, by stage."""
    found = eviction.inventory(_open(where).place)
    by_stage: dict[str, list[Any]] = {}
    for entry in found.entries.values():
        row = by_stage.setdefault(str(entry.get("stage", "?")), [0, set()])
        row[0] += 1
        row[1].add(entry["object"])
    table = Table(title=f"store {where}", title_justify="left")
    table.add_column("stage")
    table.add_column("results", justify="right")
    table.add_column("size", justify="right")
    for stage, (count, digests) in sorted(by_stage.items()):
        bytes_ = sum(found.objects[digest].size for digest in digests if digest in found.objects)
        table.add_row(stage, f"{count:,}", size(bytes_))
    checkpoints = sum(info.size for infos in found.partial.values() for info in infos)
    table.add_row("checkpoints", f"{len(found.partial):,}", size(checkpoints))
    table.add_section()
    table.add_row("all", f"{len(found.entries) + len(found.partial):,}", size(found.size_bytes))
    Console(highlight=False).print(table)
    working = sorted(key.removeprefix(PREFIX) for key in found.leased if key.startswith(PREFIX))
    if working:
        say(f"live runs: {', '.join(working)}")


def clean(where: str, runs: str, *, older: str | None, size_: str | None, gone: bool, uri: str, dry_run: bool) -> None:
    """Prunes the store by age, size, or runs that are gone, and says what went; see ``tasks.upkeep.eviction.prune``.

    Raises:
        RecipeError: a time or size that cannot be read.
        RunError: the registry, which knows the champions, does not answer: then nothing is removed.
    """
    from tasks.registry.models import champion_files

    store = _open(where)
    done = eviction.prune(
        store,
        eviction.inventory(store.place),
        older=seconds(older) if older else None,
        size=byte_count(size_) if size_ else None,
        runs=_keys_of_runs(ROOT / runs) if gone else None,
        champions=champion_files(uri),
        dry_run=dry_run,
    )
    kept = ", ".join(f"{count} {reason}" for reason, count in done.kept.items())
    say(
        f"{'would remove' if dry_run else 'removed'} {done.entries} results and {done.checkpoints} checkpoints, "
        f"{size(done.bytes)}{f'; stays whatever is asked: {kept}' if kept else ''}"
    )


def _keys_of_runs(home: Path) -> frozenset[str]:
    keys = set()
    for folder in history.folders(home):
        try:
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        keys |= {row["key"] for row in summary.get("stages", []) if "key" in row}
    return frozenset(keys)
