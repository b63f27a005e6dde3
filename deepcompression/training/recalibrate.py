"""BatchNorm statistics of the present weights, where no training follows a change of weights."""

from __future__ import annotations

from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepcompression.training.batches import Batches
from deepcompression.training.device import Compute
from deepcompression.training.problem import Problem, stepped


def recalibrate(
    model: nn.Module,
    problem: Problem,
    *,
    batches: int | None = None,
    compute: Compute | None = None,
    seed: int = 0,
) -> list[str]:
    """Estimates running means and variances anew, as averages over training batches; nothing else changes.

    Args:
        model: changed in place.
        problem: its training data (without augmentation) and step.
        batches: how many; default: one pass.
        compute: device and memory format.
        seed: of the batches' order and of dropout.

    Returns:
        Names of the BatchNorm modules; empty if the model has none that keeps statistics.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }
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
                stepped(problem.step, model, batch)
    finally:
        for name, norm in norms.items():
            norm.momentum = momenta[name]
        model.train(mode)
    return list(norms)
