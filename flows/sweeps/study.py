"""What a sweep may say, and its memory: which points were tried, with what result, which come next (Optuna's study)."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from flows.compare.recipes import ABSENT, differences, value_text
from flows.recipe.schema import Exports, Name, Recipe, Strict


class Range(Strict):
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float
    log: bool = Field(False, description="drawn evenly in the logarithm")
    step: float | None = Field(None, gt=0)
    integer: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high or (self.log and self.low <= 0):
            raise ValueError(f"expected low < high (and low > 0 with log), got {self.low} and {self.high}")
        return self


def _kind(value: Any) -> str:
    return "range" if isinstance(value, Mapping | Range) else "choices"


Values = Annotated[Annotated[list[Any], Tag("choices")] | Annotated[Range, Tag("range")], Discriminator(_kind)]


class Dask(Strict):
    """An existing cluster; without an address one is started on this machine."""

    address: str | None = Field(None, description="of a scheduler, such as tcp://10.0.0.5:8786")


class Sweep(Strict):
    """One YAML in conf/sweeps/: a recipe, which of its keys vary, how, and where the trials run."""

    name: Name
    recipe: str | dict[str, Any] = Field(description="path or URL of a recipe, or the recipe itself")
    overrides: dict[str, Any] = Field({}, description="dotted key -> value, the same in all trials")
    parameters: dict[str, Values] = Field(min_length=1, description="dotted key -> choices, or a range")
    labels: dict[str, list[str]] = Field(
        {}, description="dotted key -> a word for each of its choices, which tables show in their place"
    )
    method: Literal["grid", "random", "tpe"] = "grid"
    trials: int | None = Field(None, ge=1, description="random and tpe: how many")
    seed: int = Field(0, ge=0, description="of random and tpe")
    export: Exports = Field(
        [], description="of every trial, for bytes and latency beside the file's; the recipe's own are not made"
    )
    chosen: int = Field(5, ge=1, description="of the Pareto front, for how many the test split is read")
    runner: Literal["local", "dask"] = "local"
    workers: int = Field(1, ge=1, description="processes; with dask and an address: trials at once")
    dask: Dask = Dask()

    @field_validator("parameters")
    @classmethod
    def _choices(cls, value: dict[str, Any]) -> dict[str, Any]:
        for key, choices in value.items():
            if isinstance(choices, list) and not choices:
                raise ValueError(f"{key}: expected at least one choice")
        return value

    @model_validator(mode="after")
    def _labelled(self) -> Sweep:
        for key, words in self.labels.items():
            choices = self.parameters.get(key)
            if not isinstance(choices, list) or len(choices) != len(words):
                many = len(choices) if isinstance(choices, list) else "no"
                raise ValueError(f"labels.{key}: {len(words)} words for {many} choices; expected one for each")
        return self

    def label(self, key: str, value: Any) -> str:
        """What tables call a choice: its word; without one a list of stages by what is not the same in all lists, and
        other values as they stand in YAML."""
        choices = self.parameters.get(key)
        place = choices.index(value) if isinstance(choices, list) and value in choices else None
        if place is not None and key in self.labels:
            return self.labels[key][place]
        told = _stages(choices)[place] if place is not None and key == "stages" and isinstance(choices, list) else ""
        return told or value_text(value)

    @model_validator(mode="after")
    def _fitting(self) -> Sweep:
        ranges = [key for key, value in self.parameters.items() if isinstance(value, Range)]
        if self.method == "grid" and ranges:
            raise ValueError(f"method: grid takes lists of choices; {ranges[0]} is a range: use random or tpe")
        if self.method != "grid" and self.trials is None:
            raise ValueError(f"method: {self.method} needs trials: how many")
        if self.method == "grid" and self.trials is not None:
            raise ValueError("method: grid tries every combination; remove trials")
        return self


def _stages(choices: Sequence[Any]) -> list[str]:
    """Of each list of stages what it has and others have not, by dotted names; nothing where all are the same."""
    found = differences([{"stages": choice} for choice in choices])
    told = {key.removeprefix("stages."): values for key, values in found.items() if key != "stages"}
    order = found.get("stages", [""] * len(choices))
    return [
        ", ".join(
            [
                *([order[place]] if order[place] else []),
                *(f"{key} {value_text(values[place])}" for key, values in told.items() if _is_there(values[place])),
            ]
        )
        for place in range(len(choices))
    ]


def _is_there(value: Any) -> bool:
    return value is not None and value is not ABSENT


@dataclass
class Trial:
    """One run of the sweep: what was varied, and what came of it."""

    number: int
    parameters: dict[str, Any]
    error: str | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    test: dict[str, Any] | None = None


def open_study(plan: Sweep, folder: Path, parsed: Recipe) -> Any:
    """The study of a sweep's folder, new or as an earlier start left it; what was running then counts as failed."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import TrialState

    from deepcompression.training.problem import metric_of

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(folder / "study.log")))
    metric = metric_of(parsed.metric.model_dump() if parsed.metric else None)
    directions = ["minimize", "maximize" if metric.higher_is_better else "minimize"]
    study = optuna.create_study(study_name=folder.name, storage=storage, directions=directions, load_if_exists=True)
    seed = plan.seed + len(study.trials)  # started again, it must not draw the same points once more
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    study.sampler = samplers.get(plan.method, optuna.samplers.RandomSampler)(seed=seed)
    for trial in study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING)):
        storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)  # its process is gone
    return study


def points_to_try(plan: Sweep, study: Any) -> list[dict[str, Any]]:
    """Points to try first: of a grid all that are missing, else those that failed or were cut off before."""
    from optuna.trial import TrialState

    done = [trial.params for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    if plan.method == "grid":
        coded = [[_coded(choice) for choice in choices] for choices in plan.parameters.values()]  # type: ignore[union-attr]
        wanted = [dict(zip(plan.parameters, point, strict=True)) for point in itertools.product(*coded)]
    else:
        failed = study.get_trials(states=(TrialState.FAIL,))
        wanted = [trial.params for trial in failed if set(trial.params) == set(plan.parameters)]
    unique: list[dict[str, Any]] = []
    for point in wanted:
        if point not in done and point not in unique:
            unique.append(point)
    return unique


def distributions(plan: Sweep) -> dict[str, Any]:
    """Optuna's words for the choices and ranges of a sweep."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def one(value: Any) -> Any:
        if isinstance(value, list):
            return CategoricalDistribution([_coded(choice) for choice in value])
        if value.integer:
            return IntDistribution(int(value.low), int(value.high), log=value.log, step=int(value.step or 1))
        return FloatDistribution(value.low, value.high, log=value.log, step=value.step)

    return {key: one(value) for key, value in plan.parameters.items()}


def _coded(choice: Any) -> Any:
    """Optuna takes scalars; a mapping or list stands as its JSON."""
    return choice if choice is None or isinstance(choice, bool | int | float | str) else json.dumps(choice)


def as_overrides(plan: Sweep, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's parameters as overrides of the recipe."""
    found = {}
    for key, value in parameters.items():
        choices = plan.parameters.get(key)
        plain = [one for one in choices if _coded(one) == value] if isinstance(choices, list) else [value]
        found[key] = plain[0] if plain else value
    return found


def finished(plan: Sweep, study: Any) -> list[Trial]:
    """Trials that have a result."""
    from optuna.trial import TrialState

    return [
        Trial(one.number, as_overrides(plan, one.params), summary=one.user_attrs["summary"])
        for one in study.get_trials(states=(TrialState.COMPLETE,))
        if set(one.params) == set(plan.parameters)
    ]


def failed(plan: Sweep, study: Any) -> list[Trial]:
    """Trials whose last word is a failure: none with the same parameters succeeded."""
    from optuna.trial import TrialState

    done = [trial.params for trial in study.get_trials(states=(TrialState.COMPLETE,))]
    last = {
        json.dumps(one.params, sort_keys=True): one
        for one in study.get_trials(states=(TrialState.FAIL,))
        if one.params not in done and "error" in one.user_attrs
    }
    return [Trial(one.number, as_overrides(plan, one.params), error=one.user_attrs["error"]) for one in last.values()]
