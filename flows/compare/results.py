"""The results of runs as numbers: over one seed, or over several with their spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# Result -> whether higher is better; None where neither is, or where the metric decides.
RESULTS: dict[str, bool | None] = {
    "dense_bytes": None,
    "file_bytes": False,
    "ratio": True,
    "bits_per_weight": False,
    "density": None,
    "model_density": None,
    "dense_score": None,
    "file_score": None,
    "change": None,
    "p_value": None,
    "seconds": None,
}


@dataclass(frozen=True)
class Statistic:
    """One result over the seeds of a group."""

    values: tuple[float, ...]
    higher_is_better: bool | None = None

    @property
    def n(self) -> int:
        """How many runs have it."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Arithmetic mean; not finite where a value is not."""
        return sum(self.values) / self.n if not self._finite else statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation; None for one run, NaN where a value is not finite."""
        if self.n < 2:
            return None
        return statistics.stdev(self.values) if self._finite else math.nan

    @property
    def worst(self) -> float | None:
        """The worst value; None where no direction is better, NaN where a value is NaN."""
        if self.higher_is_better is None:
            return None
        if any(map(math.isnan, self.values)):
            return math.nan
        return min(self.values) if self.higher_is_better else max(self.values)

    @property
    def _finite(self) -> bool:
        return all(map(math.isfinite, self.values))


@dataclass(frozen=True)
class Measure:
    """What a run's two scores are scores of."""

    metric: str
    is_error: bool
    higher_is_better: bool
    split: str
    samples: int | None

    @property
    def score(self) -> str:
        """The word for it: error, or the metric's own name."""
        if not self.is_error:
            return self.metric
        return "error" if self.metric == "accuracy" else f"{self.metric} error"

    @property
    def label(self) -> str:
        """The score with its split, such as "test error"."""
        return f"{self.split} {self.score}"


@dataclass(frozen=True)
class Group:
    """Runs whose recipes differ in nothing but the seed.

    ``settings`` has the group's value of every key that differs between groups; ``reused`` counts, for each stage,
    the runs that took it from the store; ``incomparable`` says why its scores (and, where the data are others, its
    sizes) must not be compared with the first group's.
    """

    names: tuple[str, ...]
    folders: tuple[str, ...]
    seeds: tuple[int | None, ...]
    settings: Mapping[str, Any]
    measure: Measure
    results: Mapping[str, Statistic | None]
    reused: Mapping[str, int]
    incomparable: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """One name for all."""
        more = len(self.names) - 1
        return f"{self.names[0]} and {more} more" if more else self.names[0]

    @property
    def n(self) -> int:
        """How many runs, each of another seed."""
        return len(self.seeds)


@dataclass(frozen=True)
class Comparison:
    """Groups of runs, the first of them the reference, and what can be said about the others.

    ``parts``: where some learnt from other data than others, a comparison each of those whose data are alike.
    """

    groups: tuple[Group, ...]
    changed: tuple[str, ...]
    sentences: tuple[str, ...]
    notes: tuple[str, ...]
    parts: tuple[Comparison, ...] = ()


def runs_of(summary: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The summaries of single runs: of each seed, or the summary itself."""
    runs = summary.get("runs")
    return tuple(_mapping(run) for run in runs) if isinstance(runs, list | tuple) and runs else (summary,)


def measure_of(run: Mapping[str, Any]) -> Measure:
    """What the scores of a run's summary are: error where scores are 0/1 and 1 is good, else the metric."""
    baseline, final = _mapping(run.get("baseline")), _mapping(run.get("final"))
    higher = bool(final.get("higher_is_better", baseline.get("higher_is_better", True)))
    is_error = higher and any(_number(end.get("error")) is not None for end in (baseline, final))
    total = _number(final.get("total"))
    return Measure(
        metric=str(run.get("metric") or "metric"),
        is_error=is_error,
        higher_is_better=False if is_error else higher,
        split=str(final.get("split") or "test"),
        samples=int(total) if total is not None and math.isfinite(total) else None,
    )


def results_of(runs: Sequence[Mapping[str, Any]], measure: Measure) -> dict[str, Statistic | None]:
    """Each of RESULTS over the runs; None where no run has it. A p is of one run: no mean of several says anything."""
    numbers = [_numbers(run, measure) for run in runs]
    found: dict[str, Statistic | None] = {}
    for name, higher in RESULTS.items():
        direction = measure.higher_is_better if name in ("dense_score", "file_score", "change") else higher
        values = tuple(value for value in (one[name] for one in numbers) if value is not None)
        told = bool(values) and not (name == "p_value" and len(runs) > 1)
        found[name] = Statistic(values, direction) if told else None
    return found


def reused_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Stage -> how many of the runs took it from the store."""
    counts: dict[str, int] = {}
    for run in runs:
        for stage in _stages(run):
            if stage.get("cached"):
                name = str(stage.get("stage"))
                counts[name] = counts.get(name, 0) + 1
    return counts


def _numbers(run: Mapping[str, Any], measure: Measure) -> dict[str, float | None]:
    stages = _stages(run)
    last = stages[-1] if stages else {}
    key = "error" if measure.is_error else "metric"
    dense, file = (_number(_mapping(run.get(end)).get(key)) for end in ("baseline", "final"))
    seconds = [value for value in (_number(stage.get("seconds")) for stage in stages) if value is not None]
    return {
        **{name: _number(run.get(name)) for name in ("dense_bytes", "file_bytes", "ratio")},
        **{name: _number(last.get(name)) for name in ("bits_per_weight", "density", "model_density")},
        "dense_score": dense,
        "file_score": file,
        "change": None if dense is None or file is None else file - dense,
        "p_value": _number(_mapping(run.get("comparison")).get("p_value")),
        "seconds": sum(seconds) if seconds else None,
    }


def _stages(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    stages = run.get("stages")
    return [stage for stage in stages if isinstance(stage, Mapping)] if isinstance(stages, list | tuple) else []


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
