"""Runs as the workflow works with them: of a recipe that begins, and of a folder that one has left."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from deepcompression.errors import RecipeError, WeightsError
from flows import history
from flows.folders import below_root, where
from flows.recipe import load as recipes
from flows.recipe.schema import Recipe
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Model
from tasks.tracking.client import resolve_uri
from tasks.tracking.runs import Tracker

AnyModel = TypeVar("AnyModel", bound=Model)
FILE = "model.dcz"


@dataclass(frozen=True)
class Finished:
    """A run that is over, whose folder is on this machine: its recipe, what it said of itself, and its file."""

    run: Run
    recipe: Recipe
    summary: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """The run's own."""
        return Path(self.run.folder)

    @property
    def file(self) -> Path:
        """The ``.dcz``."""
        return self.folder / FILE

    def baseline(self) -> Reference:
        """The dense model, as it lies in the store.

        Raises:
            WeightsError: it is gone from there.
        """
        key = str(self.summary["stages"][0]["key"])
        entry = self.run.store.find(key)
        if entry is None:
            raise WeightsError(
                f"run {self.folder.name}: the dense model's weights are not in the store {self.run.store_folder} any "
                f"more; run it again: python -m flows rerun {self.folder.name}"
            )
        return Reference(key, entry["object"], edits=tuple(entry["edits"]))


def finished(found: history.Found) -> Finished:
    """What a run left.

    Args:
        found: of ``history.find``.

    Raises:
        RecipeError: its folder is not on this machine, it has left no file, or it is one of several seeds.
    """
    folder = found.folder
    if folder is None:
        raise RecipeError(f"run {found.name}: its folder is not on this machine, and its file and model are needed")
    summary = _summary(folder)
    if "runs" in summary:
        names = ", ".join(Path(str(one.get("folder"))).name for one in summary["runs"])
        raise RecipeError(f"run {folder.name}: has several seeds, a run each; name one of them: {names}")
    if not (folder / FILE).is_file():
        raise RecipeError(
            f"run {folder.name}: has no {FILE}: it was removed; run it again: python -m flows rerun {folder.name}"
        )
    parsed = recipes.load(history.admit(found, [], None, {}))
    tracker = Tracker(str(folder.resolve()), resolve_uri(parsed.tracking.uri), parsed.tracking.experiment)
    return Finished(run_of(parsed, int(summary["seed"]), folder.resolve(), tracker), parsed, summary)


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    if not path.is_file():
        raise RecipeError(f"run {folder.name}: has no summary.json: the run is unfinished or failed; start it again")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if "runs" not in summary:
            int(summary["seed"]), str(summary["stages"][0]["key"])
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise RecipeError(f"run {folder.name}: summary.json is damaged ({type(error).__name__})") from None
    return dict(summary)


def run_of(parsed: Recipe, seed: int, folder: Path, tracker: Tracker) -> Run:
    """The run of a recipe with one of its seeds, in a folder of its own, told to a tracker.

    Args:
        parsed: the recipe.
        seed: one of it.
        folder: that the run leaves its results in.
        tracker: of its MLflow run.
    """
    return Run(
        name=parsed.name,
        seed=seed,
        folder=str(folder),
        store_folder=where(parsed.store),
        model=_found(parsed.model),
        data=parsed.data,
        step=parsed.step,
        metric=parsed.metric,
        hold=parsed.hold,
        device=parsed.device,
        precision=parsed.precision,
        channels_last=parsed.channels_last,
        evaluate=parsed.evaluate,
        devices=parsed.devices,
        strategy=parsed.strategy,
        compiled=parsed.compile,
        num_workers=parsed.num_workers,
        threads=parsed.threads,
        python_path=tuple(str(below_root(one)) for one in parsed.python_path),
        tracker=tracker,
        teacher=_found(parsed.teacher) if parsed.teacher else None,
    )


def _found(model: AnyModel) -> AnyModel:
    """The same with its checkpoint's path as it is on this machine.

    Raises:
        WeightsError: it is a hub's, and neither in a cache here nor to be had.
    """
    if not model.weights:
        return model
    path = model.weights.path
    if path.startswith("hub:"):
        from deepcompression.models import hub

        path = str(hub.weights_of(model.factory, model.arguments(), path))
    weights = model.weights.model_copy(update={"path": str(below_root(path))})
    return model.model_copy(update={"weights": weights})
