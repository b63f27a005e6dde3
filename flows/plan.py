"""What can be known of a run without training: all that is wrong, what becomes of each tensor, and about how many
bytes, minutes and how much memory it will be."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from deepcompression.errors import InputError, one_line
from flows import budgeted, checked, history
from flows.folders import below_root, store_of
from flows.recipe import load as recipes
from flows.recipe import reading
from flows.recipe.schema import Recipe
from flows.recipe.stored import as_stored
from flows.rehearsed import stages_of, teacher_of
from tasks.execution.rehearsal import Rehearsed, found, quietly, rehearse
from tasks.execution.run import Reference, Run
from tasks.secrets import masked
from tasks.storage.places import Info
from tasks.storage.store import Store

PLANS = "plans"  # below a store: what was predicted of runs
AROUND = 10.0  # seconds of a run beside its stages: servers, report, the file decoded in a fresh process
TOLD, MOST_RUNS = 3, 100  # earlier predictions that are told; runs that are looked at for them


def plan(source: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A plan: ``problems`` (then, if the recipe cannot be read, nothing else), ``warnings``, ``stages``, ``tensors``,
    ``predicted`` and ``earlier``.

    Args:
        source: as of ``recipes.load``.
        overrides: as of ``recipes.load``.

    Raises:
        RecipeError: the recipe cannot be read at all.
    """
    started = time.perf_counter()
    parsed, wrong = recipes.examined(source, overrides)
    result: dict[str, Any] = {"recipe": masked(source), "problems": [one_line(one) for one in wrong], "warnings": []}
    if parsed is None:
        return result
    stored = as_stored(parsed, source, overrides)
    with quietly():
        run, more, warnings = checked.wrong_in(parsed, stored)
        result |= {"name": parsed.name, "problems": [*result["problems"], *map(one_line, more)], "warnings": warnings}
        if run is not None and not result["problems"]:
            result |= _foreseen(run, parsed, stored)
            result["problems"] += result.pop("rehearsed_problems", [])
    return {**result, "planned_seconds": round(time.perf_counter() - started, 2)}


def _foreseen(run: Run, parsed: Recipe, stored: Mapping[str, Any]) -> dict[str, Any]:
    doubts = list(run.data_identity().doubts)
    stages = stages_of(run, parsed)
    with tempfile.TemporaryDirectory() as folder:
        try:
            run, before = _taught(run, parsed, Path(folder))
        except InputError as error:
            return {"doubts": doubts, "not_rehearsed": one_line(error)}
        known = found(run, stages)
        if known and not run.teacher:
            run = replace(run, taught_by=known[0][1])
        left = stages[len(known) :]
        rehearsed = list(rehearse(run, left, known[-1][1] if known else None, Path(folder))) if left else []
        rows = [*before, *map(_known, known), *map(_row, rehearsed)]
        dense = _dense(run)
        told = {
            "stages": rows,
            "tensors": _tensors(run, known, rehearsed, folder),
            "dense_bytes": dense,
            "doubts": doubts,
            "not_rehearsed": _why_not(parsed, rehearsed),
            "rehearsed_problems": [one_line(one.wrong) for one in rehearsed if one.wrong],
            "peak_memory_bytes": _peak(),
        }
        if parsed.budget:
            told["budget"] = budgeted.foreseen(run, parsed, dense)
        return told | _predicted(parsed, stored, rows, dense)


def _taught(run: Run, parsed: Recipe, folder: Path) -> tuple[Run, list[dict[str, Any]]]:
    """The run with its teacher, as the store has it or else rehearsed, and the row of that; nothing of one without."""
    if not parsed.teacher or run.teacher is None:
        return run, []
    own, first = teacher_of(run, parsed)
    if known := found(own, first):
        return replace(run, taught_by=known[0][1]), [_known(known[0])]
    one = next(iter(rehearse(own, first, None, folder)))
    return replace(run, taught_by=one.reference), [_row(one)]


def _known(one: tuple[str, Reference, Mapping[str, Any]]) -> dict[str, Any]:
    label, reference, _ = one
    return {"stage": label, "reused": True, "seconds": 0.0, "epochs": 0, "bytes": reference.numbers["size_bytes"]}


def _row(one: Rehearsed) -> dict[str, Any]:
    told = {"stage": one.label, "reused": False, "seconds": one.seconds, "epochs": one.epochs, "bytes": one.bytes}
    return {**told, "why_not": one.why_not} if one.why_not else told


def _why_not(parsed: Recipe, rehearsed: Sequence[Rehearsed]) -> str:
    if parsed.budget:
        return "what the budget's search will find: densities, bits, and so the bytes; the dense model was rehearsed"
    return next((f"stage {one.label}: {one.why_not}" for one in rehearsed if one.why_not and not one.wrong), "")


def _dense(run: Run) -> int:
    from deepcompression.network.state import dense_bytes

    return dense_bytes(run.blank_model())


def _peak() -> int:
    """Bytes of memory that this process has had at most."""
    if os.name == "posix":
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return int(most if sys.platform == "darwin" else most * 1024)
    import psutil

    return int(psutil.Process().memory_info().peak_wset)


def _tensors(
    run: Run,
    known: Sequence[tuple[str, Reference, Mapping[str, Any]]],
    rehearsed: Sequence[Rehearsed],
    folder: str,
) -> list[dict[str, Any]]:
    """A row for each tensor, or for all vectors of one reason: what is done to it in which stage, why nothing is in the
    others, and its bytes in the file."""
    import deepcompression

    tables = {label: (entry.get("report") or {}).get("covered") or [] for label, _, entry in known}
    tables |= {one.label: one.covered for one in rehearsed}
    file = next((one.file for one in rehearsed if one.file), None)
    if known and known[-1][2].get("encoded"):
        file = run.store.object_path(known[-1][1].object)
    inside = {one["name"]: one for one in deepcompression.inspect(file)["tensors"]} if file else {}
    rows: dict[str, dict[str, Any]] = {}
    for label, table in tables.items():
        for one in table:
            row = rows.setdefault(one["tensor"], _empty(one, inside))
            row["stages" if one["done"] else "left_alone"] |= {label: one["reason"]}
    return [{**row, "stages": list(row["stages"])} for row in rows.values()]


def _empty(one: Mapping[str, Any], inside: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    held = inside.get(one["tensor"], {})
    return {
        **{key: one[key] for key in ("tensor", "shape", "elements", "bytes")},
        "file_bytes": held.get("bytes"),
        "density": held.get("density"),
        "distinct": held.get("distinct"),
        "stages": {},
        "left_alone": {},
    }


def _predicted(
    parsed: Recipe, stored: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], dense: int
) -> dict[str, Any]:
    """Bytes and minutes, what was predicted of earlier runs of the model, and what became of these; noted."""
    last = rows[-1] if rows else {}
    size = last.get("bytes") if not parsed.budget else None
    many = len(parsed.seeds or [0])
    spent = [row["seconds"] for row in rows]
    limit = parsed.budget.time_limit if parsed.budget else None
    seconds = None if None in spent or parsed.budget else many * (sum(spent) + AROUND)
    predicted = {"bytes": size, "ratio": dense / size if size else None, "seconds": seconds}
    predicted["most_seconds"] = many * (60 * limit + AROUND) if limit else None
    predicted["exact"] = bool(rows and all(row["reused"] for row in rows))
    store, name = store_of(parsed), digest(stored)
    earlier = earlier_of(store, parsed)
    if size and not predicted["exact"]:
        note = {"recipe": name, "model": _model(parsed), "bytes": size, "seconds": seconds, "when": time.time()}
        store.place.write(f"{PLANS}/{name[:32]}.json", json.dumps(note).encode())
    return {"predicted": predicted, "earlier": earlier}


def digest(stored: Mapping[str, Any]) -> str:
    """What identifies a recipe as it is kept."""
    return hashlib.sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


def _model(parsed: Recipe) -> str:
    return digest(parsed.model.model_dump(mode="json"))


def earlier_of(store: Store, parsed: Recipe) -> list[dict[str, Any]]:
    """Predictions of earlier plans with this model, beside what the runs of the same recipes gave; the newest first."""
    notes = [one for one in map(partial(_note, store), store.place.files(PLANS)) if one.get("model") == _model(parsed)]
    plans = {one["recipe"]: one for one in notes}
    rows: list[dict[str, Any]] = []
    for folder in islice(history.folders(below_root(parsed.runs)), MOST_RUNS if plans else 0):
        row = _beside_run(folder, plans)
        rows += [row] if row else []
        if len(rows) == TOLD:
            break
    return rows


def _note(store: Store, info: Info) -> dict[str, Any]:
    try:
        return dict(json.loads(store.place.read(info.name)))
    except (OSError, ValueError, TypeError):
        return {}


def _beside_run(folder: Path, plans: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """What was predicted of a run and what it gave; None where nothing was, or it is not finished."""
    try:
        stored = reading.mapping((folder / "recipe.yaml").read_text(encoding="utf-8"), str(folder / "recipe.yaml"))
        note = plans.get(digest(stored))
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8")) if note else {}
        size = summary.get("file_bytes")
        actual = size["mean"] if isinstance(size, Mapping) else size
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not note or not actual:
        return None
    row = {"run": folder.name, "predicted_bytes": note["bytes"], "bytes": actual, "error": note["bytes"] / actual - 1}
    worked = [one["seconds"] for one in summary.get("stages", []) if not one["cached"]]
    if note["seconds"] and len(worked) == len(summary.get("stages", [])):
        row |= {"predicted_seconds": note["seconds"], "seconds": sum(worked) + AROUND}
    return row
