"""One page about one recipe with several seeds: what they came to, how far they lie apart, and where each is told."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcompression._atomic import written
from tasks.report.outcome import Outcome, outcomes_of
from tasks.report.page import when
from tasks.report.templates import template
from tasks.report.words import comparison_of, end_of
from tasks.secrets import masked

TEMPLATE = "seeds.html.j2"
WIDE, EDGE = 440.0, 44.0  # of a strip, and left free at both of its ends


def write_seeds(summary: Mapping[str, Any], path: Path) -> None:
    """Writes the page of a run with several seeds: one HTML file that loads nothing and leads to the page of each.

    Args:
        summary: of the seeds together; ``runs`` has theirs.
        path: where the page goes; its folder exists.

    Raises:
        StorageError: the page cannot be written.
    """
    runs = summary["runs"]
    wrong = "error" in summary["final"]
    text = template(TEMPLATE).render(
        summary=summary,
        outcomes=outcomes_of_seeds(summary),
        when=when({**runs[0], "seconds": sum(one.get("seconds") or 0.0 for one in runs)}),
        rerun=f"python -m flows rerun {Path(summary['folder']).name}",
        metric="error" if wrong else runs[0]["metric"],
        key="error" if wrong else "metric",
        split=runs[0]["final"].get("split", "test"),
        rows=[_row(one, path.parent) for one in runs],
        strips=list(_strips(summary, wrong)),
        stages=stages_of(runs),
    )
    with written(path) as target:
        target.write(masked(text).encode("utf-8", "replace"))


def outcomes_of_seeds(summary: Mapping[str, Any]) -> list[Outcome]:
    """Of the aims, and of each seed's promotion; without either what the comparisons with the dense models say."""
    found = []
    if verdict := summary.get("verdict"):
        doubt = [one["verdict"]["test"] for one in summary["runs"] if one["verdict"] and one["verdict"]["test"]]
        kind = "bad" if not verdict["kept"] else "doubtful" if doubt else "good"
        told = "; ".join([verdict["text"], *dict.fromkeys(doubt)])
        found.append(Outcome(kind, "Kept" if verdict["kept"] else "Aim missed", told))
    for one in summary["runs"]:
        if one.get("promotion"):
            last = outcomes_of(one)[-1]
            found.append(Outcome(last.kind, f"Seed {one['seed']}: {last.word[:1].lower()}{last.word[1:]}", last.text))
    return found or [_without_aims(summary["runs"])]


def _without_aims(runs: Sequence[Mapping[str, Any]]) -> Outcome:
    compared = [(one["seed"], found) for one in runs if (found := comparison_of(one))]
    worse = [str(seed) for seed, found in compared if found.p_value < 0.05 and found.broken > found.mended]
    if worse:
        which = f"seed{'s' if worse[1:] else ''} {', '.join(worse)}"
        return Outcome("doubtful", "Worse than the dense model", f"by more than chance: {which}. No aim was set.")
    told = "None of the files is worse than its dense model by more than chance. " if compared else ""
    return Outcome("good", "Done", f"{told}No aim was set.")


def _row(run: Mapping[str, Any], here: Path) -> dict[str, Any]:
    """A seed's line."""
    page = Path(run["folder"]) / "report.html"
    found = comparison_of(run)
    return {
        "seed": run["seed"],
        "href": Path(os.path.relpath(page, here)).as_posix() if page.is_file() else "",
        "file_bytes": run["file_bytes"],
        "ratio": run["ratio"],
        "dense": end_of(run["baseline"]),
        "final": end_of(run["final"]),
        "p_value": found.p_value if found else None,
        "outcome": outcomes_of(run)[0],
    }


def _strips(summary: Mapping[str, Any], wrong: bool) -> Iterator[dict[str, Any]]:
    """Bytes and result of all seeds, each on a line of its own."""
    runs, key = summary["runs"], "error" if wrong else "metric"
    split = runs[0]["final"].get("split", "test")
    yield from strip("bytes of the file", [(one["seed"], one["file_bytes"]) for one in runs], "{:,.0f}")
    name, form = (f"{split} error", "{:.2%}") if wrong else (f"{split} {runs[0]['metric']}", "{:.4g}")
    yield from strip(name, [(one["seed"], one["final"][key]) for one in runs], form)


def strip(name: str, values: Sequence[tuple[int, float]], form: str) -> Iterator[dict[str, Any]]:
    """Where each seed's number lies between the least and the greatest; nothing where one is no number.

    Args:
        name: of the number.
        values: seed and number.
        form: how a number is written.
    """
    numbers = [value for _, value in values]
    if not all(map(math.isfinite, numbers)):
        return
    mean, spread = statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0
    low, high = min(*numbers, mean - spread), max(*numbers, mean + spread)

    def place(value: float) -> float:
        return round(WIDE / 2 if high == low else EDGE + (WIDE - 2 * EDGE) * (value - low) / (high - low), 1)

    dots: list[dict[str, Any]] = []
    for value in sorted(set(numbers)):
        seeds = ", ".join(str(seed) for seed, one in values if one == value)
        near = bool(dots) and place(value) - dots[-1]["x"] < 8 * len(seeds) and dots[-1]["low"]
        dots.append({"x": place(value), "seeds": seeds, "told": form.format(value), "low": not near})
    band = place(mean - spread), place(mean + spread)
    yield {
        **{"name": name, "dots": dots, "mean": place(mean), "band": band, "wide": WIDE},
        **{"told": f"{form.format(mean)} ± {form.format(spread)}"},
    }


def stages_of(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread of each stage's bytes and validation metric; nothing where seeds have unlike stages."""
    names = [[row["stage"] for row in one["stages"]] for one in runs]
    if any(one != names[0] for one in names):
        return []

    def over(place: int, key: str) -> dict[str, float]:
        values = [float(one["stages"][place][key]) for one in runs]
        spread = statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else 0.0
        return {"mean": statistics.fmean(values), "spread": spread}

    return [
        {"stage": name, "bytes": over(place, "size_bytes"), "metric": over(place, "val_metric")}
        for place, name in enumerate(names[0])
    ]
