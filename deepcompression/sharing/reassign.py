"""Sharing while training: codes are drawn anew as weights move, by error and coded bits, until weights lie on them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network import names
from deepcompression.network.parametrized import SOURCE, Holder
from deepcompression.network.parametrized import VALUES as AFTER_MASK
from deepcompression.network.state import plain_state
from deepcompression.sharing.entropy_constrained import RateBook, rate_codebook
from deepcompression.sharing.share import account, check_bits, rates_of
from deepcompression.structure.constraints import SHARED, Structure, having, structured
from deepcompression.structure.hold import held_by, held_state, hold_by, masks
from deepcompression.training.method import SPARSITY, VALUES, Account, Claim, Context, Method, Now

log = logging.getLogger(__name__)
UPDATES = 200
SAMPLE = 1 << 20  # weights of a tensor from which its codebook is drawn while it trains
RISEN = 0.5  # part of the steps after which the rate is what was asked for
PULL = 0.5  # part of the way to their levels that weights are moved at the last updates
TRACKED = 0.75  # part of the epochs after which codes hardly change, and the best state is looked for


@dataclass(eq=False)
class TrainedSharing(Method):
    """The weights of each tensor take at most 2**bits values and zero while the model trains.

    Weights train on, unshared, beneath their values (straight-through). Codebooks follow up to 200 times: centroids
    become the means of their weights, and each weight takes the one for which squared error + lambda x coded bits is
    least, so that weights may become zero, and come back. The rate rises from nothing in the first half, so that what
    it prunes can be made up for. At each update weights are moved a part of the way to their values, a growing one:
    what is drawn from weights that move freely never comes to rest, however small the learning rate. The best state
    is looked for in the last quarter.

    Args:
        bits: 1 to 16, of all prunable tensors or by name pattern. Tensors that are zero throughout are left free, with
            a warning.
        rate: see ``rate_codebook``; of all tensors, or by name pattern.

    Choi, El-Khamy, Lee (2017), "Towards the limit of network quantization"; Bengio et al. (2013) for straight-through;
    Carreira-Perpinan, Idelbayev (2017), arXiv 1707.01209, for weights that are drawn to their codebook.
    """

    name: ClassVar[str] = "share"
    holds_zeros: ClassVar[bool] = True
    bits: int | Mapping[str, int] = 5
    rate: float | Mapping[str, float] = 0.0

    @property
    def settled(self) -> float:
        """Where codes hardly change."""
        return TRACKED

    def claims(self, model: nn.Module, structure: Structure) -> set[Claim]:
        """The values of each tensor that is shared."""
        return {(name, VALUES) for name in names.resolve(model, names.table_of(self.bits))}

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Puts codebooks over weights.

        Raises:
            StructureError: bits or a rate are impossible, or a tensor is shared already.
        """
        bits = names.resolve(model, names.table_of(self.bits))
        check_bits(bits)
        rates = names.resolve(model, names.table_of(self.rate)) if self.rate else {}
        self._rates = rates_of(bits, rates)
        both = sorted(set(bits) & set(having(context.structure, SHARED)))
        if both:
            raise StructureError(f"{both[0]}: is shared already; its codes are not drawn anew")
        self._before = {name: one.cpu().clone() for name, one in held_state(model, bits).items()}
        self._bits = {name: width for name, width in bits.items() if bool(self._before[name].any())}
        empty = [name for name, one in self._before.items() if name not in self._bits and one.numel()]
        if empty:
            log.warning("zero throughout, with nothing to share: %s; these train freely", ", ".join(empty))
        masked = {name for name, role in context.claimed if role == SPARSITY}
        for name, width in self._bits.items():
            hold_by(model, {name: partial(Masked if name in masked else Reassigned, k=2**width)})
        return []

    def before_step(self, model: nn.Module, now: Now) -> None:
        """Draws codebooks and codes anew where that is due."""
        if now.step % max(now.steps // UPDATES, 1) == 0:
            part, over = now.fraction, masks(model)
            for name, (held, weights) in self._held(model).items():
                held.follow(weights, self._rates[name] * min(part / RISEN, 1.0), PULL * part**4, over.get(name))

    def figures(self, model: nn.Module) -> dict[str, float]:
        """Bits of a code, on average over the shared weights."""
        held = self._held(model)
        total = sum(behind.numel() for _, behind in held.values())
        return {"bits": sum(self._bits[name] * behind.numel() for name, (_, behind) in held.items()) / max(total, 1)}

    def finish(self, model: nn.Module) -> Account:
        """The account of each tensor, over the weights that were not zero before."""
        state, layers = plain_state(model), []
        for name, width in self._bits.items():
            alive = self._before[name] != 0
            layers.append(account(name, width, self._before[name][alive], state[name][alive]))
        done = [layer.name for layer in layers if layer.nonzero]
        return Account(structured(done, done), report={"layers": layers}, regrouped=list(self._before))

    def _held(self, model: nn.Module) -> dict[str, tuple[Reassigned, Tensor]]:
        # another one may share other tensors beside it
        return {name: pair for name, pair in held_by(model, Reassigned).items() if name in self._bits}


class Reassigned(Holder):
    """What is trained are weights (m,) at a tensor's non-zero places; what the model sees is the level of each."""

    order = SOURCE
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
    def follow(self, weights: Tensor, rate: float, pull: float, mask: Tensor | None = None) -> None:
        """Codebook and codes anew for the present ``weights`` (m,), which are moved to their levels by ``pull``.

        A part of the way: 0 leaves them, 1 puts them there. With a ``mask`` of their shape only what it leaves counts.

        Args:
            weights: (m,), changed in place.
            rate: weight of a code's bits against the error.
            pull: 0 to 1.
            mask: which of them count; None is all.
        """
        if not bool(torch.isfinite(weights).all()):
            return  # training diverged: its check at the end of the epoch says so
        if mask is None:
            self._draw(weights, rate)
            weights.lerp_(self._drawn(weights), pull)
        elif bool(mask.any()):
            self._draw(weights[mask], rate)
            weights.copy_(torch.where(mask, weights.lerp(self._drawn(weights), pull), weights))

    def _drawn(self, weights: Tensor) -> Tensor:
        return self.levels[torch.bucketize(weights.float().contiguous(), self.thresholds)].to(weights.dtype)

    def _draw(self, weights: Tensor, rate: float) -> None:
        every = -(-len(weights) // SAMPLE)
        some = weights[::every].float().cpu().clone().numpy()  # an array would pin memory that comes and goes
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


class Masked(Reassigned):
    """The same over a mask that is not its own: all weights are trained, and those that are masked have no level."""

    order = AFTER_MASK

    def forward(self, weights: Tensor) -> Tensor:
        """The tensor (its own shape) of its masked weights."""
        latent = weights.detach()
        values = torch.where(latent == 0, 0, self._drawn(latent).to(latent.dtype))
        return self.laid_out(values + (weights - latent))

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the weight itself."""
        return weight
