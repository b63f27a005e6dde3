"""Budget mode: sensitivity, allocation, pruning, sharing, file; smaller and smaller, until too much would be lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deepcompression import budget as library
from deepcompression.budget import Budget, Candidate, Next, Stop
from deepcompression.errors import BudgetError
from flows import schema
from tasks import budget as task_budget
from tasks.console import say, size
from tasks.encode import encode
from tasks.prune import prune
from tasks.quantize import quantize
from tasks.run import Reference, Run
from tasks.sensitivity import sensitivity
from tasks.share import share
from tasks.slim import slim

Call = Callable[..., Reference]
PLANNED_EPOCHS = 11  # in epochs of a first step: how many of them a time limit is to be enough for
EPOCHS, FEWEST, MOST = 20, 4, 60  # of a first step's pruning: without a time limit; with one, at least and at most
LONGER = 2  # how many times as many epochs a step has once the limit is near
SHARING = 0.5  # epochs of a step's sharing, to those of its pruning
REST_BITS = 3  # of biases and normalisations
CRITERION = "wanda"
# What pruning does to the loss without training is known no further than this share of a layer's present weights.
TRIED = {"points": 7, "down_to": 0.2, "bits": [3, 4, 5], "most_samples": 2000, "criterion": CRITERION}


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

    @property
    def seconds(self) -> float:
        """Work, wherever and whenever it was done."""
        return sum(float(one.numbers["worked_seconds"]) for one in (*self.pruning, *self.sharing))


@dataclass
class Search:
    """The candidates of one run so far, and what was spent on them."""

    run: Run
    plan: schema.Budget
    train: schema.Training
    budget: Budget
    dense: Reference
    call: Call
    epochs: int
    spent: float
    steps: list[Step] = field(default_factory=list)
    number: int = 0

    def made(
        self, task: Any, label: str, config: Mapping[str, Any], source: Reference, *, counted: bool = True
    ) -> Reference:
        """A task's result, its work added to what was spent."""
        self.number += counted
        reference = self.call(task, self.run, label, self.number if counted else None, dict(config), source)
        self.spent += float(reference.numbers["worked_seconds"])
        return reference


def search(run: Run, recipe: schema.Recipe, dense: Reference, call: Call) -> tuple[list[Reference], dict[str, Any]]:
    """Makes candidates until there is nothing more to gain, or no time, and chooses the best.

    Args:
        run: the run; stages learn from its teacher.
        recipe: with a budget.
        dense: the baseline.
        call: a task's result, from the task and its arguments.

    Returns:
        The references of the dense model and all stages that lead to the chosen file, encode last; and the outcome:
        what was asked for, every step, why it stopped, which one was chosen.

    Raises:
        BudgetError: the budget cannot be measured on so few validation samples, or is no smaller than the model.
    """
    assert recipe.budget is not None
    train = recipe.budget.train or recipe.train
    now = Search(
        run, recipe.budget, train, _budget(recipe.budget, dense), dense, call, 0, float(dense.numbers["worked_seconds"])
    )
    now.epochs = recipe.budget.epochs or _affordable(now, recipe)
    reason = ""
    while not reason:
        results = [step.result for step in now.steps]
        following = library.next_step(now.budget, results, dense.numbers["dense_bytes"], now.plan.steps)
        reason = following.reason if isinstance(following, Stop) else _late(now, following)
        if not reason and isinstance(following, Next):
            now.steps.append(_step(now, following))
            _tell(now, now.steps[-1])
    chosen = library.best_of(now.budget, [step.result for step in now.steps])
    say(f"[bold]budget[/]       step {chosen + 1} of {len(now.steps)} is taken; no further: {reason}")
    outcome = _outcome(now, chosen, reason)
    task_budget.leave(run, outcome)
    return _chain(now, chosen), outcome


# ---------------------------------------------------------------- one step


def _step(now: Search, following: Next) -> Step:
    """Cut units, prune from an earlier candidate's weights, share, encode, measure."""
    source = now.dense if following.start is None else now.steps[following.start].pruning[-1]
    name = str(len(now.steps) + 1)
    allocation = _allocated(now, source, following.target_bytes, name)
    epochs = _epochs(now, following)
    gradual = schema.Gradual(**_training(now, epochs), ramp=0.6)
    units = task_budget.units_to_keep(now.run, source, allocation.density)
    few = schema.Slim(stage="slim", units=units, reorder=False) if units else None
    cut = (now.made(slim, f"cut-{name}", few.model_dump(mode="json"), source),) if few else ()
    sparse = schema.Prune(stage="prune", density=dict(allocation.density), criterion=CRITERION, gradual=gradual)
    pruned = now.made(prune, f"prune-{name}", sparse.model_dump(mode="json"), (*cut, source)[0])
    dead = schema.Slim(stage="slim", reorder=False)
    clean = now.made(slim, f"slim-{name}", dead.model_dump(mode="json"), pruned)
    reassign = schema.Reassign(**_training(now, max(2, round(epochs * SHARING))))
    rest = task_budget.worth_sharing(now.run, source)
    sharing = schema.Share(
        stage="share",
        bits={**allocation.bits, **dict.fromkeys(rest, REST_BITS)},
        rate=dict.fromkeys([*allocation.bits, *rest], now.plan.rate),
        train=reassign,
    )
    shared = now.made(share, f"share-{name}", sharing.model_dump(mode="json"), clean)
    rounding = schema.Quantize(stage="quantize", codebook="auto", rest="auto")
    tidy = now.made(slim, f"order-{name}", schema.Slim(stage="slim").model_dump(mode="json"), shared)
    rounded = now.made(quantize, f"quantize-{name}", rounding.model_dump(mode="json"), tidy)
    coding = schema.Encode(stage="encode", coder=now.plan.coder)
    encoded = now.made(encode, f"encode-{name}", coding.model_dump(mode="json"), rounded)
    return Step(
        following.target_bytes,
        following.start,
        allocation.density,
        allocation.bits,
        allocation.size,
        (*cut, pruned, clean),
        (shared, tidy, rounded, encoded),
        epochs,
        _measured(now, encoded, following.start),
    )


def _epochs(now: Search, following: Next) -> int:
    """Of a step's pruning: more once some step has lost too much, or where the bytes asked for are reached with it."""
    near = not all(step.result.kept for step in now.steps)
    if now.budget.most_bytes is not None:
        near = following.target_bytes <= now.budget.most_bytes
    return now.epochs * (LONGER if near else 1)


def _training(now: Search, epochs: int) -> dict[str, Any]:
    distil = now.plan.distil.model_dump() if now.plan.distil else None
    keys = set(schema.Training.model_fields)
    plain = {key: value for key, value in now.train.model_dump(mode="json").items() if key in keys}
    return {**plain, "epochs": epochs, "distil": distil}


def _allocated(now: Search, source: Reference, target_bytes: int, name: str) -> Any:
    """Density and bits of every tensor, for the bytes that are to be reached."""
    from deepcompression.allocation import allocate

    tried = now.made(sensitivity, f"sensitivity-{name}", {"stage": "sensitivity", **TRIED}, source, counted=False)
    options, rest = task_budget.options(now.run, tried, now.plan.coder)
    least = rest + sum(min(map(min, one.sizes)) for one in options)
    wanted = target_bytes / _actual_to_predicted(now.steps)
    return allocate(options, target_bytes=int(max(wanted, least + 1)), fixed_bytes=rest)


def _actual_to_predicted(steps: list[Step]) -> float:
    """How much larger the last candidate became than it was predicted to be."""
    if not steps:
        return 1.0
    return min(max(steps[-1].result.file_bytes / steps[-1].predicted_bytes, 0.5), 2.0)


def _measured(now: Search, encoded: Reference, start: int | None) -> Candidate:
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


# ---------------------------------------------------------------- limits


def _budget(plan: schema.Budget, dense: Reference) -> Budget:
    numbers = dense.numbers
    if plan.metric_loss is not None:
        margin = library.margin_of(plan.metric_loss, numbers["val_correct"], numbers["val_total"])
        return Budget(plan.metric_loss, None, margin if plan.margin is None else plan.margin)
    most = plan.file_bytes or int(numbers["dense_bytes"] / (plan.ratio or 1))
    if most >= numbers["dense_bytes"]:
        raise BudgetError(f"budget.file_bytes {most:,}: the dense model has {numbers['dense_bytes']:,} bytes already")
    return Budget(None, most)


def _affordable(now: Search, recipe: schema.Recipe) -> int:
    """Epochs of a step's pruning that leave room for so many steps in the time there is."""
    if now.plan.time_limit is None or recipe.model.weights:
        return EPOCHS
    an_epoch = now.spent / recipe.train.epochs
    left = 0.9 * 60 * now.plan.time_limit - now.spent
    affordable = left / (PLANNED_EPOCHS * (1 + SHARING) * max(an_epoch, 1e-3)) / 1.4  # a teacher asked, files encoded
    return int(min(max(affordable, FEWEST), MOST))


def _late(now: Search, following: Next) -> str:
    """Why there is no time for the next step; empty where there is."""
    needed = max((step.seconds / step.epochs for step in now.steps), default=0.0) * _epochs(now, following)
    if not now.steps or now.plan.time_limit is None or now.spent + 1.1 * needed <= 60 * now.plan.time_limit:
        return ""
    return f"{now.spent / 60:.1f} of {now.plan.time_limit:g} minutes are spent and a step takes {needed / 60:.1f}"


# ---------------------------------------------------------------- what is left


def _tell(now: Search, step: Step) -> None:
    unit = "points" if now.dense.numbers["val_correct"] is not None else ""
    verdict = "keeps to the budget" if step.result.kept else "does not keep to the budget"
    say(
        f"[bold]budget[/]       step {len(now.steps)}: {size(step.result.file_bytes)}, "
        f"{now.dense.numbers['dense_bytes'] / step.result.file_bytes:.1f}x, "
        f"{step.result.loss:+.2f} {unit} lost on validation: {verdict}"
    )


def _chain(now: Search, chosen: int) -> list[Reference]:
    step: Step | None = now.steps[chosen]
    assert step is not None
    chain = [*step.pruning, *step.sharing]
    while step is not None and step.start is not None:
        step = now.steps[step.start]
        chain = [*step.pruning, *chain]
    return [now.dense, *chain]


def _outcome(now: Search, chosen: int, reason: str) -> dict[str, Any]:
    numbers = now.dense.numbers
    return {
        "name": now.run.name,
        "metric": now.run.metric_object().name,
        "higher_is_better": bool(now.run.metric_object().higher_is_better),
        "in_points": numbers["val_correct"] is not None,
        "metric_loss": now.budget.metric_loss,
        "file_bytes": now.budget.most_bytes,
        "margin": now.budget.margin,
        "time_limit": now.plan.time_limit,
        "minutes": now.spent / 60,
        "dense_bytes": numbers["dense_bytes"],
        "dense_val_metric": numbers["val_metric"],
        "stopped": reason,
        "kept": now.steps[chosen].result.kept,
        "chosen": chosen + 1,
        "steps": [
            {
                "number": place + 1,
                "start": None if step.start is None else step.start + 1,
                "target_bytes": step.target_bytes,
                "predicted_bytes": step.predicted_bytes,
                "file_bytes": step.result.file_bytes,
                "ratio": numbers["dense_bytes"] / step.result.file_bytes,
                "val_metric": step.sharing[-1].numbers["val_metric"],
                "loss": step.result.loss,
                "expected_loss": step.result.expected,
                "kept": step.result.kept,
                "seconds": step.seconds,
                "density": dict(step.density),
                "bits": dict(step.bits),
            }
            for place, step in enumerate(now.steps)
        ],
    }
