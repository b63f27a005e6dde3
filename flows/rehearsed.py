"""A recipe's stages rehearsed: its teacher first, and what the store has not; for a plan, and in short before a run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flows import checked
from flows.recipe import load as recipes
from flows.recipe import rounds
from flows.recipe.schema import Recipe
from tasks.execution.rehearsal import Labelled, Rehearsed, found, quietly, rehearse
from tasks.execution.run import Run
from tasks.execution.warned import heard

SECONDS = 2.0  # before a run; while its server starts, most of it costs nothing
LARGEST = 50 * 10**6  # bytes of a dense model; of a larger one a stage takes seconds


def refuse_rehearsed(source: str | Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Raises what stops a run whatever its model learns, as far as about two seconds of its stages tell.

    Args:
        source: as of ``recipes.load``; it was looked at by ``checked.refuse_recipe``.
        overrides: as of ``recipes.load``.

    Raises:
        InputError: in one line, with the stage.
    """
    from deepcompression.network.state import dense_bytes

    parsed = recipes.load(source, overrides)
    with quietly(), heard(), tempfile.TemporaryDirectory() as folder:
        run = checked.first_run(parsed)
        run.ready()
        if run.devices > 1 or dense_bytes(run.blank_model()) > LARGEST:
            return
        wrong = next((one.wrong for one in _in_short(run, parsed, Path(folder)) if one.wrong), None)
    if wrong:
        raise type(wrong)(f"{wrong} (found by a rehearsal on a few samples; --no-rehearsal begins all the same)")


def stages_of(run: Run, parsed: Recipe) -> Labelled:
    """Labels and keys of all stages as they will run; of a budget, that finds them, the dense model's alone."""
    return [("baseline", checked.start_of(run.model, parsed.train)), *rounds.expand(parsed)]


def teacher_of(run: Run, parsed: Recipe) -> tuple[Run, Labelled]:
    """The run that makes the teacher of a recipe that has its own, and the stage that does."""
    assert parsed.teacher and run.teacher
    own = replace(run, model=run.teacher)
    return own, [("teacher", checked.start_of(own.model, parsed.teacher.train))]


def _in_short(run: Run, parsed: Recipe, folder: Path) -> Iterator[Rehearsed]:
    """What is not in the store, one by one."""
    if parsed.teacher and run.teacher:
        own, first = teacher_of(run, parsed)
        if known := found(own, first):
            run = replace(run, taught_by=known[0][1])
        else:
            for one in rehearse(own, first, None, folder, SECONDS / 2):
                yield one
                run = replace(run, taught_by=one.reference)
        if run.taught_by is None:
            return
    stages = stages_of(run, parsed)
    known = found(run, stages)
    if known and not run.teacher:
        run = replace(run, taught_by=known[0][1])
    if left := stages[len(known) :]:
        yield from rehearse(run, left, known[-1][1] if known else None, folder, SECONDS)
