"""RB sparsity: each weight has a random binary gate that learns, and the loss holds all of them to one density."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError, ValuesError
from deepcompression.network import names
from deepcompression.network.parametrized import MASK, Holder
from deepcompression.network.state import plain_state
from deepcompression.pruning.gates import draw
from deepcompression.pruning.prune import accounts_of
from deepcompression.structure.constraints import SHARED, ZEROS, Structure, having, structured
from deepcompression.structure.hold import held_by, held_state, hold_by
from deepcompression.training.method import SPARSITY, Account, Claim, Context, Method, Now
from deepcompression.training.ramps import TOLERANCE, Ramp, Ramped

OPEN = 0.99  # probability with which a gate is open at first
SETTLED = 0.8  # part of the epochs after which the best state is looked for


@dataclass(eq=False)
class RB(Ramped, Method):
    """Gates are drawn anew in each step; the loss grows by ((density of open ones - level) / width)^2.

    The level falls from 1 to ``density`` in the first ``ramp`` of the training, and is of all tensors
    together: which layer gives how much is learnt. In the end gates are open whose probability is above a half, so that
    the density is about what was asked for, not exactly. What is zero at first stays so, but in a tensor that is zero
    throughout.

    Args:
        density: of all weights together, in (0, 1].
        layers: names or patterns of tensors; None: all prunable ones.
        ramp: part of the training in which the level falls.
        width: above 0: how far the density may be from the level before that costs 1.
        speed: the gates' learning rate as a multiple of the model's; they have 5 units to go.
        curve: along which the level falls, see ``training.ramps``.
        tolerance: of the curve ``adaptive``: part of the metric that may be lost.

    The "RB" algorithm of NNCF, as its documentation describes it.
    """

    name: ClassVar[str] = "rb"
    density: float = 0.5
    layers: tuple[str, ...] | None = None
    ramp: float = 0.7
    width: float = 0.05
    speed: float = 50.0
    curve: str = "exponential"
    tolerance: float = TOLERANCE

    @property
    def settled(self) -> float:
        """Where the level has fallen, and gates have followed."""
        return max(SETTLED, self.ramp)

    def claims(self, model: nn.Module, structure: Structure) -> set[Claim]:
        """The zeros of each tensor that gets gates."""
        return {(name, SPARSITY) for name in self._found(model)}

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Puts gates on; they learn at a rate of their own, and do not decay.

        Raises:
            StructureError: impossible numbers, or a shared tensor.
        """
        self._check()
        self._ramp = Ramp(self.curve, self.ramp, 1.0, self.tolerance, context.higher_is_better)
        self._names, self._seed, self._level = self._found(model), context.seed, 1.0
        both = sorted(set(self._names) & set(having(context.structure, SHARED)))
        if both:
            raise StructureError(f"{both[0]}: is shared already; rb goes before share")
        self._before = {name: one.cpu().clone() for name, one in held_state(model, self._names).items()}
        self._weights = max(sum(one.numel() for one in self._before.values()), 1)
        zeros, padding = set(having(context.structure, ZEROS)), names.padding_rows(model)
        for name in self._names:
            hold_by(model, {name: partial(Random, padding=padding.get(name), held=name in zeros)})
        return [{"params": [one.logits for one in self._gates(model)], "scale": self.speed, "weight_decay": 0.0}]

    def before_step(self, model: nn.Module, now: Now) -> None:
        """Draws the gates of this step, the same after a kill, and lowers the level."""
        self._level = self._ramp.level(now, self.density)
        draw(self._gates(model), self._seed, now.step)
        now.changed = True

    def loss(self, loss: Tensor, model: nn.Module, batch: Any, outputs: Any) -> Tensor:
        """The loss, and what the density costs."""
        opened = [gate.count().to(loss.device) for gate in self._gates(model)]
        return loss + ((torch.stack(opened).sum() / self._weights - self._level) / self.width).square()

    def figures(self, model: nn.Module) -> dict[str, float]:
        """The density of what would be left now, and the level that it should have."""
        with torch.no_grad():
            left = sum(float(gate.count()) for gate in self._gates(model))
        return {"density": left / self._weights, "level": self._level}

    def finish(self, model: nn.Module) -> Account:
        """The account of each tensor.

        Raises:
            StructureError: a tensor has no gate left that is open.
        """
        layers = accounts_of(self._before, plain_state(model))
        for layer in layers:
            if layer.nonzero_before and not layer.nonzero:
                raise ValuesError(f"{layer.name}: rb closed all of its gates; raise density, or leave it out of layers")
        got = sum(layer.nonzero for layer in layers) / self._weights
        notes = [f"rb: density {got:.3g}, asked for {self.density:g}", *self._ramp.short_of("rb: the level")]
        return Account(structured([one.name for one in layers if one.nonzero]), report={"layers": layers}, notes=notes)

    def _found(self, model: nn.Module) -> list[str]:
        table = dict.fromkeys(self.layers, True) if self.layers else {"default": True}
        return list(names.resolve(model, table))

    def _check(self) -> None:
        if not 0 < self.density <= 1 or not 0 < self.ramp <= 1:
            got = f"{self.density} and {self.ramp}"
            raise StructureError(f"rb: expected a density and a ramp above 0 and at most 1, got {got}")
        if not 0 < self.width < math.inf or not 0 < self.speed < math.inf:
            raise StructureError(f"rb: expected width and speed above 0, got {self.width} and {self.speed}")

    def _gates(self, model: nn.Module) -> list[Random]:
        # looked up anew: moving a model to a device or memory format replaces buffers
        return [gate for name, (gate, _) in held_by(model, Random).items() if name in self._names]


class Random(Holder):
    """Weights whose gates are open; what is closed, or was zero, is +0.0.

    Args:
        weight: what is gated, any shape.
        padding: a row that is always open.
        held: whether a tensor that is zero throughout stays so.
    """

    order = MASK
    alive: Tensor
    noise: Tensor

    def __init__(self, weight: Tensor, padding: int | None = None, held: bool = True) -> None:
        super().__init__()
        first = torch.full(weight.shape, math.log(OPEN / (1 - OPEN)), device=weight.device, dtype=torch.float32)
        if padding is not None:
            first[padding] = torch.inf
        self.logits = nn.Parameter(first)
        alive = weight != 0
        self.register_buffer("alive", alive if held or bool(alive.any()) else torch.ones_like(alive))
        self.register_buffer("noise", torch.zeros_like(first), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The gated weight (its own shape): gates of this step while training, those above a half else."""
        gate = _straight(self.logits + self.noise if self.training else self.logits)
        return torch.where(self.alive & (gate > 0), weight * gate.to(weight.dtype), 0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the weight itself."""
        return weight

    def count(self) -> Tensor:
        """How many weights are open without chance; 0-dim, with the gradient of their probabilities."""
        return (_straight(self.logits) * self.alive).sum()


def _straight(logits: Tensor) -> Tensor:
    """0 or 1, with the gradient of the probability."""
    soft = logits.sigmoid()
    return soft + ((logits > 0).to(soft.dtype) - soft).detach()
