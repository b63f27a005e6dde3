"""One candidate of budget mode: cut, pruned, shared, rounded and encoded for the bytes that it is to have."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from deepcompression.allocation import budget as library
from deepcompression.allocation.budget import Budget, Candidate, Clock, Next
from deepcompression.errors import StructureError
from flows.recipe import schema
from tasks import budget as task_budget
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Stage, Training, plain
from tasks.execution.stage import task_of
from tasks.stages import encode, prune, quantize, sensitivity, share, slim

Call = Callable[..., Reference]
LONGER = 2  # how many times as many epochs a step has once the limit is near
SHARING = 0.5  # epochs of a step's sharing, to those of its pruning
REST_BITS = 3  # of biases and normalisations
LEAST_SECONDS = 1.0  # that a stage gets before it is cut off
CRITERION: Literal["wanda"] = "wanda"


@dataclass(frozen=True)
class Quick:
    """A nearly lossless file of which nothing is pruned or trained: weights shared, or integers a channel, of so many
    bits, or neither; the precision of all else that floats.
    """

    note: str
    shared: int | None = None
    integers: int | None = None
    rest: str = "float16"

    @property
    def bits(self) -> int:
        """Of a weight, before it is coded."""
        return self.shared or self.integers or 32


FALLBACKS = (
    Quick("nothing pruned, weights shared at 8 bits", shared=8),
    Quick("nothing pruned, weights are integers of 8 bits", integers=8),
    Quick("nothing pruned or shared, rounded to float16"),
    Quick("the dense model, coded without loss", rest="float32"),
)
# What pruning does to the loss without training is known no further than this share of a layer's present weights.
DOWN_TO = 0.2


@dataclass(frozen=True)
class Trying:
    """How much of each tensor is tried: on so many samples of validation, at so many densities, with which bits; of
    every so many-th tensor.
    """

    samples: int
    points: int = 7
    bits: tuple[int, ...] = (3, 4, 5)
    every: int = 1

    def seconds(self, clock: Clock) -> float:
        """What it takes."""
        return clock.sensitivity(self.points + len(self.bits), self.samples, self.every)


# Less and less, where there is little time.
TRYINGS = (
    *(Trying(samples) for samples in (2000, 1000, 500, 250)),
    Trying(250, 3, (3, 5)), Trying(100, 3, (3, 5)), Trying(100, 3, (3, 5), 2), Trying(50, 3, (3, 5), 4),
    Trying(50, 2, (4,), 8),
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One candidate: what it was to be, what it became, and its stages."""

    target_bytes: int
    start: int | None
    density: Mapping[str, float]
    bits: Mapping[str, int]
    predicted_bytes: int
    pruning: tuple[Reference, ...]
    sharing: tuple[Reference, ...]
    epochs: int
    result: Candidate
    tried: Reference | None = None
    note: str = ""

    @property
    def seconds(self) -> float:
        """Work, wherever and whenever it was done."""
        tried = (self.tried,) if self.tried else ()
        return sum(float(one.numbers["worked_seconds"]) for one in (*tried, *self.pruning, *self.sharing))

    def needed(self, epochs: int) -> float:
        """Seconds that it would have taken with so many epochs."""
        trained = sum(float(one.numbers["worked_seconds"]) for one in (self.pruning[-2], self.sharing[0]))
        return self.seconds - trained + trained * epochs / self.epochs


@dataclass
class Search:
    """The candidates of one run so far, and what was spent on them."""

    run: Run
    plan: schema.Budget
    train: Training | None  # None: nothing trains
    budget: Budget
    dense: Reference
    call: Call
    epochs: int
    spent: float
    steps: list[Step] = field(default_factory=list)
    number: int = 0
    trying: Trying = TRYINGS[0]
    rest: str = "auto"
    tried: Reference | None = None  # the dense model's sensitivity
    first: float = 0.0  # seconds that the first step's training is planned to take
    quick: list[Step] = field(default_factory=list)  # made without training, before the others
    last: str = "the dense model"  # what was begun last

    @property
    def left(self) -> float:
        """Seconds; infinite without a time limit."""
        return math.inf if self.plan.time_limit is None else 60 * self.plan.time_limit - self.spent

    @property
    def time(self) -> str:
        """What is spent of the time limit, for people."""
        return f"{minutes(self.spent)} of {self.plan.time_limit:g} minutes"

    @property
    def every(self) -> list[Step]:
        """All candidates, in the order in which they were made."""
        return [*self.quick, *self.steps]

    @property
    def smallest(self) -> int | None:
        """Bytes of the smallest that keeps to the budget and was made without training."""
        return min((one.result.file_bytes for one in self.quick if one.result.kept), default=None)

    def name(self) -> str:
        """What labels of the next candidate end in."""
        return str(len(self.every) + 1)

    def made(
        self, label: str, settings: Stage, source: Reference, *, counted: bool = True, bounded: bool = True
    ) -> Reference:
        """A stage's result, its work added to what was spent.

        Args:
            label: of the stage.
            settings: its keys.
            source: what it begins with.
            counted: whether it has a place of its own in curves.
            bounded: whether it is cut off when there is no time left; what it has finished by then is kept.

        Raises:
            TimeoutError: it was cut off.
        """
        self.number += counted
        self.last = label
        number, task = self.number if counted else None, task_of(settings.stage)
        if bounded and self.plan.time_limit is not None:
            task = task.with_options(timeout_seconds=max(self.left, LEAST_SECONDS))
        try:
            reference = self.call(task, self.run, label, number, settings, source)
        except TimeoutError:
            self.spent += max(self.left, 0.0)
            raise
        self.spent += float(reference.numbers["worked_seconds"])
        return reference


def made_step(now: Search, following: Next) -> Step:
    """Cut units, prune from an earlier candidate's weights, share, encode, measure."""
    source = now.dense if following.start is None else now.steps[following.start].pruning[-1]
    name = now.name()
    tried = sensitivity_of(now, source, name)
    allocation = allocated(now, tried, following.target_bytes)
    epochs = epochs_of(now, following)
    gradual = prune.Gradual(**training_keys(now, epochs), ramp=0.6)
    units = task_budget.units_to_keep(now.run, source, allocation.density)
    few = slim.Settings(stage="slim", units=units, reorder=False) if units else None
    cut = (now.made(f"cut-{name}", few, source),) if few else ()
    sparse = prune.Settings(stage="prune", density=dict(allocation.density), criterion=CRITERION, gradual=gradual)
    pruned = now.made(f"prune-{name}", sparse, (*cut, source)[0])
    dead = slim.Settings(stage="slim", reorder=False)
    clean = now.made(f"slim-{name}", dead, pruned)
    reassign = share.Reassign(**training_keys(now, sharing_epochs(epochs)))
    rest = task_budget.worth_sharing(now.run, source)
    sharing = share.Settings(
        stage="share",
        bits={**allocation.bits, **dict.fromkeys(rest, REST_BITS)},
        rate=dict.fromkeys([*allocation.bits, *rest], now.plan.rate),
        train=reassign,
    )
    shared = now.made(f"share-{name}", sharing, clean)
    rounding = quantize.Settings.model_validate({"stage": "quantize", "codebook": "auto", "rest": now.rest})
    tidy = now.made(f"order-{name}", slim.Settings(stage="slim"), shared)
    rounded = now.made(f"quantize-{name}", rounding, tidy)
    coding = encode.Settings(stage="encode", coder=now.plan.coder)
    encoded = now.made(f"encode-{name}", coding, rounded)
    return Step(
        following.target_bytes,
        following.start,
        allocation.density,
        allocation.bits,
        allocation.size,
        (*cut, pruned, clean),
        (shared, tidy, rounded, encoded),
        epochs,
        measured(now, encoded, following.start),
        tried,
    )


def without_training(now: Search, way: Quick) -> Step:
    """A nearly lossless candidate from the dense model."""
    name, chain = now.name(), [now.dense]
    if way.shared:
        sharing = share.Settings(stage="share", bits=way.shared, init="optimal")
        chain.append(now.made(f"share-{name}", sharing, chain[-1], bounded=False))
    if way.rest != "float32":
        keys: dict[str, Any] = {"stage": "quantize", "codebook": "auto", "rest": way.rest}
        rounding = quantize.Settings.model_validate(keys | {"weights": way.integers and {"bits": way.integers}})
        chain.append(now.made(f"quantize-{name}", rounding, chain[-1], bounded=False))
    coding = encode.Settings(stage="encode", coder=now.plan.coder)
    chain.append(now.made(f"encode-{name}", coding, chain[-1], bounded=False))
    result = measured(now, chain[-1], None)
    return Step(result.file_bytes, None, {}, {}, result.file_bytes, (), tuple(chain[1:]), 0, result, None, way.note)


def first_kept(now: Search, ways: Iterable[Quick], made: list[Step], tell: Callable[[Search], object]) -> None:
    """Makes nearly lossless files until one keeps to the budget; seconds, whatever time is left.

    Args:
        now: the search.
        ways: in the order in which they are tried; integers are left out where a weight's structure refuses them.
        made: gets each file.
        tell: is called after each.
    """
    for way in ways:
        try:
            made.append(without_training(now, way))
        except StructureError:
            if not way.integers:
                raise
            continue
        tell(now)
        if made[-1].result.kept:
            return


def epochs_of(now: Search, following: Next) -> int:
    """Of a step's pruning: more once some step has lost too much, or where the bytes asked for are reached with it."""
    near = not all(step.result.kept for step in now.steps)
    if now.budget.bytes_alone is not None:
        near = following.target_bytes <= now.budget.bytes_alone
    return now.epochs * (LONGER if near else 1)


def sharing_epochs(epochs: int) -> int:
    """Of a step's sharing."""
    return max(2, round(epochs * SHARING))


def training_keys(now: Search, epochs: int) -> dict[str, Any]:
    """The recipe's keys of a step's training, so long."""
    assert now.train is not None
    keys = {key: value for key, value in plain(now.train).items() if key in Training.model_fields}
    return {**keys, "epochs": epochs, "distil": plain(now.plan.distil)}


def sensitivity_of(now: Search, source: Reference, name: str) -> Reference:
    """How sensitive the model is; the dense model's is asked for once, before the first step."""
    if now.tried is not None and source is now.dense and not now.steps:
        return now.tried
    how = now.trying
    settings = sensitivity.Settings(
        stage="sensitivity", points=how.points, down_to=DOWN_TO, bits=list(how.bits), most_samples=how.samples,
        every=how.every, criterion=CRITERION,
    )  # fmt: skip
    return now.made(f"sensitivity-{name}", settings, source, counted=False)


def allocated(now: Search, tried: Reference, target_bytes: int) -> Any:
    """Density and bits of every tensor, for the bytes that are to be reached."""
    from deepcompression.allocation.allocate import allocate, least_bytes

    options, rest = task_budget.options(now.run, tried, now.plan.coder)
    least = rest + least_bytes(options)
    wanted = target_bytes / _actual_to_predicted(now.steps)
    return allocate(options, target_bytes=int(max(wanted, least + 1)), fixed_bytes=rest)


def _actual_to_predicted(steps: list[Step]) -> float:
    """How much larger the last candidate became than it was predicted to be."""
    if not steps:
        return 1.0
    return min(max(steps[-1].result.file_bytes / steps[-1].predicted_bytes, 0.5), 2.0)


def minutes(seconds: float) -> str:
    """A time for people."""
    return f"{seconds / 60:.1f} minutes" if seconds >= 6 else f"{seconds:.1f} s"


def measured(now: Search, encoded: Reference, start: int | None) -> Candidate:
    """What a file is worth against the dense model.

    Args:
        now: the search.
        encoded: the file.
        start: the place of the candidate whose weights it went on from.
    """
    higher = bool(now.run.metric_object().higher_is_better)
    numbers, dense = encoded.numbers, now.dense.numbers
    loss = library.loss_of(
        numbers["val_metric"],
        dense["val_metric"],
        higher_is_better=higher,
        in_points=dense["val_correct"] is not None,
    )
    count, total, expected = int(numbers["size_bytes"]), numbers["val_total"], None
    if dense["val_correct"] is not None:
        expected = library.expected_loss(
            loss,
            wrong_before=total - dense["val_correct"],
            wrong_after=total - numbers["val_correct"],
            total=total,
            loss_before=dense["val_loss"],
            loss_after=numbers["val_loss"],
        )
    return Candidate(count, loss, library.keeps(now.budget, count, loss, expected), expected, start)
