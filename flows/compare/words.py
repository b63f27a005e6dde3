"""A comparison in words: columns of cells, sentences, notes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deepcompression.measure.significance import probability
from flows.compare.recipes import ABSENT, value_text
from flows.compare.results import RESULTS, Comparison, Group, Measure, Statistic

MISSING = "–"
NAMED_CHANGES = 4
SIDE_BY_SIDE = 4


@dataclass(frozen=True)
class Unit:
    """How one kind of number is printed."""

    decimals: int
    suffix: str = ""
    scale: float = 1
    style: str = ""

    def plain(self, value: float, signed: bool = True) -> str:
        """The number without its unit."""
        style = self.style if signed else self.style.replace("+", "")
        return f"{value * self.scale:{'+' if '+' in style else ''}z{',' if ',' in style else ''}.{self.decimals}f}"

    def text(self, statistic: Statistic | None) -> str:
        """Mean, spread where there are several, unit."""
        if statistic is None:
            return MISSING
        spread = "" if statistic.sd is None else f" ± {self.plain(statistic.sd, signed=False)}"
        return f"{self.plain(statistic.mean)}{spread}{self.suffix}"

    def one(self, value: float | None) -> str:
        """A single value with its unit."""
        return MISSING if value is None else f"{self.plain(value)}{self.suffix}"


BYTES = Unit(0, style=",")
UNITS = {
    "dense_bytes": BYTES,
    "file_bytes": BYTES,
    "ratio": Unit(1, "x"),
    "bits_per_weight": Unit(2),
    "density": Unit(1, " %", 100),
    "model_density": Unit(1, " %", 100),
    "p_value": Unit(4),
    "seconds": Unit(1),
}
LABELS = {
    "dense_bytes": "dense bytes",
    "file_bytes": "file bytes",
    "bits_per_weight": "bits per weight",
    "model_density": "density of all weights",
}
BEST = ("file_bytes", "ratio", "bits_per_weight", "file_score")


@dataclass(frozen=True)
class Cell:
    """One value of one group: as printed, as sorted, and whether no group has a better one."""

    text: str
    value: float | str | None = None
    best: bool = False


@dataclass(frozen=True)
class Column:
    """One property of all groups."""

    key: str
    label: str
    cells: tuple[Cell, ...]
    numeric: bool = False
    setting: bool = False


def score_unit(measure: Measure) -> Unit:
    """Errors in percent, other metrics as they are."""
    return Unit(2, " %", 100) if measure.is_error else Unit(4)


def change_unit(measure: Measure) -> Unit:
    """Differences of errors in points, of other metrics as they are, always with a sign."""
    return Unit(2, " pt", 100, "+") if measure.is_error else Unit(4, style="+")


def columns(comparison: Comparison) -> list[Column]:
    """The whole table: who, what was changed, what came out."""
    groups = comparison.groups
    found = [Column("run", "run", tuple(Cell(group.name, group.name) for group in groups))]
    found += [_setting(key, groups) for key in comparison.changed]
    found.append(Column("seeds", "seeds", tuple(Cell(_seeds(group), group.n) for group in groups)))
    if len({group.measure.label for group in groups}) > 1:
        found.append(Column("score", "score", tuple(Cell(group.measure.label) for group in groups)))
    for key in RESULTS:
        if key != "p_value" or _tested(groups):
            found += _result(key, groups)
    found.append(Column("reused", "reused stages", tuple(Cell(_reused(group)) for group in groups)))
    return found


def sentences(groups: Sequence[Group]) -> tuple[str, ...]:
    """The reference, then each other group compared with it."""
    first, *others = groups
    return (_reference(first), *(_sentence(first, other, named=len(others) > 1) for other in others))


def notes(groups: Sequence[Group]) -> tuple[str, ...]:
    """What a reader of the table must know."""
    found = []
    if any(group.n > 1 for group in groups):
        found.append("± is the sample standard deviation over seeds (n runs); worst is over the same seeds.")
    if len({frozenset(group.seeds) for group in groups}) > 1:
        found.append("Not all rows have the same seeds: a part of a difference may be the seeds'.")
    if _tested(groups):
        found.append(
            "p is of a file's change against its own dense model, on the same samples (McNemar, exact; one run only)."
        )
    if any(group.reused for group in groups):
        found.append("Seconds are what a run itself took; a reused stage was computed by an earlier run.")
    return tuple(found)


def _tested(groups: Sequence[Group]) -> bool:
    return any(group.results["p_value"] for group in groups)


def joined(parts: Sequence[str]) -> str:
    """One, two and three."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else ""


def _setting(key: str, groups: Sequence[Group]) -> Column:
    values = [group.settings[key] for group in groups]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    cells = tuple(Cell(value_text(value), value if numeric else value_text(value)) for value in values)
    return Column(key, key, cells, numeric, setting=True)


def _result(key: str, groups: Sequence[Group]) -> list[Column]:
    """A result's column, and one of the worst seeds where it has a worst and some group has several seeds."""
    units = [_unit(key, group.measure) for group in groups]
    pairs = [(group.results[key], unit) for group, unit in zip(groups, units, strict=True)]
    best = _best(key, groups)
    cells = tuple(Cell(_text(key, one, unit), one.mean if one else None, one in best) for one, unit in pairs)
    found = [Column(key, _label(key, groups), cells, numeric=True)]
    if key in ("file_bytes", "file_score") and any(group.n > 1 for group in groups):
        worst = [(one.worst if one else None, unit) for one, unit in pairs]
        cells = tuple(Cell(unit.one(value), value) for value, unit in worst)
        found.append(Column(f"{key}_worst", f"{_label(key, groups)}, worst", cells, numeric=True))
    return found


def _unit(key: str, measure: Measure) -> Unit:
    if key in UNITS:
        return UNITS[key]
    return change_unit(measure) if key == "change" else score_unit(measure)


def _text(key: str, statistic: Statistic | None, unit: Unit) -> str:
    if statistic and key == "dense_bytes" and statistic.sd == 0:  # no measurement: the same by construction
        return unit.one(statistic.mean)
    if statistic and key == "p_value":
        return probability(statistic.mean).removeprefix("= ")
    return unit.text(statistic)


def _label(key: str, groups: Sequence[Group]) -> str:
    labels = {group.measure.label for group in groups}
    score = labels.pop() if len(labels) == 1 else "score"
    names = {"dense_score": f"{score}, dense", "file_score": f"{score}, file", "change": f"{score}, change"}
    names["p_value"] = f"{names['change']}, p"
    return names.get(key) or LABELS.get(key, key)


def _best(key: str, groups: Sequence[Group]) -> list[Statistic]:
    """The best mean, and all that equal it; nothing where all do, or where groups must not be compared."""
    barred = {part for group in groups for part in group.incomparable}
    if key not in BEST or "data" in barred or (barred and key == "file_score"):
        return []
    found = [one for group in groups if (one := group.results[key]) and math.isfinite(one.mean)]
    if len({one.mean for one in found}) < 2:
        return []
    choose: Callable[..., float] = max if found[0].higher_is_better else min
    best = choose(one.mean for one in found)
    return [one for one in found if one.mean == best]


def _seeds(group: Group) -> str:
    return f"n = {group.n} seeds ({_listed(group)})" if group.n > 1 else _listed(group)


def _listed(group: Group) -> str:
    return ", ".join(MISSING if seed is None else str(seed) for seed in group.seeds)


def _reused(group: Group) -> str:
    counted = (f"{stage} ({count} of {group.n})" if count < group.n else stage for stage, count in group.reused.items())
    return ", ".join(counted) or "none"


def _reference(group: Group) -> str:
    seeds = f" (n = {group.n} seeds)" if group.n > 1 else ""
    results = group.results
    sizes = f"{_text('dense_bytes', results['dense_bytes'], BYTES)} → {BYTES.text(results['file_bytes'])} bytes"
    scores = " → ".join(score_unit(group.measure).text(results[end]) for end in ("dense_score", "file_score"))
    ratio = UNITS["ratio"].text(results["ratio"])
    return f"{group.name}{seeds}: {sizes}, {ratio} smaller, {group.measure.label} {scores}."


def _sentence(first: Group, other: Group, named: bool) -> str:
    if "data" in other.incomparable:
        return f"{other.name} is not comparable with {first.name}: {joined(list(other.incomparable.values()))}."
    changes = _changes(first, other)
    who = f" ({other.name})" if named and changes else ""
    subject = joined(changes) if changes else f"the same recipe{_other_seed(first, other)} in {other.name}"
    size = _size(first.results["file_bytes"], other.results["file_bytes"], plural=len(changes) > 1)
    return f"Compared with {first.name}, {subject}{who} {size}{_scores(first, other)}."


def _changes(first: Group, other: Group) -> list[str]:
    changes = []
    for key, new in other.settings.items():
        old = first.settings[key]
        if key == "stages":
            changes += _stages(str(old).split(", "), str(new).split(", "))
        elif ABSENT not in (old, new) and value_text(old) != value_text(new):
            changes.append(f"{key} {_short(value_text(new))} instead of {_short(value_text(old))}")
    if len(changes) > NAMED_CHANGES:
        more = len(changes) - NAMED_CHANGES + 1
        changes = [*changes[: NAMED_CHANGES - 1], f"{more} more changes of the recipe"]
    return changes


def _stages(old: Sequence[str], new: Sequence[str]) -> list[str]:
    changes = [f"no {stage}" for stage in old if stage not in new]
    changes += [f"{stage} added" for stage in new if stage not in old]
    if changes or old == new:
        return changes
    return [f"the order {', '.join(new)} instead of {', '.join(old)}"]


def _other_seed(first: Group, other: Group) -> str:
    return "" if set(first.seeds) == set(other.seeds) else f" with seed {_listed(other)} instead of {_listed(first)}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:59]}…"


def _size(first: Statistic | None, other: Statistic | None, plural: bool) -> str:
    leave, make = ("leave", "make") if plural else ("leaves", "makes")
    if first is None or other is None:
        return f"{leave} a file whose size cannot be compared"
    if first.mean == other.mean:
        return f"{leave} the file at {BYTES.text(other)} bytes"
    change = other.mean / first.mean - 1 if first.mean else math.nan
    if not math.isfinite(change):
        return f"{leave} a file whose size cannot be compared"
    word = "smaller" if change < 0 else "larger"
    percent = f"{abs(change) * 100:.1f}" if abs(change) >= 0.0005 else "less than 0.1"
    return f"{make} the file {percent} % {word} ({_arrow(first, other, BYTES, ' bytes')})"


def _scores(first: Group, other: Group) -> str:
    if other.incomparable:
        return f"; the scores are not comparable: {joined(list(other.incomparable.values()))}"
    before, after = first.results["file_score"], other.results["file_score"]
    label, unit = other.measure.label, score_unit(other.measure)
    if before is None or after is None:
        return f"; the {label} is not known for both"
    if before.values == after.values or (before.mean == after.mean and not (before.sd or after.sd)):
        return f" at the same {label} ({unit.text(after)})"
    change = change_unit(other.measure).plain(after.mean - before.mean)
    points = "points of " if other.measure.is_error else ""
    return f" at {change} {points}{label} ({_arrow(before, after, unit)}{_hint(other)}){_chance(before, after)}"


def _hint(group: Group) -> str:
    if group.measure.is_error:
        return ""
    return "; higher is better" if group.measure.higher_is_better else "; lower is better"


def _chance(first: Statistic, other: Statistic) -> str:
    """Said, not tested: a difference below the spread over seeds."""
    spread = max((one.sd for one in (first, other) if one.sd is not None), default=0.0)
    return ", less than the spread over seeds" if abs(other.mean - first.mean) < spread else ""


def _arrow(first: Statistic | None, other: Statistic | None, unit: Unit, suffix: str = "") -> str:
    """Old and new value; how many seeds they are means of, where they are."""
    counts = [one.n for one in (first, other) if one]
    seeds = f", n = {joined(list(map(str, dict.fromkeys(counts))))}" if max(counts, default=1) > 1 else ""
    return f"{unit.text(first)} → {unit.text(other)}{suffix}{seeds}"
