"""N:M sparsity learnt from the first step on: SR-STE."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.network.parametrized import MASK, Holder
from deepcompression.network.state import density as density_of
from deepcompression.network.state import plain_state
from deepcompression.pruning.patterns import fitting, n_m_stays
from deepcompression.pruning.prune import accounts_of
from deepcompression.structure.constraints import SHARED, ZEROS, Structure, having
from deepcompression.structure.hold import held_by, held_state, hold_by
from deepcompression.structure.patterns import NM, pattern_of
from deepcompression.training.method import SPARSITY, Account, Claim, Context, Method

DECAY = 2e-4


@dataclass(eq=False)
class SrSte(Method):
    """Of every M weights along the inputs the N largest count in each forward; the others learn on, and shrink.

    The gradient of the weights that count goes to all of them straight through, and what does not count is drawn to
    zero by ``decay`` times itself, so that masks settle. What is zero at first stays so.

    Args:
        granularity: N:M, such as 2:4.
        layers: names or patterns of tensors; None: all prunable ones that have M inputs.
        decay: 0 or more; 0 is the plain straight-through estimator.

    Zhou et al. (2021), "Learning N:M fine-grained structured sparse neural networks from scratch", arXiv 2102.04010,
    section 4.
    """

    name: ClassVar[str] = "prune"
    granularity: str = "2:4"
    layers: Sequence[str] | None = None
    decay: float = DECAY

    def claims(self, model: nn.Module, structure: Structure) -> set[Claim]:
        """The zeros of each tensor that gets the pattern."""
        return {(name, SPARSITY) for name in self._found(model)[0]}

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Puts masks on that are drawn anew in each forward.

        Raises:
            StructureError: no N:M, a tensor that cannot have it, or that is shared, or impossible numbers.
        """
        if not 0 <= self.decay < math.inf:
            raise StructureError(f"prune: decay {self.decay}; expected 0 or more")
        self._names, self._left = self._found(model)
        both = sorted(set(self._names) & set(having(context.structure, SHARED)))
        if both:
            raise StructureError(f"{both[0]}: is shared already; N:M goes before share")
        self._before = {name: one.cpu().clone() for name, one in held_state(model, self._names).items()}
        zeros = set(having(context.structure, ZEROS))
        for name in self._names:
            each = self.decay / context.processes  # all of them add it to the gradient
            make = partial(Chosen, pattern=self._pattern(), decay=each, held=name in zeros)
            hold_by(model, {name: make})
        return []

    def figures(self, model: nn.Module) -> dict[str, float]:
        """The density, and the part of the weights that count otherwise than when this was asked before."""
        chosen = {name: pair[0].stays(pair[1].detach()) for name, pair in held_by(model, Chosen).items()}
        last, self._last = getattr(self, "_last", chosen), chosen
        count = max(sum(one.numel() for one in chosen.values()), 1)
        moved = sum(int((one != last[name].to(one.device)).sum()) for name, one in chosen.items()) / count
        return {"density": density_of(held_state(model, self._names), self._names), "moved": moved}

    def finish(self, model: nn.Module) -> Account:
        """The account of each tensor."""
        layers, pattern = accounts_of(self._before, plain_state(model)), self._pattern()
        words = (ZEROS, f"n_m({pattern.n}, {pattern.m})")
        structure = {layer.name: words for layer in layers if layer.nonzero}
        return Account(structure, report={"layers": layers}, left=self._left)

    def _found(self, model: nn.Module) -> tuple[list[str], dict[str, str]]:
        return fitting(model, self._pattern(), self.layers)

    def _pattern(self) -> NM:
        found = pattern_of(self.granularity)
        if not isinstance(found, NM):
            raise StructureError(f"prune: granularity {self.granularity} is of blocks; while training it is N:M")
        return found


class Chosen(Holder):
    """Weights that are among the N largest of every M along axis 1, +0.0 elsewhere; see ``SrSte``."""

    order = MASK
    alive: Tensor

    def __init__(self, weight: Tensor, *, pattern: NM, decay: float, held: bool) -> None:
        super().__init__()
        self.pattern, self.decay = pattern, decay
        self.register_buffer("alive", weight != 0 if held else torch.ones_like(weight, dtype=torch.bool))

    def stays(self, weight: Tensor) -> Tensor:
        """Which weights count, as bool in the weight's shape."""
        scores = weight.abs().masked_fill(~self.alive, -1.0)
        return n_m_stays(scores, self.pattern) & self.alive

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (its own shape) with zeros."""
        through: Any = _StraightThrough.apply
        found: Tensor = through(weight, self.stays(weight.detach()), self.alive, self.decay)
        return found

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the weight itself."""
        return weight


class _StraightThrough(torch.autograd.Function):
    """Equations 5 and 9: the gradient of what counts goes to all that is alive, and the rest shrinks."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, keep: Tensor, alive: Tensor, decay: float) -> Tensor:
        ctx.save_for_backward(weight, keep, alive)
        ctx.decay = decay
        return torch.where(keep, weight, 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        weight, keep, alive = ctx.saved_tensors
        return torch.where(alive, torch.where(keep, gradient, gradient + ctx.decay * weight), 0), None, None, None
