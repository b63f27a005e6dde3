"""How long a training takes, from a few of its batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from deepcompression.data.batch import copied
from deepcompression.training.batches import Batches
from deepcompression.training.context import context_of
from deepcompression.training.device import Compute
from deepcompression.training.evaluate import evaluate
from deepcompression.training.method import Method
from deepcompression.training.problem import Problem, stepped
from deepcompression.training.randomness import kept
from deepcompression.training.session import Session

ENOUGH = 2.0  # seconds of batches


@dataclass(frozen=True)
class Pace:
    """Seconds of a pass over the training split, forwards and backwards, and of an evaluation on validation."""

    an_epoch: float
    a_look: float


def pace(
    model: nn.Module,
    problem: Problem,
    compute: Compute | None = None,
    enough: float = ENOUGH,
    methods: Sequence[Method] = (),
    teacher: nn.Module | None = None,
) -> Pace:
    """Measured on some batches, as many as ``enough`` seconds allow; the first is left out where there are more.

    Args:
        model: its buffers (BatchNorm's statistics) change, its parameters do not.
        problem: as it is to be trained.
        compute: where and how.
        enough: seconds.
        methods: what adds to the loss.
        teacher: what they learn from.
    """
    compute = compute or Compute()
    compute.place(model).train()
    users = [problem.train, problem.validation, problem.step, problem.metric, problem.augment]
    with kept([], *users):  # a run that is started again does not measure anew: what it draws must be the same
        with Session(model, methods, 1, context_of(problem, compute, teacher=teacher)) as session:
            a_batch, batches = _a_batch(session, problem, compute, enough)
        started = time.perf_counter()
        evaluate(model, problem.validation, problem.step, problem.metric, compute)
        return Pace(a_batch * batches, time.perf_counter() - started)


def _a_batch(session: Session, problem: Problem, compute: Compute, enough: float) -> tuple[float, int]:
    """Seconds of one, and how many there are in a pass."""
    model = session.model
    order = torch.Generator().manual_seed(0)
    batches = Batches(problem.train, problem.batch_size, compute, order, problem.augment, problem.drop_last)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.0, weight_decay=0.0)
    times = [time.perf_counter()]
    for batch in batches:
        with compute.autocast():
            again = copied(batch) if session.adds_to_loss else None
            loss, outputs, _ = stepped(problem.step, model, batch)
            loss = session.loss(loss, again, outputs)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        float(loss.detach())  # waits for the device
        times.append(time.perf_counter())
        if times[-1] - times[0] > enough and len(times) > 2:
            break
    known = times[1:] if len(times) > 2 else times
    return (known[-1] - known[0]) / max(len(known) - 1, 1), len(batches)
