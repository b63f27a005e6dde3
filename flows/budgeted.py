"""What can be known of a budget before anything trains: whether it can be kept at all, and what will be tried."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from deepcompression.allocation import budget as library
from deepcompression.errors import BudgetError
from flows.candidates import TRYINGS, sharing_epochs
from flows.recipe.schema import Budget, Recipe
from tasks.execution.rehearsal import Few, samples
from tasks.execution.run import Run

EPOCHS, FEWEST, MOST = 20, 4, 60  # of a first step's pruning: without a time limit; with one, at least and at most


def most_bytes(plan: Budget, dense_bytes: int) -> int | None:
    """Of the file at most, where the budget says so.

    Raises:
        BudgetError: the dense model has no more.
    """
    most = plan.file_bytes or (int(dense_bytes / plan.ratio) if plan.ratio else None)
    if most is not None and most >= dense_bytes:
        raise BudgetError(f"budget.file_bytes {most:,}: the dense model has {dense_bytes:,} bytes already")
    return most


def refuse_budget(run: Run, plan: Budget) -> None:
    """Raises what no training can mend: bytes that the dense model has, a loss of less than one validation sample.

    Raises:
        BudgetError: in one line.
    """
    from deepcompression.network.state import dense_bytes

    most_bytes(plan, dense_bytes(run.blank_model()))
    total = samples(run.splits().validation)
    if plan.metric_loss is not None and total and counted(run):
        library.margin_of(plan.metric_loss, 0, total)


def counted(run: Run) -> bool:
    """Whether samples are right or wrong, so that a loss of the metric is points."""
    from deepcompression.training.evaluate import evaluate

    few = Few(**{one.name: getattr(run, one.name) for one in fields(Run)})
    problem = few.problem()
    found = evaluate(few.blank_model(), problem.validation, problem.step, problem.metric, few.compute())
    return found.correct is not None


def foreseen(run: Run, parsed: Recipe, dense_bytes: int) -> dict[str, Any]:
    """``limits``: what was asked for; ``bytes``: from which sizes on the search looks, smallest and largest, and which
    are allowed; ``searches``: a line for each; ``unknown``: what only a run tells.

    Args:
        run: the run, that was looked at.
        parsed: its recipe, with a budget.
        dense_bytes: of the model.
    """
    from deepcompression.network import names

    plan = parsed.budget
    assert plan is not None
    unit = "points" if counted(run) else str(run.metric_object().name)
    limits = {"metric_loss": plan.metric_loss, "unit": unit, "time_limit": plan.time_limit, "steps": plan.steps}
    most = most_bytes(plan, dense_bytes)
    sizes = library.first_sizes(dense_bytes)
    if plan.metric_loss is None and most:
        sizes = [max(most, sizes[0])]
    tensors = len(set(names.prunable(run.blank_model())))
    return {
        **limits,
        "most_bytes": most,
        "first_bytes": [sizes[0], sizes[-1]],
        "tensors": tensors,
        "searches": _searches(run, parsed, plan, tensors),
    }


def _searches(run: Run, parsed: Recipe, plan: Budget, tensors: int) -> list[str]:
    told = []
    trains = (plan.train or parsed.train) is not None
    if not trains or (run.model.weights is not None and plan.time_limit is not None):
        told.append("files without training: nearly lossless ones, then layers reconstructed, smaller and smaller")
    if trains:
        first = TRYINGS[0]
        fewer = "; fewer where that takes a fifth of the time" if plan.time_limit else ""
        told.append(
            f"sensitivity of {tensors} tensors, {first.points} densities and {len(first.bits)} bit widths each, on "
            f"{first.samples:,} validation samples at most{fewer}"
        )
        told.append(f"{plan.steps} files at most, each pruned and trained {_epochs(plan)}")
    return told


def _epochs(plan: Budget) -> str:
    if plan.epochs or not plan.time_limit:
        epochs = plan.epochs or EPOCHS
        return f"{epochs} epochs, then shared in {sharing_epochs(epochs)}, or twice as many near the limit"
    return f"{FEWEST} to {MOST} epochs, as many as the time is enough for, then shared in half as many"
