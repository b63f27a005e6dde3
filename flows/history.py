"""Runs that are over: found by folder, MLflow id or Prefect id, and their recipes made fit to run again."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deepcompression.errors import RecipeError
from flows import recipe as recipes
from flows.schema import Recipe, Tracking
from tasks import tracking
from tasks.places import is_url, place_at

RUNS = "artifacts/runs"
# What a recipe from elsewhere may name without being asked: code that builds networks and data and runs nothing that it
# is told to. torch.load, torch.hub and this library's own loaders of factories are not among it.
ALLOWED = ("deepcompression.models", "deepcompression.data", "torch.nn", "torch.optim", "torchvision", "timm")
# A recipe from elsewhere says what is trained, never where things are written or what is put on sys.path.
OURS = ("store", "runs", "tracking", "python_path")


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
    home = recipes.ROOT / runs
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
    from flows import compare

    if sum(map(bool, (words, last, experiment))) != 1:
        raise RecipeError("compare: expected runs, or --last 5, or --experiment NAME: exactly one of these")
    home = recipes.ROOT / runs
    if last:
        found = compare.last(home, last, name)
    else:
        ids = tracking.runs_of_experiment(uri, experiment) if experiment else []
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


def admit(found: Found, allowed: Sequence[str], ours: Recipe | None, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a run, fit to run here.

    Args:
        found: the run.
        allowed: further prefixes of modules that a recipe from elsewhere may import, such as ``mypackage``.
        ours: a local recipe, whose ``python_path``, store, runs and tracking are used for one from elsewhere; the
            packages in its ``python_path`` may be imported.
        overrides: what replaces the recipe's values; they are yours and not judged.

    Raises:
        RecipeError: a password that was not stored is missing, or code is named that may not be imported.
    """
    recipe = {key: value for key, value in found.recipe.items() if not (found.foreign and key in OURS)}
    if found.foreign and ours is not None:
        recipe |= ours.model_dump(mode="json", include=set(OURS))
    for key, value in tracking.flatten(recipe).items():
        if key in overrides or not isinstance(value, str):
            continue
        if "://" in value and ":***@" in value:
            raise RecipeError(f"run {found.name}: {key} had a password, which was not stored; give it: {key}=...")
        if found.foreign and "${" in value:
            raise RecipeError(
                f"run {found.name}: {key}: {value} would be read from this machine, but the recipe came from a "
                f"tracking server; give the value: {key}=..."
            )
    if found.foreign:
        python_path = [str(recipes.ROOT / one) for one in (ours.python_path if ours else ())]
        _judge(found.name, recipe, [*ALLOWED, *allowed, *_packages(python_path)], python_path)
    return recipe


def _judge(name: str, recipe: Mapping[str, Any], allowed: Sequence[str], python_path: Sequence[str]) -> None:
    """Every factory must be named, and be defined, under an allowed prefix: ``torch.nn:os.system`` is not."""
    from deepcompression import factory

    specs = sorted(set(recipes.factories(recipe)))
    for spec in specs:
        if not _under(spec.partition(":")[0], allowed):
            raise RecipeError(_refusal(name, spec, allowed))
    sys.path[:0] = [one for one in python_path if one not in sys.path]
    for spec in specs:
        if not _under(str(getattr(factory.load(spec), "__module__", None)), allowed):
            raise RecipeError(_refusal(name, spec, allowed))


def _refusal(name: str, spec: str, allowed: Sequence[str]) -> str:
    return (
        f"run {name}: its recipe came from a tracking server and names {spec}, which is not under "
        f"{', '.join(allowed)}; if you trust it: --allow {spec.partition(':')[0]}"
    )


def _under(module: str, prefixes: Sequence[str]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def _packages(python_path: Sequence[str]) -> list[str]:
    return [
        entry.stem
        for folder in python_path
        for entry in sorted(Path(folder).glob("*"))
        if entry.stem.isidentifier() and (entry.suffix == ".py" or any(entry.glob("*.py")))
    ]


def _in(folder: Path) -> Found:
    return Found(folder.name, _parsed((folder / "recipe.yaml").read_text(encoding="utf-8"), str(folder)), folder)


def _at_url(url: str) -> Found:
    try:
        text = place_at(url).read("recipe.yaml").decode()
    except FileNotFoundError:
        raise RecipeError(f"run {url}: there is no recipe.yaml") from None
    return Found(url.rstrip("/").rpartition("/")[2], _parsed(text, url), foreign=True)


def _elsewhere(word: str, plain: str, uri: str) -> Found:
    """By MLflow's id; else as Prefect's, whose MLflow run is found by its tag, or whose parameters are taken."""
    run_id: str | None = plain
    if "-" in word:
        dashed = f"{plain[:8]}-{plain[8:12]}-{plain[12:16]}-{plain[16:20]}-{plain[20:]}"
        run_id = tracking.run_of_flow(uri, dashed)
        if run_id is None:
            return _from_prefect(dashed)
    return Found(word, _parsed(tracking.recipe_of(uri, str(run_id)), f"MLflow run {run_id}"), foreign=True)


def _from_prefect(flow_run_id: str) -> Found:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    try:
        with get_client(sync_client=True) as client:
            parameters = client.read_flow_run(flow_run_id).parameters
    except ObjectNotFound:
        raise RecipeError(f"run {flow_run_id}: neither a run on this machine, nor MLflow's, nor Prefect's") from None
    recipe, overrides = parameters.get("recipe"), parameters.get("overrides")
    if not isinstance(recipe, str | Mapping):
        raise RecipeError(f"run {flow_run_id}: that Prefect flow run has no recipe; it is not one of compress")
    parsed = recipes.load(recipe, overrides)
    return Found(flow_run_id, recipes.as_stored(parsed, recipe, overrides), foreign=True)


def _ids(folder: Path) -> set[str]:
    """MLflow's and Prefect's ids of a run on this machine, without dashes."""
    ids = set()
    with contextlib.suppress(OSError, ValueError, KeyError):
        ids.add(str(json.loads((folder / tracking.STATE).read_text())["run_id"]))
    with contextlib.suppress(OSError, ValueError, KeyError), (folder / tracking.JOURNAL).open() as journal:
        ids.add(str(json.loads(journal.readline())["tags"]["prefect.flow_run_id"]).replace("-", ""))
    return ids


def _parsed(text: str, where: str) -> dict[str, Any]:
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: recipe.yaml is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise RecipeError(f"{where}: recipe.yaml is no mapping")
    return recipe


def default_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or the database that recipes use where they say nothing."""
    return tracking.resolve_uri(os.environ.get("MLFLOW_TRACKING_URI") or Tracking().uri)
