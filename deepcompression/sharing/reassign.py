"""Sharing while training: codes are drawn anew as weights move, by error and coded bits, until weights lie on them."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network.parametrized import Holder
from deepcompression.network.state import plain_state
from deepcompression.sharing.entropy_constrained import RateBook, rate_codebook
from deepcompression.sharing.share import LayerSharing, account, check_bits, rates_of
from deepcompression.structure import hold
from deepcompression.structure.hold import held_by, hold_by
from deepcompression.training.loop import Fit, fit
from deepcompression.training.problem import Problem

log = logging.getLogger(__name__)
UPDATES = 200
SAMPLE = 1 << 20  # weights of a tensor from which its codebook is drawn while it trains
RISEN = 0.5  # part of the steps after which the rate is what was asked for
PULL = 0.5  # part of the way to their levels that weights are moved at the last updates
TRACKED = 0.75  # part of the epochs after which codes hardly change, and the best state is looked for


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
    epochs: int,
    **fit_arguments: Any,
) -> SharedTraining:
    """Trains ``model`` in place while each named tensor's weights take at most 2**bits values and zero.

    Weights train on, unshared, beneath their values (straight-through). Codebooks follow up to 200 times: centroids
    become the means of their weights, and each weight takes the one for which squared error + lambda x coded bits is
    least, so that weights may become zero, and come back. The rate rises from nothing in the first half, so that what
    it prunes can be made up for. At each update weights are moved a part of the way to their values, a growing one:
    what is drawn from weights that move freely never comes to rest, however small the learning rate. The best state
    is looked for in the last quarter.

    Args:
        model: changed in place, baked at the end.
        problem: data, step, metric.
        bits: tensor name -> 1 to 16. Tensors that are zero throughout are left free, with a warning.
        rate: see ``rate_codebook``; of all tensors, or by name.
        zeros: further tensors whose zeros stay; those of the named ones stay in any case.
        shared: further tensors whose sharing stays.
        epochs: of the whole training.
        **fit_arguments: of ``training.fit``.

    Raises:
        StructureError: bits or a rate are impossible, a tensor is missing, or would become all zero.
        DivergedError, StorageError, FactoryError: as ``training.fit``.

    Choi, El-Khamy, Lee (2017), "Towards the limit of network quantization"; Bengio et al. (2013) for straight-through;
    Carreira-Perpinan, Idelbayev (2017), arXiv 1707.01209, for weights that are drawn to their codebook.
    """
    check_bits(bits)
    rates = rates_of(bits, rate)
    both = sorted(set(bits) & set(shared))
    if both:
        raise StructureError(f"{both[0]}: is shared already; its codes are not drawn anew")
    before = plain_state(model)
    for name in [name for name in bits if name in before and not bool(before[name].any())]:
        if before[name].numel():
            log.warning("%s is zero throughout: there is nothing to share in it, and it trains freely", name)
        bits = {other: width for other, width in bits.items() if other != name}
    hold.hold(model, [name for name in zeros if name not in bits], shared=shared)
    hold_by(model, {name: functools.partial(Reassigned, k=2**width) for name, width in bits.items()})

    def follow(step: int, total: int) -> None:
        if step % max(total // UPDATES, 1) == 0:
            part = step / total
            for name, (held, weights) in held_by(model, Reassigned).items():
                held.follow(weights, rates[name] * min(part / RISEN, 1.0), PULL * part**4)

    try:
        first = int(epochs * TRACKED) + 1
        done = fit(model, problem, epochs=epochs, on_step=follow, track_from=first, **fit_arguments)
    finally:
        hold.bake(model)
    state, layers = plain_state(model), []
    for name, width in bits.items():
        alive = before[name] != 0
        layers.append(account(name, width, before[name][alive], state[name][alive]))
    return SharedTraining(state, layers, done)


class Reassigned(Holder):
    """What is trained are weights (m,) at a tensor's non-zero places; what the model sees is the level of each."""

    positions: Tensor
    levels: Tensor
    thresholds: Tensor
    bits: Tensor

    def __init__(self, weight: Tensor, k: int) -> None:
        super().__init__()
        flat = weight.detach().reshape(-1)
        self.shape, self.k = weight.shape, k
        self.register_buffer("positions", (flat != 0).nonzero().squeeze(1))
        self.register_buffer("levels", torch.zeros(k + 1))
        self.register_buffer("thresholds", torch.full((k,), torch.inf))
        self.register_buffer("bits", torch.zeros(k + 1))
        self._draw(flat[self.positions], 0.0)
        self.to(weight.device)

    def forward(self, weights: Tensor) -> Tensor:
        """The tensor, in its own shape, of its trained weights (m,); the gradient goes straight through to these."""
        values = self._drawn(weights.detach()) + (weights - weights.detach())  # exactly the levels
        flat = weights.new_zeros(self.shape.numel())
        return self.laid_out(flat.index_copy(0, self.positions, values).reshape(self.shape))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the weights that are not zero."""
        return weight.reshape(-1)[self.positions]

    @torch.no_grad()
    def follow(self, weights: Tensor, rate: float, pull: float) -> None:
        """Codebook and codes anew for the present ``weights`` (m,), which are moved to their levels by ``pull``.

        A part of the way: 0 leaves them, 1 puts them there.
        """
        if bool(torch.isfinite(weights).all()):  # else training diverged: its check at the end of the epoch says so
            self._draw(weights, rate)
            weights.lerp_(self._drawn(weights), pull)

    def _drawn(self, weights: Tensor) -> Tensor:
        return self.levels[torch.bucketize(weights.float(), self.thresholds)].to(weights.dtype)

    def _draw(self, weights: Tensor, rate: float) -> None:
        every = -(-len(weights) // SAMPLE)
        some = weights[::every].float().cpu().numpy()
        elements = len(some) + (self.shape.numel() - len(weights)) // every
        book = rate_codebook(some, self.k, rate=rate, elements=elements, start=self._book())
        count = len(book.levels)
        self.levels.zero_()[:count] = torch.from_numpy(book.levels.astype(np.float32))
        self.bits.zero_()[:count] = torch.from_numpy(book.bits.astype(np.float32))
        self.thresholds.fill_(torch.inf)[: count - 1] = torch.from_numpy(book.thresholds.astype(np.float32))

    def _book(self) -> RateBook | None:
        """The present codebook, as a checkpoint has it: float32, in which levels may have become equal."""
        levels, bits, thresholds = (one.double().cpu().numpy() for one in (self.levels, self.bits, self.thresholds))
        levels, places = np.unique(levels[: np.isfinite(thresholds).sum() + 1], return_index=True)
        return RateBook(levels, thresholds[places[:-1]], bits[places]) if len(levels) > 1 else None
