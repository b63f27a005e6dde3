"""Sharing while training: codes are drawn anew as weights move, by error and coded bits; then centroids are trained."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression import structure
from deepcompression.errors import StructureError
from deepcompression.holding import held_by, hold_by
from deepcompression.problem import Problem
from deepcompression.rate import rate_codebook
from deepcompression.selection import Holder
from deepcompression.share import LayerSharing, account, check_bits, rates_of
from deepcompression.training import Fit, fit

UPDATES = 200
RISE = 2.0  # the rate has risen to what is asked for after one part in so many of the steps in which codes change


@dataclass(frozen=True)
class SharedTraining:
    """A state_dict whose named tensors hold few values, the account of each, and what training did."""

    state: dict[str, Tensor]
    layers: list[LayerSharing]
    fit: Fit


def share_training(
    model: nn.Module,
    problem: Problem,
    bits: Mapping[str, int],
    *,
    rate: Mapping[str, float] | float = 0.0,
    zeros: Sequence[str] = (),
    shared: Sequence[str] = (),
    settle: float = 0.8,
    epochs: int,
    **fit_arguments: Any,
) -> SharedTraining:
    """Trains ``model`` in place while each named tensor's weights take at most 2**bits values and zero.

    Weights train on, unshared, beneath their values (straight-through). Codebooks follow up to 200 times: centroids
    become the means of their weights, and each weight takes the one for which squared error + lambda x coded bits is
    least, so that weights may become zero, and come back. After ``settle`` of the steps codes stay, and weights that
    share move together, as centroids do (section 3.3); the best state is tracked from there. The rate rises from
    nothing in the first half of the time before, so that what it prunes can be made up for.

    Args:
        model: changed in place, baked at the end.
        problem: data, step, metric.
        bits: tensor name -> 1 to 16.
        rate: see ``rate_codebook``; of all tensors, or by name.
        zeros: further tensors whose zeros stay; those of the named ones stay in any case.
        shared: further tensors whose sharing stays.
        settle: fraction of the steps in which codes change.
        epochs: of the whole training.
        **fit_arguments: of ``training.fit``.

    Raises:
        StructureError: bits or a rate are impossible, a tensor is missing, is all zero or would become so.
        DivergedError, StorageError, FactoryError: as ``training.fit``.

    Choi, El-Khamy, Lee (2017), "Towards the limit of network quantization"; Bengio et al. (2013) for straight-through.
    """
    check_bits(bits)
    rates = rates_of(bits, rate)
    both = sorted(set(bits) & set(shared))
    if both:
        raise StructureError(f"{both[0]}: is shared already; its codes are not drawn anew")
    before = structure.plain_state(model)
    structure.hold(model, [name for name in zeros if name not in bits], shared=shared)
    hold_by(model, {name: functools.partial(Reassigned, k=2**width) for name, width in bits.items()})

    def follow(step: int, total: int) -> None:
        last = min(int(total * settle), total - 1)
        if step <= last and (step % max(last // UPDATES, 1) == 0 or step == last):
            for name, (part, weights) in held_by(model, Reassigned).items():
                part.follow(weights, rates[name] * min(RISE * step / max(last, 1), 1.0), settled=step == last)

    try:
        first = min(int(epochs * settle + 1e-6) + 1, epochs)
        done = fit(model, problem, epochs=epochs, on_step=follow, track_from=first, **fit_arguments)
    finally:
        structure.bake(model)
    state, layers = structure.plain_state(model), []
    for name, width in bits.items():
        alive = before[name] != 0
        layers.append(account(name, width, before[name][alive], state[name][alive]))
    return SharedTraining(state, layers, done)


class Reassigned(Holder):
    """What is trained are weights (m,) at a tensor's non-zero places; what the model sees is the level of each."""

    positions: Tensor
    codes: Tensor
    levels: Tensor
    thresholds: Tensor
    settled: Tensor

    def __init__(self, weight: Tensor, k: int) -> None:
        super().__init__()
        flat = weight.detach().reshape(-1)
        self.shape, self.k = weight.shape, k
        self.register_buffer("positions", (flat != 0).nonzero().squeeze(1))
        self.register_buffer("codes", torch.zeros(len(self.positions), dtype=torch.int64))
        self.register_buffer("levels", torch.zeros(k + 1))
        self.register_buffer("thresholds", torch.full((k,), torch.inf))
        self.register_buffer("settled", torch.tensor(False))
        self._draw(flat[self.positions], 0.0)
        self.to(weight.device)

    def forward(self, weights: Tensor) -> Tensor:
        """The tensor, in its own shape, of its trained weights (m,)."""
        if self.settled:
            values = self._means(weights)[self.codes]
        else:
            drawn = self.levels[torch.bucketize(weights.detach(), self.thresholds)]
            values = weights + (drawn - weights).detach()  # the gradient goes straight through
        flat = weights.new_zeros(self.shape.numel())
        return flat.index_copy(0, self.positions, values).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the weights that are not zero."""
        return weight.reshape(-1)[self.positions]

    @torch.no_grad()
    def follow(self, weights: Tensor, rate: float, *, settled: bool) -> None:
        """Codebook and codes anew for the present ``weights`` (m,); once ``settled``, codes stay as they are."""
        if not bool(torch.isfinite(weights).all()):
            return  # training diverged: its own check says so at the end of the epoch
        self._draw(weights, rate)
        if settled:
            self.codes.copy_(torch.bucketize(weights, self.thresholds))
            self.settled.fill_(True)

    def _draw(self, weights: Tensor, rate: float) -> None:
        start = self.levels[self.levels != 0].double().cpu().numpy()
        book = rate_codebook(
            weights.float().cpu().numpy(),
            self.k,
            rate=rate,
            elements=self.shape.numel(),
            start=start if len(start) else None,
        )
        self.levels.zero_()
        self.levels[: len(book.levels)] = torch.from_numpy(book.levels.astype(np.float32))
        self.thresholds.fill_(torch.inf)
        self.thresholds[: len(book.thresholds)] = torch.from_numpy(book.thresholds.astype(np.float32))

    def _means(self, weights: Tensor) -> Tensor:
        """The mean weight of each level (k + 1,), zero for what is zero.

        Each weight has the mean gradient of all that share its level, so that they move together. Not the sum, which is
        the centroid's own: an optimizer that has adapted to the gradients of single weights would leap.
        """
        counts = torch.bincount(self.codes, minlength=len(self.levels)).clamp(min=1)
        sums = weights.new_zeros(len(self.levels)).index_add(0, self.codes, weights)
        return torch.where(self.levels != 0, sums / counts, 0)
