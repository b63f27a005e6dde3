"""What a stage is to Prefect: one task, whose state says where its result was taken from the store."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from tasks.console import size
from tasks.execution.execute import execute
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Stage
from tasks.secrets import sealed
from tasks.stages import leave_of, name_of, work_of

# Every stage is one Prefect task with these settings: the store resumes, Prefect's cache cannot (its keys differ
# between equal tensors, and it returns results whose file is gone).
TASK: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False, "task_run_name": "{label}"}


def task_of(stage: str) -> Task[..., Any]:
    """The task of a stage, by what a recipe says behind ``stage:`` or by its name in the list.

    It takes the run, a label unique in it, the stage's place (None: no stage of the chain), its Settings, and the
    reference that it begins with; it returns its own, in a state named ``Reused`` where the store had it.
    """
    return _task(name_of(stage))


def told_of(reference: Reference) -> str:
    """What a stage came to, in a line."""
    numbers = reference.numbers
    smaller = f"{size(numbers['size_bytes'])}, {numbers['compression_ratio']:.1f}x smaller"
    return f"{smaller}, density {numbers['density']:.1%}, validation {numbers['val_metric']:.4f}"


@cache
def _task(name: str) -> Task[..., Any]:
    work, leave = work_of(name), leave_of(name)

    @task(name=name, description=inspect.getdoc(work), **TASK)
    @sealed
    def stage(
        run: Run, label: str, number: int | None, settings: Stage, source: Reference | None = None
    ) -> State[Reference] | Reference:
        reference, reused = execute(run, label, number, settings, source, work)
        if leave:
            leave(run, reference)
        return Completed(name="Reused" if reused else None, message=told_of(reference), data=reference)

    return stage
