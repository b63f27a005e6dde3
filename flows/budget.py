"""Budget mode: sensitivity, allocation, pruning, sharing, file; smaller and smaller, until too much would be lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from deepcompression.allocation import budget as library
from deepcompression.allocation.budget import Budget, Clock, Next, Stop
from deepcompression.errors import BudgetError, DivergedError, RunError, StructureError
from flows import reconstructed
from flows.budgeted import EPOCHS, FEWEST, MOST, most_bytes
from flows.candidates import (
    FALLBACKS,
    SHARING,
    TRYINGS,
    Call,
    Quick,
    Search,
    Step,
    Trying,
    allocated,
    epochs_of,
    first_kept,
    made_step,
    minutes,
    sensitivity_of,
    sharing_epochs,
    training_keys,
)
from flows.recipe import schema
from tasks import budget as task_budget
from tasks.console import say, size
from tasks.execution.run import Reference, Run
from tasks.stages import pace
from tasks.verdict import lost

PLANNED_EPOCHS = 11  # in epochs of a first step: how many of them a time limit is to be enough for
PLANNED_STEPS = 4  # whose sensitivity a time limit is to be enough for
SMALL_FALLBACKS = (FALLBACKS[0], Quick("nothing pruned, weights shared at 4 bits", shared=4))  # where bytes are given


def search(run: Run, recipe: schema.Recipe, dense: Reference, call: Call) -> tuple[list[Reference], dict[str, Any]]:
    """Makes candidates until there is nothing more to gain, or no time, and chooses the best; where none keeps to the
    budget, nearly lossless ones too.

    Args:
        run: the run; stages learn from its teacher.
        recipe: with a budget.
        dense: the baseline.
        call: a task's result, from the task and its arguments.

    Returns:
        The references of the dense model and all stages that lead to the chosen file, encode last; and the outcome:
        what was asked for, every step, why it stopped, which one was chosen.

    Raises:
        BudgetError: the budget cannot be measured on so few validation samples, or is no smaller than the model; or the
            dense model's metric or loss is not a number.
        RunError: not one file could be made.
    """
    assert recipe.budget is not None
    train = recipe.budget.train or recipe.train
    _refuse_unmeasured(str(run.metric_object().name), dense)
    now = Search(
        run, recipe.budget, train, _budget(recipe.budget, dense), dense, call, 0, float(dense.numbers["worked_seconds"])
    )
    reasons = [reconstructed.search(now, _tell)] if reconstructed.reconstructs(now) else []
    reasons += [_trained(now, recipe)] if train is not None else []
    reason = "; ".join(reasons)
    if not any(step.result.kept for step in now.every) and (ways := _fallbacks(now)):
        _fall_back(now, ways)
        reason += "; what is nearly lossless was made instead"
    if not now.every:
        raise RunError(f"budget: no file was made: {reason}")
    chosen = library.best_of(now.budget, [step.result for step in now.every])
    say(f"[bold]budget[/]       step {chosen + 1} of {len(now.every)} is taken; no further: {reason}")
    outcome = _outcome(now, chosen, reason)
    task_budget.leave(run, outcome)
    return _chain(now, chosen), outcome


def _trained(now: Search, recipe: schema.Recipe) -> str:
    """Makes candidates that are trained, as long as there is time; why there is no other."""
    try:
        return _plan(now, recipe) or _nothing_to_try(now) or _search_on(now, _first_bytes(now))
    except TimeoutError:
        return f"{now.time} are spent: {now.last} was cut off"


def _search_on(now: Search, first: int | None) -> str:
    """Step after step, each where the ones before point; why there is none after the last."""
    while True:
        results = [step.result for step in now.steps]
        following = library.next_step(now.budget, results, now.dense.numbers["dense_bytes"], now.plan.steps, first)
        reason = following.reason if isinstance(following, Stop) else _late(now, following)
        if reason or not isinstance(following, Next):
            return reason
        try:
            now.steps.append(made_step(now, following))
        except (DivergedError, StructureError) as error:  # of this candidate: what was made before is as good as it was
            return f"step {now.name()} came to nothing ({error})"
        _tell(now)


def _fallbacks(now: Search) -> Sequence[Quick]:
    """Those that may be small enough, a shared weight taken as half of its bits; all of them where no file is made."""
    most = now.budget.bytes_alone
    if most is None:
        return [one for one in FALLBACKS if one.note not in [step.note for step in now.quick]]
    dense = now.dense.numbers["dense_bytes"]
    return [one for one in SMALL_FALLBACKS if not now.every or dense * one.bits / 2 / 32 <= most]


def _fall_back(now: Search, ways: Sequence[Quick]) -> None:
    """Nearly lossless files, the smallest first, until one keeps to the budget."""
    say("[bold]budget[/]       nothing keeps to the budget so far: what is nearly lossless is made")
    first_kept(now, ways, now.steps, _tell)


def _first_bytes(now: Search) -> int | None:
    """The smallest size that is predicted to keep to the budget; else the largest, and the search goes up from it."""
    if now.budget.metric_loss is None or now.left <= 0:
        return None
    tried = sensitivity_of(now, now.dense, "1")
    sizes = library.first_sizes(now.dense.numbers["dense_bytes"])
    sizes = [one for one in sizes if now.smallest is None or one < now.smallest] or sizes[:1]
    in_points = now.dense.numbers["val_correct"] is not None
    for size_ in sizes:
        allocation = allocated(now, tried, size_)
        expected = task_budget.predicted(now.run, tried, allocation, in_points=in_points)
        if expected <= now.budget.metric_loss - now.budget.margin:
            return size_
    return sizes[-1]


# ---------------------------------------------------------------- limits


def _budget(plan: schema.Budget, dense: Reference) -> Budget:
    numbers = dense.numbers
    most = most_bytes(plan, numbers["dense_bytes"])
    if plan.metric_loss is None:
        return Budget(None, most)
    margin = library.margin_of(plan.metric_loss, numbers["val_correct"], numbers["val_total"])
    return Budget(plan.metric_loss, most, margin if plan.margin is None else plan.margin)


def _plan(now: Search, recipe: schema.Recipe) -> str:
    """Sets how long steps train and how much they try, by the time there is; why there is none for even one step."""
    now.epochs = now.plan.epochs or EPOCHS
    if now.plan.time_limit is None:
        return ""
    if now.left <= 0:
        return f"{now.time} are spent{'' if now.quick else ' by the dense model alone'}"
    clock = _clock(now, recipe)
    now.trying, now.rest = _thrift(clock, now.left)
    aside = now.trying.seconds(clock) + (clock.by_effect() if now.rest == "auto" else 0.0)
    wanted = now.plan.epochs or _affordable(now, clock, aside)
    now.epochs = wanted if now.plan.epochs else _fitting(clock, now.left - aside, wanted)
    now.first = clock.training(max(now.epochs, 1) + sharing_epochs(max(now.epochs, 1)))
    needed = aside + now.first
    if now.epochs and needed <= now.left:
        return ""
    which = f"a step of {now.epochs} epochs (budget.epochs)" if now.plan.epochs else "the shortest step"
    return f"{now.time} are spent and {which} takes {minutes(needed)}"


def _nothing_to_try(now: Search) -> str:
    """Why no step can be made of this model; empty where one can. Asks for the dense model's sensitivity."""
    now.tried = sensitivity_of(now, now.dense, "1")
    if task_budget.options(now.run, now.tried, now.plan.coder)[0]:
        return ""
    return "no tensor that is pruned by default can be pruned and shared at a loss that is a number"


def _clock(now: Search, recipe: schema.Recipe) -> Clock:
    """What an epoch and an evaluation take: of the dense model's own training where steps train as it did."""
    keys = ("batch_size", "drop_last", "distil")
    of_training = {key: value for key, value in training_keys(now, 1).items() if key in keys}
    measured = now.made("pace", pace.Settings(stage="pace", **of_training), now.dense, counted=False)
    an_epoch, a_look = pace.measured(now.run, measured)
    known = None if recipe.budget is None or recipe.budget.train else task_budget.epoch_seconds(now.run, now.dense)
    return task_budget.clock_of(now.run, now.dense, an_epoch if known is None else known, a_look)


def _thrift(clock: Clock, left: float) -> tuple[Trying, str]:
    """How much of which tensors is tried, a fifth of the time at most if that can be; the precision of the rest."""
    trying = next((one for one in TRYINGS if one.seconds(clock) <= left / 5), TRYINGS[-1])
    return trying, "auto" if clock.by_effect() <= left / 10 else "bfloat16"


def _affordable(now: Search, clock: Clock, aside: float) -> int:
    """Epochs of a step's pruning that leave room for so many steps in the time there is."""
    left = now.left - 6 * (now.plan.time_limit or 0) - PLANNED_STEPS * aside
    affordable = left / (PLANNED_EPOCHS * (1 + SHARING) * library.OVERHEAD * max(clock.an_epoch, 1e-3))
    return int(min(max(affordable, FEWEST), MOST))


def _fitting(clock: Clock, left: float, wanted: int) -> int:
    """As many epochs as fit into the time, up to ``wanted``; 0 where not even one does."""
    return next((one for one in range(wanted, 0, -1) if clock.training(one + sharing_epochs(one)) <= left), 0)


def _late(now: Search, following: Next) -> str:
    """Why there is no time for the next step; empty where there is."""
    needed = max((1.1 * step.needed(epochs_of(now, following)) for step in now.steps), default=now.first)
    return f"{now.time} are spent and a step takes {minutes(needed)}" if needed > now.left else ""


def _refuse_unmeasured(metric: str, dense: Reference) -> None:
    """BudgetError where there is nothing that a loss could be measured against."""
    for name, key in ((metric, "val_metric"), ("loss", "val_loss")):
        if not math.isfinite(dense.numbers[key]):
            raise BudgetError(
                f"budget: the dense model's val {name} is not a number ({dense.numbers[key]}), so what a file loses "
                "against it cannot be measured; look at the metric, the loss and the validation split"
            )


# ---------------------------------------------------------------- what is left


def _tell(now: Search) -> None:
    step = now.every[-1]
    unit = "points" if now.dense.numbers["val_correct"] is not None else str(now.run.metric_object().name)
    note = f" ({step.note})" if step.note else ""
    verdict = "keeps to the budget" if _kept(now, step) else "does not keep to the budget"
    say(
        f"[bold]budget[/]       step {len(now.every)}: {size(step.result.file_bytes)}, "
        f"{now.dense.numbers['dense_bytes'] / step.result.file_bytes:.1f}x, "
        f"{lost(step.result.loss, unit)} on validation: {verdict}{note}"
    )


def _kept(now: Search, step: Step) -> bool:
    """Whether a file keeps to all that was asked for."""
    return step.result.kept and now.budget.fits(step.result.file_bytes)


def _chain(now: Search, chosen: int) -> list[Reference]:
    step: Step | None = now.every[chosen]
    assert step is not None
    chain = [*step.pruning, *step.sharing]
    while step is not None and step.start is not None:
        step = now.steps[step.start]
        chain = [*step.pruning, *chain]
    return [now.dense, *chain]


def _outcome(now: Search, chosen: int, reason: str) -> dict[str, Any]:
    numbers, before = now.dense.numbers, len(now.quick) + 1
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
        "kept": _kept(now, now.every[chosen]),
        "chosen": chosen + 1,
        "steps": [
            {
                "number": place + 1,
                "start": None if step.start is None else step.start + before,
                "target_bytes": step.target_bytes,
                "predicted_bytes": step.predicted_bytes,
                "file_bytes": step.result.file_bytes,
                "ratio": numbers["dense_bytes"] / step.result.file_bytes,
                "val_metric": step.sharing[-1].numbers["val_metric"],
                "loss": step.result.loss,
                "expected_loss": step.result.expected,
                "kept": _kept(now, step),
                "seconds": step.seconds,
                "note": step.note,
                "density": dict(step.density),
                "bits": dict(step.bits),
            }
            for place, step in enumerate(now.every)
        ],
    }
