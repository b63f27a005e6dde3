"""What a stage is to Prefect: one task, whose state says where its result was taken from the store."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec

from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, State

from tasks.execution.execute import execute
from tasks.execution.run import Reference

# Every stage is one Prefect task with these settings: the store resumes, Prefect's cache cannot (its keys differ
# between equal tensors, and it returns results whose file is gone).
TASK: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False, "task_run_name": "{label}"}

P = ParamSpec("P")


def _as_state(call: Callable[P, tuple[Reference, bool]]) -> Callable[P, State[Reference] | Reference]:
    @functools.wraps(call)
    def told(*args: P.args, **kwargs: P.kwargs) -> State[Reference] | Reference:
        reference, reused = call(*args, **kwargs)
        return Completed(name="Reused", data=reference) if reused else reference

    return told


# ``tasks.execution.execute.execute`` for Prefect: the reference, in a state named ``Reused`` where the store had it.
perform = _as_state(execute)
