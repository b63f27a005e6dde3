"""What methods and criteria may use of a problem."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn

from deepcompression.data.splits import drawn
from deepcompression.structure.constraints import Structure
from deepcompression.training.batches import some
from deepcompression.training.device import Compute
from deepcompression.training.method import Context
from deepcompression.training.problem import Problem, stepped
from deepcompression.training.teacher import Teacher


def context_of(
    problem: Problem,
    compute: Compute,
    seed: int = 0,
    *,
    structure: Structure | None = None,
    teacher: nn.Module | None = None,
) -> Context:
    """What methods and criteria may use of a problem: samples of its training split, its step's outputs, a teacher.

    Args:
        problem: its training split and step.
        compute: where models run.
        seed: of what methods draw.
        structure: what must stay true of tensors.
        teacher: what methods learn from; put into eval mode.
    """

    def first(count: int) -> Iterable[Any]:
        return some(problem.train, count, problem.batch_size, compute)

    def from_all(count: int) -> Iterable[Any]:
        return some(drawn(problem.train, count, seed), count, problem.batch_size, compute)

    def forward(one: nn.Module, batch: Any) -> Any:
        return stepped(problem.step, one, batch)[1]

    def loss(one: nn.Module, batch: Any) -> Tensor:
        return stepped(problem.step, one, batch)[0]

    if teacher is not None:
        compute.place(teacher).eval().requires_grad_(False)
    learnt = None if teacher is None else Teacher(partial(forward, teacher), teacher)
    better = problem.metric.higher_is_better
    kept = structure or {}
    return Context(first, forward, learnt, seed, compute, kept, drawn=from_all, loss=loss, higher_is_better=better)
