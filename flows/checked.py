"""What is wrong with a recipe beyond its keys, found before anything trains, starts or is written: names, files, and
what does not go together."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from deepcompression.errors import InputError, RecipeError, together
from flows.folders import below_root
from flows.recipe import load as recipes
from flows.recipe import rounds
from flows.recipe.schema import Recipe
from flows.recipe.stored import as_stored
from flows.runs import run_of
from tasks.execution.check import Problems, Tried, check, problems
from tasks.execution.patterns import SELECTED
from tasks.execution.run import Run
from tasks.execution.settings import Model, Strict, Training
from tasks.execution.warned import heard
from tasks.stages import baseline
from tasks.tracking.client import resolve_uri
from tasks.tracking.runs import Tracker

Planned = list[tuple[str, Strict]]


class Chosen(Strict):
    """What a budget prunes: tensors that are pruned by default, to densities that it finds."""

    density: Annotated[dict[str, None], SELECTED] = Field({"default": None})


def refuse(run: Run, parsed: Recipe, stored: Mapping[str, Any]) -> None:
    """Of a run that begins: raises, before anything trains, what would stop it later.

    Args:
        run: the run.
        parsed: its recipe.
        stored: the recipe as it is kept.

    Raises:
        InputError: in one line; ``others``: what else is wrong.
    """
    stages = planned(run, parsed)
    check(run, stages, test=parsed.test)
    noted = Problems()
    _beside(run, parsed, stored, stages, noted)
    if noted.found:
        raise together(noted.found)


def refuse_recipe(source: str | Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Raises what ``refuse`` would of the recipe's first seed, for who has no run yet.

    Args:
        source: as of ``recipes.load``.
        overrides: as of ``recipes.load``.

    Raises:
        InputError: in one line; ``others``: what else is wrong.
    """
    if found := wrong_with(source, overrides):
        raise together(found)


def wrong_with(
    source: str | Mapping[str, Any], overrides: Mapping[str, Any], tried: Tried = "sound"
) -> list[InputError]:
    """All that ``refuse_recipe`` would raise; nothing of a recipe that can run.

    Args:
        source: as of ``recipes.load``.
        overrides: as of ``recipes.load``.
        tried: as of ``tasks.execution.check.problems``.
    """
    parsed, wrong = recipes.examined(source, overrides)
    if parsed is None:
        return wrong
    return [*wrong, *wrong_in(parsed, as_stored(parsed, source, overrides), tried=tried)[1]]


def wrong_in(
    parsed: Recipe, stored: Mapping[str, Any], *, tried: Tried = "always"
) -> tuple[Run | None, list[InputError], list[str]]:
    """The run of a recipe's first seed, without a folder; all that is wrong with it, and what is to be warned of.

    Args:
        parsed: the recipe.
        stored: the recipe as it is kept.
        tried: as of ``tasks.execution.check.problems``.
    """
    noted, run = Problems(), None
    with heard() as warnings:
        with noted.part():
            run = first_run(parsed)
        if run is None:
            return None, noted.found, warnings
        stages = planned(run, parsed)
        found = problems(run, stages, test=parsed.test, tried=tried)
        noted.found, noted.works = found.found, found.works
        _beside(run, parsed, stored, stages, noted)
    return run, noted.found, warnings


def first_run(parsed: Recipe) -> Run:
    """A recipe's run with the first of its seeds, that has no folder yet."""
    folder = below_root(parsed.runs) / parsed.name
    tracker = Tracker(str(folder), resolve_uri(parsed.tracking.uri), parsed.tracking.experiment)
    return run_of(parsed, parsed.seeds[0] if parsed.seeds else parsed.seed or 0, folder, tracker)


def planned(run: Run, parsed: Recipe) -> Planned:
    """All that will work on the model, with labels: the trainings that stand in the recipe beside its stages, under the
    keys that they stand in; what a budget prunes; the stages."""
    budget = parsed.budget.train if parsed.budget else None
    chosen: Planned = [("budget", Chosen())] if parsed.budget else []
    training: Planned = [("budget.train", budget)] if budget else []
    return [("train", start_of(run.model, parsed.train)), *chosen, *training, *rounds.expand(parsed)]


def start_of(model: Model, train: Training | None) -> baseline.Settings:
    """What the baseline task needs: a checkpoint, or how to train."""
    return baseline.Settings(weights=model.weights) if model.weights else baseline.Settings(train=train)


def _beside(run: Run, parsed: Recipe, stored: Mapping[str, Any], stages: Planned, noted: Problems) -> None:
    """What stands beside the stages: a promotion, exports, a teacher's checkpoint."""
    with noted.part():
        _no_secret_promoted(parsed, stored)
    if not noted.works:
        return
    if parsed.budget:
        from flows.budgeted import refuse_budget

        with noted.part():
            refuse_budget(run, parsed.budget)
    if parsed.promote:
        from tasks.execution.example import example_of

        with noted.part():
            example_of(run, parsed.promote.inputs)
    for one in parsed.export:
        from tasks.exports import check_export

        with noted.part():
            check_export(run, one, stages)
    if parsed.teacher and parsed.teacher.weights:
        taught = replace(run, model=run.teacher)
        with noted.part("teacher: "):
            start_of(taught.model, None).fits(taught, taught.blank_model())


def _no_secret_promoted(parsed: Recipe, stored: Mapping[str, Any]) -> None:
    model = stored["model"]
    if parsed.promote and "${" in json.dumps(model["kwargs"] if isinstance(model, Mapping) else model):
        raise RecipeError(
            "model.kwargs has a secret (${oc.env:...}), which a promoted model would store; read it in code"
        )
