"""The list of stages: behind each word that a recipe may say the module that has its keys and does its work.

Such a module has ``Settings``, a ``tasks.execution.settings.Stage`` whose key ``stage`` is that word, and
``work(bench, settings) -> Product``; and ``leave(run, reference)``, if it puts something in the run's folder. Schema,
Prefect tasks, checks and store keys come from there; this imports none.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.execution.settings import Stage

STAGES: dict[str, str] = {
    "prune": "tasks.stages.prune",
    "finetune": "tasks.stages.finetune",
    "train": "tasks.stages.train",
    "share": "tasks.stages.share",
    "allocate": "tasks.stages.allocate",
    "quantize": "tasks.stages.quantize",
    "reconstruct": "tasks.stages.reconstruct",
    "binarize": "tasks.stages.binarize",
    "recalibrate": "tasks.stages.recalibrate",
    "slim": "tasks.stages.slim",
    "lcnn": "tasks.stages.lcnn",
    "sparsify": "tasks.stages.sparsify",
    "encode": "tasks.stages.encode",
}
# The same for what no recipe says by this word: a callable of the user's, and what runs beside the stages.
OTHERS: dict[str, str] = {
    "custom": "tasks.stages.custom",
    "baseline": "tasks.stages.baseline",
    "importance": "tasks.stages.importance",
    "pace": "tasks.stages.pace",
    "sensitivity": "tasks.stages.sensitivity",
}


def name_of(stage: str) -> str:
    """The name in the list of what a recipe says: ``custom`` of a ``package.module:callable``."""
    return "custom" if ":" in stage else stage


def settings_of(name: str) -> type[Stage]:
    """The keys of a stage of the list."""
    found: type[Stage] = _module(name).Settings
    return found


def work_of(name: str) -> Callable[..., Any]:
    """What a stage of the list does: ``work(bench, settings)``."""
    found: Callable[..., Any] = _module(name).work
    return found


def leave_of(name: str) -> Callable[..., None] | None:
    """What puts something of a stage, made or used again, in the run's folder: ``leave(run, reference)``."""
    found: Callable[..., None] | None = getattr(_module(name), "leave", None)
    return found


def _module(name: str) -> Any:
    return import_module({**OTHERS, **STAGES}[name])
