"""What is wrong with a sweep, found before Prefect starts: its own keys, and what a run of each point would find."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from deepcompression.errors import InputError, RecipeError, together
from flows.recipe import load as recipes
from flows.sweeps.study import Range, Sweep

SECONDS = 1.0  # of looking at more points than have to be looked at
Point = dict[str, Any]


def load(source: str | dict[str, Any], overrides: Mapping[str, Any] | None = None) -> Sweep:
    """The sweep of a YAML file or mapping; the keys of its recipe are checked at every point that can be known.

    Raises:
        InputError: in one line, with file, line, key and point; ``others``: what else is wrong.
    """
    plan = recipes.load_as(Sweep, source, overrides)
    _refuse_lost_file(source, overrides or {})
    least = 1 + sum(len(_values(one)) - 1 for one in plan.parameters.values())
    found = ((point, recipes.examined(plan.recipe, changes(plan, point))[1]) for point in points(plan))
    _raise(plan, _in_time(found, least))
    return plan


def _refuse_lost_file(source: str | dict[str, Any], overrides: Mapping[str, Any]) -> None:
    """An override within ``recipe`` would put a mapping in place of a file's name."""
    within = [key for key in overrides if key.startswith("recipe.")]
    others = {key: value for key, value in overrides.items() if key not in within}
    if within and isinstance(named := recipes.load_as(Sweep, source, others).recipe, str):
        key = within[0].removeprefix("recipe.")
        raise RecipeError(
            f"override {within[0]}: recipe is a file here, {named}; what all trials change in it is "
            f"overrides={{'{key}': ...}}"
        )


def refuse(plan: Sweep) -> None:
    """Raises what a run of the sweep's first point would find before Prefect starts, and of the others as many as
    there is time for.

    Raises:
        InputError: as ``load``.
    """
    from flows.checked import wrong_with

    for tried in ("never", "sound"):  # what is tried takes longest, and needs not be where names are wrong
        found = ((point, wrong_with(plan.recipe, changes(plan, point), tried)) for point in points(plan))
        _raise(plan, _in_time(found, 1))


def points(plan: Sweep) -> Iterator[Point]:
    """That of all first choices and lower ends; each other choice or end in it; then, of a grid, all that are left."""
    values = {key: _values(one) for key, one in plan.parameters.items()}
    first = {key: one[0] for key, one in values.items()}
    yield first
    yield from ({**first, key: value} for key, one in values.items() for value in one[1:])
    if plan.method == "grid":
        for places in itertools.product(*(range(len(one)) for one in values.values())):
            if sum(place > 0 for place in places) > 1:
                yield {key: one[place] for (key, one), place in zip(values.items(), places, strict=True)}


def changes(plan: Sweep, point: Mapping[str, Any]) -> dict[str, Any]:
    """What the sweep's recipe needs to be that of a point, judged by the test split too, as one that is chosen is."""
    return {**plan.overrides, **point, "name": plan.name, "test": True, "promote": None, "export": asked(plan)}


def asked(plan: Sweep) -> list[dict[str, Any]]:
    """The exports of every trial, as a recipe has them."""
    return [one.model_dump(exclude_defaults=True) for one in plan.export]


def _values(values: list[Any] | Range) -> list[Any]:
    """All choices, or the ends of a range."""
    if isinstance(values, list):
        return values
    return [int(end) if values.integer else end for end in (values.low, values.high)]


def _in_time(found: Iterable[tuple[Point, list[InputError]]], least: int) -> list[tuple[Point, list[InputError]]]:
    """So many points, and more as long as there is time, which the first one, that imports most, takes nothing of."""
    looked: list[tuple[Point, list[InputError]]] = []
    started = 0.0
    for one in found:
        started = started or time.perf_counter()
        looked.append(one)
        if len(looked) >= least and time.perf_counter() - started > SECONDS:
            break
    return looked


def _raise(plan: Sweep, looked: list[tuple[Point, list[InputError]]]) -> None:
    """A line for each thing that is wrong, behind the first point that has it, unless all do."""
    where: dict[str, list[Point]] = {}
    kinds: dict[str, InputError] = {}
    for point, wrong in looked:
        for error in wrong:
            where.setdefault(str(error), []).append(point)
            kinds.setdefault(str(error), error)
    lines = []
    for text, having in where.items():
        named = ", ".join(f"{key}={plan.label(key, value)}" for key, value in having[0].items())
        others = f" and {len(having) - 1} more" if having[1:] else ""
        lines.append(text if len(having) == len(looked) else f"sweep {plan.name}, point {named}{others}: {text}")
    if lines:
        raise together([type(error)(line) for error, line in zip(kinds.values(), lines, strict=True)])
