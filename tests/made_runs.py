"""Summaries and recipes of runs that never ran, for tests of comparisons."""

from __future__ import annotations

import copy
import csv
import io
from typing import Any

from flows.compare.compare import Comparison, Entry, compare, render

RECIPE: dict[str, Any] = {
    "recipe_version": 1,
    "name": "digits",
    "seed": 0,
    "seeds": None,
    "model": {"factory": "deepcompression.models:digits_net", "kwargs": {}},
    "data": {"factory": "deepcompression.data:digits", "kwargs": {}, "validation": 0.15, "augment": None},
    "metric": None,
    "train": {"epochs": 60, "lr": 0.002, "patience": None},
    "stages": [
        {"stage": "prune", "density": {"conv1": 0.5, "default": 0.15}, "gradual": None},
        {"stage": "finetune", "epochs": 20},
        {"stage": "share", "bits": 5},
        {"stage": "encode", "coder": "huffman"},
    ],
    "store": "artifacts/store",
    "runs": "artifacts/runs",
    "tracking": {"uri": "sqlite:///artifacts/mlflow.db"},
}


def end_of(wrong: float, total: int = 360, split: str | None = None) -> dict[str, Any]:
    found = {"metric": 1 - wrong / total, "accuracy": 1 - wrong / total, "error": wrong / total}
    return {**found, "total": total, "higher_is_better": True, **({"split": split} if split else {})}


def run_of(
    name: str, file_bytes: float = 8601, wrong: float = 3, seed: int = 0, dense: float = 2, **more: Any
) -> dict[str, Any]:
    """A run's summary; keyword arguments replace keys."""
    stages = [
        {"stage": "baseline", "density": 1.0, "bits_per_weight": 32.0, "seconds": 6.5, "cached": False},
        {"stage": "encode", "density": 0.15, "bits_per_weight": 1.3, "seconds": 0.5, "cached": False},
    ]
    return {
        "summary_version": 1,
        "name": "digits",
        "seed": seed,
        "dense_bytes": 212008,
        "file_bytes": file_bytes,
        "ratio": 212008 / file_bytes if file_bytes else None,
        "metric": "accuracy",
        "baseline": end_of(dense),
        "final": end_of(wrong),
        "stages": stages,
        "folder": f"/runs/{name}",
        **more,
    }


def recipe_of(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """A recipe; ``stages__2__bits=4`` sets what lies there."""
    recipe = copy.deepcopy(RECIPE) | {"seed": seed}
    for path, value in changes.items():
        here: Any = recipe
        *way, end = (int(part) if part.isdigit() else part for part in path.split("__"))
        for part in way:
            here = here[part]
        here[end] = value
    return recipe


def entry_of(name: str, summary: dict[str, Any] | None = None, **changes: Any) -> Entry:
    summary = summary or run_of(name)
    return Entry(name, summary, recipe_of(summary.get("seed", 0), **changes))


def csv_rows(comparison: Comparison) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render(comparison, "csv"), newline=""), strict=True))


def scored(dense: float, file: float, higher: bool, name: str = "psnr") -> dict[str, Any]:
    ends = ({"metric": value, "total": 360, "higher_is_better": higher} for value in (dense, file))
    return {"metric": name, **dict(zip(("baseline", "final"), ends, strict=True))}


def five_runs() -> Comparison:
    """Three seeds of one recipe and two of another, as five runs."""
    first = [entry_of(f"a{seed}", run_of(f"a{seed}", 8600 + 40 * seed, 2 + seed, seed)) for seed in range(3)]
    other = [entry_of(f"b{s}", run_of(f"b{s}", 7900 + 10 * s, 6 + s, s), stages__2__bits=4) for s in range(2)]
    return compare([*first, *other])
