"""What a model is worth on a split."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.data.batch import count_of, described, lengths
from deepcompression.errors import DataError, FactoryError, in_one_line
from deepcompression.training.batches import Batches
from deepcompression.training.device import Compute
from deepcompression.training.evaluated_batch import evaluated_batch
from deepcompression.training.problem import Step, stepped


@dataclass(frozen=True)
class Evaluation:
    """A model's result on one split; ``correct`` and ``scores`` exist where scores are per sample."""

    metric: float
    loss: float
    total: int
    correct: int | None
    scores: Tensor | None


def evaluate(
    model: nn.Module,
    split: Any,
    step: Step,
    metric: Any,
    compute: Compute | None = None,
    batch_size: int | None = None,
) -> Evaluation:
    """Loss and metric of ``model`` on ``split``, in eval mode and ``compute.evaluate_precision``.

    The metric is called with (outputs, targets) of each batch: per-sample scores (n,) are averaged over the
    split, one number a batch is averaged by samples; a metric object with update, compute and reset sees
    all batches. A batch has as many samples as it has scores, else as its targets tell, else its outputs
    (``batch.count_of``); the loss is averaged by samples too.

    Args:
        model: put into eval mode meanwhile.
        split: all of it is read.
        step: loss, outputs and targets of a batch.
        metric: a callable, or an object with update, compute and reset.
        compute: where the model runs.
        batch_size: samples, where the split brings no batches; default: as many as memory serves well
            (``evaluated_batch``). Scores of samples do not depend on it but for rounding.

    Raises:
        FactoryError: step or metric fail, return the wrong thing, or leave open how many samples there are.
        DataError: the split is empty, or fails.
    """
    compute = compute or Compute()
    if batch_size is None:
        batch_size = evaluated_batch(compute.place(model), split, step, compute)
    return judged(model, Batches(split, batch_size, compute), step, metric, compute)


def judged(model: nn.Module, batches: Batches, step: Step, metric: Any, compute: Compute) -> Evaluation:
    """``evaluate`` on batches.

    Args:
        model: put into eval mode meanwhile.
        batches: of a split.
        step: loss, outputs and targets of a batch.
        metric: as of `evaluate`.
        compute: where the model runs.

    Raises:
        FactoryError, DataError: as `evaluate`.
    """
    compute.place(model)
    mode = model.training
    model.eval()
    losses, scores, counts = [], [], []
    whole = all(hasattr(metric, name) for name in ("update", "compute", "reset"))
    with _of_metric(metric):
        _ = metric.reset() if whole else None
    with torch.no_grad():
        for batch, size in zip(batches, batches.sizes(), strict=False):
            with compute.evaluation():
                loss, outputs, targets = stepped(step, model, batch)
            with _of_metric(metric, outputs, targets):
                score = metric.update(outputs, targets) if whole else _scores(metric, outputs, targets, size)
            scores.append(score)
            counts.append(len(score) if not whole and score.ndim else _count(outputs, targets, size))
            losses.append(float(loss) * counts[-1])
    model.train(mode)
    total = sum(counts)
    if not total:
        raise DataError("data: a split has no samples")
    if whole:
        with _of_metric(metric):
            return Evaluation(_number(metric), sum(losses) / total, total, None, None)
    if all(score.ndim == 1 for score in scores):
        each = torch.cat(scores).cpu()
        binary = each.dtype == torch.bool
        return Evaluation(
            float(each.double().mean()), sum(losses) / total, total, int(each.sum()) if binary else None, each
        )
    mean = sum(float(score.double().mean()) * count for score, count in zip(scores, counts, strict=True)) / total
    return Evaluation(mean, sum(losses) / total, total, None, None)


@contextmanager
def _of_metric(metric: Any, *given: Any) -> Iterator[None]:
    """What a metric raises becomes one line with what it was given, and what it should have made of that."""
    try:
        with in_one_line(f"metric {_called(metric)}", FactoryError):
            yield
    except FactoryError as error:
        if error.__cause__ is None or not given:
            raise
        parts = " and ".join(
            f"{name} {described(one)}" for name, one in zip(("outputs", "targets"), given, strict=True)
        )
        should = "take them in" if hasattr(metric, "update") else "return one score a sample (n,) or one number"
        raise FactoryError(f"{error}; it was given {parts}, and should {should}") from error.__cause__


def _called(metric: Any) -> str:
    return str(getattr(metric, "name", type(metric).__name__))


def _scores(metric: Any, outputs: Any, targets: Any, size: int | None) -> Tensor:
    answer = metric(outputs, targets)
    try:
        scores = torch.as_tensor(answer).detach()
    except (TypeError, ValueError, RuntimeError):
        raise _wrong_score(metric, described(answer), "") from None
    if scores.ndim > 1:
        raise _wrong_score(metric, f"shape {tuple(scores.shape)}", "; average what a sample has beyond one, or flatten")
    known = (lengths(targets) or lengths(outputs)) | ({size} if size is not None else set())
    if scores.ndim == 1 and known and len(scores) not in known:
        raise _wrong_score(metric, f"shape {tuple(scores.shape)}", f"; samples are {' or '.join(map(str, known))}")
    return scores


def _wrong_score(metric: Any, got: str, hint: str) -> FactoryError:
    return FactoryError(f"metric {_called(metric)}: expected one score a sample (n,) or one number, got {got}{hint}")


def _count(outputs: Any, targets: Any, size: int | None) -> int:
    count = count_of(outputs, targets, size)
    if count is None:
        raise FactoryError(
            "step: nothing tells how many samples a batch has, by which means are taken: targets are "
            f"{described(targets)}, outputs {described(outputs)}; return targets whose length is the number of "
            "samples, or let the metric return one score a sample (n,)"
        )
    return count


def _number(metric: Any) -> float:
    """What a metric object computes from all batches."""
    value = metric.compute()
    several = isinstance(value, Tensor) and value.numel() != 1
    if several or value is None or isinstance(value, Mapping | list | tuple | str):
        raise FactoryError(f"metric {_called(metric)}: compute() must return one number, got {described(value)}")
    return float(value)
