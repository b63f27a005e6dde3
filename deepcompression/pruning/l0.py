"""L0 regularisation: every weight, or filter, has a gate that learns whether it is open; open ones cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from deepcompression.errors import StructureError, ValuesError
from deepcompression.network import names
from deepcompression.network.parametrized import MASK, Holder
from deepcompression.network.state import plain_state
from deepcompression.pruning.gates import draw
from deepcompression.pruning.prune import accounts_of
from deepcompression.structure.constraints import SHARED, ZEROS, Structure, having, structured
from deepcompression.structure.hold import held_by, held_state, hold_by
from deepcompression.training.method import SPARSITY, Account, Claim, Context, Method, Now

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1  # of the hard concrete distribution, as in the paper
SHIFT = BETA * math.log(-GAMMA / ZETA)
SETTLED = 0.8  # part of the epochs after which the best state is looked for: before, most gates are open still


@dataclass(eq=False)
class L0(Method):
    """Weights are multiplied by gates from 0 to 1 that learn; what is expected to be open is part of the loss.

    In training gates are drawn anew in each step, from the seed and the step's number; in evaluation, and in the end,
    they are what their parameter says, and most are 0 or 1 exactly. What is zero at first stays so, but in a tensor
    that is zero throughout. How many weights stay nobody says beforehand: ``penalty`` weighs them against the loss.

    Args:
        penalty: added to the loss, times the expected density of all that has gates; one for all prunable tensors, or
            by name pattern.
        granularity: ``weight``, or ``filter``: one gate for all weights of an output channel.
        start: expected density at the first step. Below 0.98 weights are smaller at once than they were.
        speed: the gates' learning rate as a multiple of the model's. They have far to go, 5 units, in whatever time
            there is; made for Adam's kind, whose steps do not shrink with the gradient.

    Louizos, Welling, Kingma (2018), arXiv 1712.01312, equations 10 to 13, with gates that are open at first.
    """

    name: ClassVar[str] = "l0"
    penalty: float | Mapping[str, float] = 10.0
    granularity: Literal["weight", "filter"] = "weight"
    start: float = 0.99
    speed: float = 50.0

    @property
    def settled(self) -> float:
        """Where most gates that close are closed."""
        return SETTLED

    def claims(self, model: nn.Module, structure: Structure) -> set[Claim]:
        """The zeros of each tensor that gets gates."""
        return {(name, SPARSITY) for name in self._resolved(model)}

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Puts gates on; they learn at a rate of their own, and do not decay.

        Raises:
            StructureError: impossible numbers, or a shared tensor.
        """
        self._penalties, self._seed = self._resolved(model), context.seed
        self._check()
        both = sorted(set(self._penalties) & set(having(context.structure, SHARED)))
        if both:
            raise StructureError(f"{both[0]}: is shared already; l0 goes before share")
        self._before = {name: one.cpu().clone() for name, one in held_state(model, self._penalties).items()}
        self._weights = max(sum(one.numel() for one in self._before.values()), 1)
        zeros, padding = set(having(context.structure, ZEROS)), names.padding_rows(model)
        for name in self._penalties:
            axis = _axis(model, name) if self.granularity == "filter" else None
            make = partial(Gate, start=self.start, axis=axis, padding=padding.get(name), held=name in zeros)
            hold_by(model, {name: make})
        gates = [gate.log_alpha for gate in self._gates(model).values()]
        return [{"params": gates, "scale": self.speed, "weight_decay": 0.0}]

    def before_step(self, model: nn.Module, now: Now) -> None:
        """Draws the gates of this step: the same after a kill, and however often a weight is looked at."""
        draw(self._gates(model).values(), self._seed, now.step)
        now.changed = True

    def loss(self, loss: Tensor, model: nn.Module, batch: Any, outputs: Any) -> Tensor:
        """The loss, and penalty x expected density (equation 12)."""
        for name, gate in self._gates(model).items():
            loss = loss + (self._penalties[name] / self._weights) * gate.expected().to(loss.device)
        return loss

    def figures(self, model: nn.Module) -> dict[str, float]:
        """The density of what would be left now, and the one that is expected of gates that are drawn."""
        gates = self._gates(model).values()
        with torch.no_grad():
            expected = sum(float(gate.expected()) for gate in gates)
            left = sum(int(((gate.still() > 0) & gate.alive).sum()) for gate in gates)
        return {"density": left / self._weights, "expected": expected / self._weights}

    def finish(self, model: nn.Module) -> Account:
        """The account of each tensor.

        Raises:
            StructureError: a tensor has no gate left that is open.
        """
        layers = accounts_of(self._before, plain_state(model))
        for layer in layers:
            if layer.nonzero_before and not layer.nonzero:
                raise ValuesError(
                    f"{layer.name}: l0 closed all of its gates; lower its penalty, now {self._penalties[layer.name]:g}"
                )
        return Account(structured([layer.name for layer in layers if layer.nonzero]), report={"layers": layers})

    def _resolved(self, model: nn.Module) -> dict[str, float]:
        return names.resolve(model, names.table_of(self.penalty))

    def _check(self) -> None:
        for name, penalty in self._penalties.items():
            if not 0 <= penalty < math.inf:
                raise StructureError(f"{name}: l0 with penalty {penalty}; expected 0 or more")
        if self.granularity not in ("weight", "filter"):
            raise StructureError(f"l0: granularity {self.granularity!r} is not known; expected weight or filter")
        if not 0 < self.start < 1 or not 0 < self.speed < math.inf:
            got = f"{self.start} and {self.speed}"
            raise StructureError(f"l0: expected a start between 0 and 1 and a speed above 0, got {got}")

    def _gates(self, model: nn.Module) -> dict[str, Gate]:
        # looked up anew: moving a model to a device or memory format replaces buffers
        return {name: gate for name, (gate, _) in held_by(model, Gate).items() if name in self._penalties}


class Gate(Holder):
    """Weights times gates from 0 to 1; what is closed, or was zero, is +0.0.

    Args:
        weight: what is gated, any shape.
        start: probability with which a gate is open at first.
        axis: of the channels that have one gate each; None: each weight has its own.
        padding: a row that is always open.
        held: whether a tensor that is zero throughout stays so.
    """

    order = MASK
    alive: Tensor
    noise: Tensor

    def __init__(
        self,
        weight: Tensor,
        start: float,
        axis: int | None = None,
        padding: int | None = None,
        held: bool = True,
    ) -> None:
        super().__init__()
        shape = [size if axis in (None, place) else 1 for place, size in enumerate(weight.shape)]
        first = math.log(start / (1 - start)) + SHIFT
        self.padding = padding
        self.log_alpha = nn.Parameter(torch.full(shape, first, device=weight.device, dtype=torch.float32))
        alive = weight != 0
        self.register_buffer("alive", alive if held or bool(alive.any()) else torch.ones_like(alive))
        self.register_buffer("noise", torch.zeros_like(self.log_alpha), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The gated weight (its own shape)."""
        gate = self.drawn() if self.training else self.still()
        open_ = self.alive & (gate > 0)
        return torch.where(open_, weight * gate.to(weight.dtype), 0)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is trained: the weight itself."""
        return weight

    def drawn(self) -> Tensor:
        """This step's gates (equations 10 and 11), in [0, 1], in a shape that broadcasts against the weight."""
        return self._stretched(((self.noise + self.log_alpha) / BETA).sigmoid())

    def still(self) -> Tensor:
        """Gates without chance (equation 13), in the same shape."""
        return self._stretched(self.log_alpha.sigmoid())

    def expected(self) -> Tensor:
        """How many weights are open, in expectation (equation 12); 0-dim."""
        return ((self.log_alpha - SHIFT).sigmoid() * self.alive).sum()

    def _stretched(self, concrete: Tensor) -> Tensor:
        gate = (concrete * (ZETA - GAMMA) + GAMMA).clamp(0, 1)
        if self.padding is None:
            return gate
        return gate.index_fill(0, torch.tensor([self.padding], device=gate.device), 1.0)


def _axis(model: nn.Module, name: str) -> int:
    """Where a weight has its output channels; with transposed groups each gate is of one in every group."""
    module = model.get_submodule(name.rpartition(".")[0])
    return 1 if isinstance(module, _ConvTransposeNd) or names.is_conv1d(module) else 0
