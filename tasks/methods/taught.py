"""What methods have in common that learn from a teacher's layers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.training.method import Method
    from tasks.execution.run import Run

Layers = Annotated[dict[str, str], Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]


def refuse_unfit(method: Method, run: Run, model: nn.Module) -> None:
    """Raises StructureError where a method cannot be attached with an untrained teacher.

    Args:
        method: attached, and taken away again.
        run: whose samples are tried.
        model: which would learn.
    """
    from deepcompression.training.context import context_of

    teacher = replace(run, model=run.teacher or run.model).blank_model()
    context = context_of(run.problem(), run.compute(), teacher=teacher)
    context.compute.place(model)
    try:
        method.attach(model, context)
    finally:
        method.close(model)
