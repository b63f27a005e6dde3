"""Runs that are over: found by folder, MLflow id or Prefect id, and their recipes made fit to run again."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepcompression.errors import RecipeError, RunError
from flows.recipe import admission, reading, references
from flows.recipe import load as recipes
from flows.recipe.schema import Recipe, Tracking
from tasks.console import say
from tasks.machine.deadline import within
from tasks.root import ROOT
from tasks.storage.places import is_url, place_at
from tasks.tracking.client import recipe_of, resolve_uri, run_of_flow, runs_of_experiment
from tasks.tracking.runs import JOURNAL, STATE, flatten

RUNS = "artifacts/runs"
PREFECT_SECONDS = 20.0
DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what a run's JSON can be
# A recipe from elsewhere says what is trained, never where things are written, what is put on sys.path, or which model
# of a registry becomes the champion.
OURS = ("store", "runs", "tracking", "python_path", "promote")


@dataclass(frozen=True)
class Found:
    """A run's stored recipe; its folder where that is on this machine; whether it came from elsewhere."""

    name: str
    recipe: dict[str, Any]
    folder: Path | None = None
    foreign: bool = False


def find(word: str, uri: str, runs: str = RUNS) -> Found:
    """The run that ``word`` names.

    Args:
        word: a run's folder, its name below ``runs``, a URL of one, an MLflow run id, or a Prefect flow-run id.
        uri: the MLflow server or database to ask.
        runs: where runs lie.

    Raises:
        RecipeError: nothing of that name; says where was looked.
        RunError: the tracking server does not answer.
    """
    if is_url(word):
        return _at_url(word)
    home = ROOT / runs
    for folder in (Path(word), home / word):
        if (folder / "recipe.yaml").is_file():
            return _in(folder)
    plain = word.replace("-", "").lower()
    if re.fullmatch("[0-9a-f]{32}", plain):
        for folder in folders(home):
            if plain in _ids(folder):
                return _in(folder)
        return _elsewhere(word, plain, uri)
    raise RecipeError(
        f"run {word}: no folder of that name with a recipe.yaml, here or in {home}, and no MLflow or Prefect id (32 "
        "hexadecimal digits)"
    )


def several(
    words: Sequence[str], last: int | None, name: str | None, experiment: str | None, uri: str, runs: str = RUNS
) -> list[Path]:
    """Folders of finished runs on this machine: those named, or the newest, or those of an MLflow experiment.

    Raises:
        RecipeError: none or several of these ways were taken; a run is not on this machine; there are none.
        RunError: the tracking server does not answer.
    """
    from flows.compare import compare

    if sum(map(bool, (words, last, experiment))) != 1:
        raise RecipeError("compare: expected runs, or --last 5, or --experiment NAME: exactly one of these")
    home = ROOT / runs
    if last:
        found = compare.last(home, last, name)
    else:
        ids = runs_of_experiment(uri, experiment) if experiment else []
        known = {plain: folder for folder in folders(home) for plain in _ids(folder)} if experiment else {}
        found = [known[one] for one in reversed(ids) if one in known and (known[one] / "summary.json").exists()]
        found += [_folder_of(word, uri, runs) for word in words]
    if not found:
        raise RecipeError(f"compare: no finished run of that kind in {home}")
    return found


def _folder_of(word: str, uri: str, runs: str) -> Path:
    folder = find(word, uri, runs).folder
    if folder is None:
        raise RecipeError(f"run {word}: its folder is not on this machine; compare reads summary.json there")
    return folder


def one_of(word: str, known: Sequence[str]) -> Any:
    """``word``, if it is known.

    Raises:
        RecipeError: it is not.
    """
    if word not in known:
        raise RecipeError(f"{word!r}: expected one of {', '.join(known)}")
    return word


def folders(home: Path) -> Iterator[Path]:
    """Folders of runs below ``home``, newest first, finished or not."""
    found = [path.parent for path in home.glob("*/recipe.yaml")]
    yield from sorted(found, key=lambda folder: folder.stat().st_mtime, reverse=True)


def admit(
    found: Found, allowed: Sequence[str], ours: Recipe | None, overrides: Mapping[str, Any], folders: Sequence[str] = ()
) -> dict[str, Any]:
    """The recipe of a run, fit to run here; one from elsewhere is resolved within itself and judged.

    Args:
        found: the run.
        allowed: what a recipe from elsewhere may call beyond the closed lists of ``flows.recipe.admission``: a
            module such as ``mypackage`` (all that is defined in it or below it), or one ``package.module:callable``.
        ours: a local recipe, whose ``python_path``, store, runs, tracking and promote are used for one from elsewhere;
            the packages in its ``python_path`` may be called.
        overrides: what replaces the recipe's values; they are yours and not judged.
        folders: below which a recipe from elsewhere may have data and weights read.

    Raises:
        RecipeError: a password that was not stored is missing, or something is named that may not be.
    """
    if not found.foreign:
        _check_passwords(found, found.recipe, overrides)
        return found.recipe
    theirs = {key: value for key, value in found.recipe.items() if key not in OURS}
    if found.recipe.get("promote") is not None and (ours is None or ours.promote is None):
        say("rerun: promote is not taken from a server's recipe; give it by --recipe, or promote.model=... and gates")
    recipe = references.plain(found.name, theirs, overrides)
    _check_passwords(found, recipe, overrides)
    if ours is not None:
        recipe |= ours.model_dump(mode="json", include=set(OURS))
    python_path = [str(ROOT / one) for one in (ours.python_path if ours else ())]
    trust = admission.Trust(allowed, folders, python_path)
    admission.judge(found.name, recipes.load(recipe, overrides), references.given(theirs, overrides), trust)
    return recipe


def _check_passwords(found: Found, recipe: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    for key, value in flatten(recipe).items():
        if key not in overrides and isinstance(value, str) and "://" in value and ":***@" in value:
            raise RecipeError(f"run {found.name}: {key} had a password, which was not stored; give it: {key}=...")


def _in(folder: Path) -> Found:
    path = folder / "recipe.yaml"
    try:
        text = reading.text_of(path)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"run {folder}: recipe.yaml cannot be read: {error}") from None
    return Found(folder.name, _parsed(text, str(folder)), folder)


def _at_url(url: str) -> Found:
    place = place_at(url)
    try:
        described = place.info("recipe.yaml")
        if described is None:
            raise FileNotFoundError
        if described.size > reading.MOST_BYTES:
            raise RecipeError(f"run {url}: recipe.yaml has {described.size:,} bytes; expected a recipe")
        text = place.read("recipe.yaml").decode()
    except FileNotFoundError:
        raise RecipeError(f"run {url}: there is no recipe.yaml") from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"run {url}: recipe.yaml cannot be read: {error}") from None
    return Found(url.rstrip("/").rpartition("/")[2], _parsed(text, url), foreign=True)


def _elsewhere(word: str, plain: str, uri: str) -> Found:
    """By MLflow's id; else as Prefect's, whose MLflow run is found by its tag, or whose parameters are taken."""
    run_id: str | None = plain
    if "-" in word:
        dashed = f"{plain[:8]}-{plain[8:12]}-{plain[12:16]}-{plain[16:20]}-{plain[20:]}"
        run_id = run_of_flow(uri, dashed)
        if run_id is None:
            return _from_prefect(dashed)
    return Found(word, _parsed(recipe_of(uri, str(run_id)), f"MLflow run {run_id}"), foreign=True)


def _from_prefect(flow_run_id: str) -> Found:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    try:
        with get_client(sync_client=True) as client:
            parameters = within(PREFECT_SECONDS, client.read_flow_run, flow_run_id).parameters
    except ObjectNotFound:
        raise RecipeError(f"run {flow_run_id}: neither a run on this machine, nor MLflow's, nor Prefect's") from None
    except RunError as error:
        raise RunError(f"run {flow_run_id}: Prefect's server at {client.api_url}: {error}") from None
    recipe, overrides = parameters.get("recipe"), parameters.get("overrides")
    if isinstance(recipe, str):
        raise RecipeError(
            f"run {flow_run_id}: Prefect knows its recipe as {recipe[:200]!r} only, and a server does not choose "
            "what is read here; if that is the recipe you mean: python -m flows run, with its name"
        )
    if not isinstance(recipe, Mapping) or not isinstance(overrides, Mapping | None):
        raise RecipeError(f"run {flow_run_id}: that Prefect flow run has no recipe; it is not one of compress")
    return Found(flow_run_id, references.merged(flow_run_id, recipe, overrides or {}), foreign=True)


def _ids(folder: Path) -> set[str]:
    """MLflow's and Prefect's ids of a run on this machine, without dashes."""
    ids = set()
    with contextlib.suppress(*DAMAGED):
        ids.add(str(json.loads((folder / STATE).read_text())["run_id"]))
    with contextlib.suppress(*DAMAGED), (folder / JOURNAL).open() as journal:
        ids.add(str(json.loads(journal.readline())["tags"]["prefect.flow_run_id"]).replace("-", ""))
    return ids


def _parsed(text: str, where: str) -> dict[str, Any]:
    return reading.mapping(text, f"{where}: recipe.yaml")


def default_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or the database that recipes use where they say nothing."""
    return resolve_uri(os.environ.get("MLFLOW_TRACKING_URI") or Tracking().uri)
