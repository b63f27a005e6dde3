"""``python -m flows compare``: what differs between runs' recipes, beside what differs between their results."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deepcompression.errors import RecipeError, one_line
from flows.compare.recipes import ABSENT, differences, identity, value_text
from flows.compare.render import FORMATS, render, show
from flows.compare.results import Comparison, Group, measure_of, results_of, reused_of, runs_of
from flows.compare.words import notes, sentences
from flows.recipe import reading

__all__ = ["FORMATS", "Comparison", "Entry", "Group", "compare", "last", "read", "render", "show"]

STAMP = re.compile(r"-(\d{8}-\d{6})-[0-9a-f]+$")


@dataclass(frozen=True)
class Entry:
    """One finished run, or one run of several seeds, as its folder tells it."""

    name: str
    summary: Mapping[str, Any]
    recipe: Mapping[str, Any]


def compare(entries: Sequence[Entry], *, group: bool = True) -> Comparison:
    """Compares runs with the first of them.

    Args:
        entries: the runs, in the order of the table.
        group: whether runs that differ in the seed alone become one row with mean and spread.

    Raises:
        RecipeError: there is no run to compare.
    """
    if not entries:
        raise RecipeError("compare: no finished run is given; expected folders of runs, two or more")
    kept, dropped = _distinct(entries)
    parts = _grouped(kept) if group else [[entry] for entry in kept]
    found = differences([part[0].recipe for part in parts])
    settings = [{key: values[index] for key, values in found.items()} for index in range(len(parts))]
    groups = [_group(part, values) for part, values in zip(parts, settings, strict=True)]
    groups = [replace(one, incomparable=_incomparable(groups[0], one)) for one in groups]
    parts = _parts(groups)
    return Comparison(
        tuple(groups),
        tuple(found),
        sentences(groups),
        (*dropped, *notes(groups)),
        tuple(map(_part, parts)) if len(parts) > 1 else (),
    )


def _parts(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups whose data are alike together, in their order."""
    parts: list[list[Group]] = []
    for one in groups:
        alike = next((part for part in parts if "data" not in _incomparable(part[0], one)), None)
        if alike is None:
            parts.append([one])
        else:
            alike.append(one)
    return parts


def _part(groups: Sequence[Group]) -> Comparison:
    """The comparison of some groups with the first of them, and of the settings that differ among them."""
    keys = [key for key in groups[0].settings if len({value_text(one.settings[key]) for one in groups}) > 1]
    kept = [
        replace(one, settings={key: one.settings[key] for key in keys}, incomparable=_incomparable(groups[0], one))
        for one in groups
    ]
    return Comparison(tuple(kept), tuple(keys), sentences(kept), notes(kept))


def read(folder: Path) -> Entry:
    """The finished run in a run's folder.

    Raises:
        RecipeError: there is no such folder, its run has not finished, or a file in it is damaged.
    """
    import yaml

    if not folder.is_dir():
        raise RecipeError(f"run {folder}: no such folder; expected a run's, such as artifacts/runs/NAME-TIME-RANDOM")
    path = folder / "summary.json"
    if not path.exists():
        raise RecipeError(f"run {folder}: has no summary.json: the run is unfinished or failed; start it again")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        path = folder / "recipe.yaml"
        text = reading.text_of(path)
        reading.check(text, path.name)
        recipe = yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise RecipeError(f"run {folder}: {path.name} cannot be read: {reason}") from None
    for name, value in (("summary.json", summary), ("recipe.yaml", recipe)):
        if not isinstance(value, Mapping):
            raise RecipeError(f"run {folder}: {name} is damaged: expected a mapping, got {type(value).__name__}")
    return Entry(folder.resolve().name, summary, recipe)


def last(folder: Path, count: int, name: str | None = None) -> list[Path]:
    """The folders of the newest finished runs, the oldest of them first.

    Args:
        folder: where runs lie, such as artifacts/runs.
        count: at most so many.
        name: only runs of recipes of this name.

    A run of several seeds is one; the runs of its seeds are not listed beside it.
    """
    finished = {path.parent: summary for path in folder.glob("*/summary.json") if (summary := _summary(path))}
    children = {Path(str(run.get("folder"))).name for one in finished.values() if "runs" in one for run in runs_of(one)}
    listed = [
        path
        for path, summary in finished.items()
        if path.name not in children and (name is None or summary.get("name") == name)
    ]
    return sorted(listed, key=_started)[-count:] if count > 0 else []


def _summary(path: Path) -> Mapping[str, Any] | None:
    """A finished run's summary; None for what `read` would refuse."""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, Mapping) and (path.parent / "recipe.yaml").is_file() else None


def _started(folder: Path) -> tuple[str, float]:
    """Copies have new times of modification, so the name's time goes first."""
    written = (folder / "summary.json").stat().st_mtime
    stamp = STAMP.search(folder.name)
    return (stamp[1] if stamp else time.strftime("%Y%m%d-%H%M%S", time.localtime(written)), written)


def _distinct(entries: Sequence[Entry]) -> tuple[list[Entry], list[str]]:
    """No run twice: neither given twice, nor beside the run of several seeds that it belongs to."""
    runs = [frozenset(_folders(entry)) for entry in entries]
    kept, dropped = [], []
    for index, entry in enumerate(entries):
        within = [
            other.name
            for place, other in enumerate(entries)
            if runs[index] < runs[place] or (runs[index] == runs[place] and place < index)
        ]
        if within:
            dropped.append(f"{entry.name} is in {within[0]} already and is counted once.")
        else:
            kept.append(entry)
    return kept, dropped


def _folders(entry: Entry) -> tuple[str, ...]:
    runs = runs_of(entry.summary)
    return tuple(str(run.get("folder") or f"{entry.name}/{index}") for index, run in enumerate(runs))


def _grouped(entries: Sequence[Entry]) -> list[list[Entry]]:
    """A run with a seed that its group has already is a repetition, not a sample: it starts a group of its own."""
    groups: list[tuple[Any, set[int | None], list[Entry]]] = []
    for entry in entries:
        seeds = set(_seeds(entry))
        key = (identity(entry.recipe), measure_of(runs_of(entry.summary)[0]))
        for other, taken, members in groups:
            if other == key and not taken & seeds and None not in taken | seeds:
                members.append(entry)
                taken |= seeds
                break
        else:
            groups.append((key, seeds, [entry]))
    return [members for _, _, members in groups]


def _seeds(entry: Entry) -> tuple[int | None, ...]:
    return tuple(run.get("seed", entry.recipe.get("seed")) for run in runs_of(entry.summary))


def _group(entries: Sequence[Entry], settings: Mapping[str, Any]) -> Group:
    runs = [run for entry in entries for run in runs_of(entry.summary)]
    measure = measure_of(runs[0])
    return Group(
        names=tuple(entry.name for entry in entries),
        folders=tuple(folder for entry in entries for folder in _folders(entry)),
        seeds=tuple(seed for entry in entries for seed in _seeds(entry)),
        settings=settings,
        measure=measure,
        results=results_of(runs, measure),
        reused=reused_of(runs),
    )


def _incomparable(first: Group, other: Group) -> dict[str, str]:
    """Why two groups' results must not be compared, by what differs: data, metric, split."""
    changed = [key for key in other.settings if value_text(other.settings[key]) != value_text(first.settings[key])]
    one, two = first.measure, other.measure
    reasons = {
        part: _instead(key, other.settings[key], first.settings[key])
        for key in reversed(changed)
        if (part := _decides(key, {one.split, two.split})) and ABSENT not in (other.settings[key], first.settings[key])
    }
    if one.split != two.split:
        reasons["split"] = _instead("split", two.split, one.split)
    elif one.samples != two.samples and None not in (one.samples, two.samples):
        reasons.setdefault("data", f"{two.samples:,} samples instead of {one.samples:,}")
    if (one.metric, one.is_error, one.higher_is_better) != (two.metric, two.is_error, two.higher_is_better):
        reasons["metric"] = _instead("metric", two.score, one.score)
    return reasons


def _decides(key: str, splits: set[str]) -> str | None:
    """What a key of the recipe decides about the scores, beside how good they are."""
    part, _, rest = key.partition(".")
    if part == "metric":
        return "metric"
    training_only = rest.startswith("augment") or (rest.startswith("validation") and splits == {"test"})
    return "data" if part == "data" and not training_only else None


def _instead(key: str, new: Any, old: Any) -> str:
    return f"{key} {value_text(new)} instead of {value_text(old)}"
