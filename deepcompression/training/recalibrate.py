"""BatchNorm statistics of the present weights, where no training follows a change of weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepcompression.data.batch import count_of
from deepcompression.training.batches import Batches
from deepcompression.training.device import Compute
from deepcompression.training.evaluate import evaluate
from deepcompression.training.problem import Problem, stepped

BLENDS = (1.0, 0.75, 0.5, 0.25, 0.0)  # parts of the new statistics that are tried; of equal ones the first is kept
FEW = 1000  # samples, fewer of which are told of
Statistics = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Recalibrated:
    """``layers``: names of the BatchNorm modules; ``part``: of the new statistics in what was kept; ``losses``: mean
    loss on validation by part, of those that were tried; ``notes``: what a person should know."""

    layers: list[str]
    part: float
    losses: dict[float, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def recalibrate_best(
    model: nn.Module,
    problem: Problem,
    *,
    parts: Collection[float] = BLENDS,
    batches: int | None = None,
    compute: Compute | None = None,
    seed: int = 0,
) -> Recalibrated:
    """Estimates statistics as ``recalibrate`` does, blends them with those that are there, and keeps the best blend.

    A blend of part p has the mean and the variance of a mixture: p of the samples seen now, the rest of those that the
    old statistics are of. The best has the lowest mean loss on the validation split.

    Args:
        model: changed in place.
        problem: training data, step; validation split and metric where several parts are tried.
        parts: that are tried, in [0, 1]; a single one is taken without trying.
        batches: how many; default: one pass.
        compute: device and memory format.
        seed: of the batches' order and of dropout.
    """
    compute = compute or Compute()
    compute.place(model)
    norms = _norms(model)
    before = _statistics(norms)
    seen = _Seen()
    layers = recalibrate(model, problem, batches=batches, compute=compute, seed=seed, seen=seen)
    if not layers:
        return Recalibrated([], 0.0, notes=["the model has no BatchNorm with running statistics; nothing changed"])
    after = _statistics(norms)
    losses: dict[float, float] = {}
    for part in parts if len(parts) > 1 else ():
        _blend(norms, before, after, part)
        losses[part] = evaluate(model, problem.validation, problem.step, problem.metric, compute).loss
    best = min(losses, key=lambda part: (losses[part] != losses[part], losses[part])) if losses else next(iter(parts))
    _blend(norms, before, after, best)
    return Recalibrated(layers, best, losses, [*seen.doubts(), *_told(losses, best)])


def _told(losses: Mapping[float, float], best: float) -> list[str]:
    if not losses:
        return []
    what = {0.0: "the statistics as they were", 1.0: "the new statistics"}.get(
        best, f"{best:.0%} of the new statistics"
    )
    tried = ", ".join(f"{part:.0%} {loss:.4g}" for part, loss in losses.items())
    return [f"kept {what}, the best on validation (loss by part of the new ones: {tried})"]


class _Seen:
    """Counts the samples that statistics are made of, and the classes of each batch."""

    def __init__(self) -> None:
        self.samples = 0
        self.classes: list[Tensor] = []
        self.sizes: list[int] = []

    def batch(self, outputs: Any, targets: Any) -> None:
        """Takes a batch in, as the step returned it."""
        count = count_of(outputs, targets, None)
        self.samples += count or 0
        if isinstance(targets, Tensor) and targets.ndim == 1 and not targets.is_floating_point():
            self.classes.append(torch.unique(targets.detach()).cpu())
            self.sizes.append(len(targets))

    def doubts(self) -> list[str]:
        """Why these statistics may be worse than those of training."""
        found = []
        if 0 < self.samples < FEW:
            found.append(f"the new statistics are of {self.samples:,} samples, which are few; take more, or train on")
        if self._ordered():
            found.append("batches have few of the classes each: the data comes ordered by class; shuffle it")
        return found

    def _ordered(self) -> bool:
        """Whether batches have less than half of the classes that they would have in a drawn order."""
        if len(self.classes) < 2:
            return False
        many = len(torch.unique(torch.cat(self.classes)))
        drawn = sum(many * (1 - (1 - 1 / many) ** size) for size in self.sizes)
        return many > 1 and sum(map(len, self.classes)) < drawn / 2


def _norms(model: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }


def _statistics(norms: Mapping[str, _BatchNorm]) -> Statistics:
    """Copies of all buffers, by module and name."""
    return {name: {key: one.clone() for key, one in norm.named_buffers(recurse=False)} for name, norm in norms.items()}


def _blend(norms: Mapping[str, _BatchNorm], before: Statistics, after: Statistics, part: float) -> None:
    """Puts the statistics of a mixture in: ``part`` of them new; 0 and 1 to the bit."""
    for name, norm in norms.items():
        old, new = before[name], after[name]
        mixed = dict(old if part == 0 else new)
        if 0 < part < 1:
            gap = new["running_mean"] - old["running_mean"]
            mixed["running_mean"] = old["running_mean"] + part * gap
            inside = (1 - part) * old["running_var"] + part * new["running_var"]
            mixed["running_var"] = inside + part * (1 - part) * gap.square()
        for key, value in norm.named_buffers(recurse=False):
            value.copy_(mixed[key])


def recalibrate(
    model: nn.Module,
    problem: Problem,
    *,
    batches: int | None = None,
    compute: Compute | None = None,
    seed: int = 0,
    seen: _Seen | None = None,
) -> list[str]:
    """Estimates running means and variances anew, as averages over training batches; nothing else changes.

    Args:
        model: changed in place.
        problem: its training data (without augmentation) and step.
        batches: how many; default: one pass.
        compute: device and memory format.
        seed: of the batches' order and of dropout.
        seen: is told of each batch.

    Returns:
        Names of the BatchNorm modules; empty if the model has none that keeps statistics.
    """
    norms = _norms(model)
    if not norms:
        return []
    compute = compute or Compute()
    compute.place(model)
    torch.manual_seed(seed)
    order = torch.Generator().manual_seed(seed)
    feed = Batches(problem.train, problem.batch_size, compute, order, drop_last=problem.drop_last)
    mode, momenta = model.training, {name: norm.momentum for name, norm in norms.items()}
    model.eval()  # dropout rests: statistics are those of the net as it will be used
    try:
        for norm in norms.values():
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.train()
        with torch.no_grad():
            for batch in islice(feed, batches):
                _, outputs, targets = stepped(problem.step, model, batch)
                if seen is not None:
                    seen.batch(outputs, targets)
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
        model.train(mode)
    return list(norms)
