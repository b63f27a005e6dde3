"""What takes part in a training: pruning, sharing, quantization, distillation, side by side on one model.

A method says what it claims, puts what it needs into the model, acts before and after steps, adds to the loss, and
tells in the end what became of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.structure.constraints import Structure
from deepcompression.training.device import Compute

UNITS, SPARSITY, VALUES, ACTIVATION = "units", "sparsity", "values", "activation"
ROLES = (UNITS, SPARSITY, VALUES, ACTIVATION)  # in the order in which methods with such claims are attached
Samples = Callable[[int], Iterable[Any]]
Forward = Callable[[nn.Module, Any], Any]
Claim = tuple[str, str]


@dataclass(frozen=True)
class Context:
    """What a method may use when it is attached.

    ``samples(n)`` gives batches with n samples of the training split, in its own order and not augmented: fewer where
    there are no more, more where a batch cannot be cut; None where there are none. ``drawn(n)`` gives as many from all
    of the split; None where that is not known. ``forward`` gives a model's outputs for a batch, ``teacher`` the
    teacher's, ``loss`` the training's own. ``structure`` is what was true of the tensors before, ``claimed`` what all
    methods claim. ``processes``: how many add up their gradients.
    """

    samples: Samples | None = None
    forward: Forward = field(default=lambda model, batch: model(_first(batch, model)))
    teacher: Callable[[Any], Any] | None = None
    seed: int = 0
    compute: Compute = field(default_factory=Compute)
    structure: Structure = field(default_factory=dict)
    claimed: frozenset[Claim] = frozenset()
    drawn: Samples | None = None
    loss: Callable[[nn.Module, Any], Tensor] | None = None
    higher_is_better: bool = True
    processes: int = 1

    def batches(self, wanting: str, count: int, *, drawn: bool = False) -> Iterable[Any]:
        """``samples(count)``.

        Args:
            wanting: who needs them, for the message.
            count: of samples.
            drawn: from all of the split instead, where that is known: the first of one that is sorted are of one class.

        Raises:
            StructureError: there are none.
        """
        if self.samples is None:
            raise StructureError(f"{wanting} needs samples of the training data; give attach() samples=")
        return self.drawn(count) if drawn and self.drawn else self.samples(count)

    def lost(self, wanting: str, model: nn.Module, batch: Any) -> Tensor:
        """The training's loss of a model on a batch, 0-dim.

        Args:
            wanting: who needs it, for the message.
            model: any of the same kind.
            batch: of samples.

        Raises:
            StructureError: it is not known.
        """
        if self.loss is None:
            raise StructureError(f"{wanting} needs the training's loss, which a loop of your own does not tell")
        return self.loss(model, batch)


@dataclass
class Now:
    """Where a training is: before the step number ``step`` (from 0) of ``steps``.

    ``changed`` says whether a method has changed, before this step, which weights are zero.
    """

    step: int
    steps: int
    optimizer: torch.optim.Optimizer | None = None
    changed: bool = False

    @property
    def fraction(self) -> float:
        """The part of the training that is done."""
        return self.step / self.steps


@dataclass(frozen=True)
class Account:
    """What a method made of a model: what is true of tensors from now on, edits of the model, and what to report."""

    structure: Structure = field(default_factory=dict)
    edits: Sequence[Mapping[str, Any]] = ()
    report: Mapping[str, Any] = field(default_factory=dict)
    regrouped: Sequence[str] = ()  # tensors whose weights did not stay with those that they were equal to
    notes: Sequence[str] = ()
    left: Mapping[str, str] = field(default_factory=dict)  # why it left tensors alone that it could have changed
    arranged: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = (
        None  # a state of before, in shapes of now
    )


class Method:
    """Base of all methods; every hook has an empty default."""

    name: ClassVar[str] = "method"
    holds_zeros: ClassVar[bool] = False  # whether what it puts into the tensors that it claims keeps their zeros
    learns: ClassVar[bool] = False  # whether it needs a teacher

    @property
    def settled(self) -> float:
        """The fraction of the training from which on a state can be the best."""
        return 0.0

    def claims(self, model: nn.Module, structure: Structure) -> set[Claim]:
        """(tensor or site, role) of all that it changes: UNITS, SPARSITY, VALUES of a tensor, ACTIVATION of a site."""
        return set()

    def attach(self, model: nn.Module, context: Context) -> list[dict[str, Any]]:
        """Puts what it needs into the model, before the optimizer is made; parameter groups of what it adds.

        Raises:
            StructureError: what is impossible, before anything trains.
        """
        return []

    def before_step(self, model: nn.Module, now: Now) -> None:
        """Before each step: schedules, masks. What changes zeros sets ``now.changed``."""

    def loss(self, loss: Tensor, model: nn.Module, batch: Any, outputs: Any) -> Tensor:
        """The loss with what it adds.

        Args:
            loss: so far, 0-dim.
            model: that trains.
            batch: as it was before the step.
            outputs: of the model for it.
        """
        return loss

    def after_step(self, model: nn.Module, now: Now) -> None:
        """After each step of the optimizer."""

    def after_epoch(self, model: nn.Module, now: Now, metric: float) -> None:
        """After each epoch and its validation; not called in loops of others.

        Args:
            model: that trains.
            now: after the epoch's last step.
            metric: on the validation split.
        """

    def figures(self, model: nn.Module) -> dict[str, float]:
        """What is logged after each epoch, such as density, bits or a loss of its own."""
        return {}

    def finish(self, model: nn.Module) -> Account:
        """What became of the model, once training has ended and what was held is baked."""
        return Account()

    def close(self, model: nn.Module) -> None:
        """Puts back what it changed beside tensors; always called, also when training failed."""

    def state_dict(self) -> dict[str, Any]:
        """What is no buffer of the model and must survive a kill."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from what ``state_dict`` gave."""


def _first(batch: Any, model: nn.Module) -> Any:
    first = batch[0] if isinstance(batch, tuple | list) else batch
    where = next((one.device for one in model.parameters()), None)
    return first.to(where) if isinstance(first, Tensor) else first
