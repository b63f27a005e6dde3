"""Methods in loops that call back: Lightning's, Hugging Face's, MMEngine's. What their three callbacks share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.errors import StructureError
from deepcompression.training.method import Method
from deepcompression.training.session import Session, prepared


class Guest:
    """Methods at work where somebody else's loop calls: ``enter``, ``adopt``, ``begin``; in each step
    ``ready``, ``loss``, ``stepped``; ``leave``.

    Args:
        methods: what takes part.
        given: samples, forward, teacher, structure, seed, as ``session.attach`` takes them.
    """

    def __init__(self, methods: Sequence[Method], given: Mapping[str, Any]) -> None:
        self.methods, self.given = list(methods), dict(given)
        self.session: Session | None = None
        self.saved: Mapping[str, Any] | None = None
        self.outputs: Any = None
        self._seen: Any = None
        self._open = self._begun = self._adopted = self._due = False

    def enter(self, model: nn.Module, *, keeping: bool = True) -> Session:
        """Brings the methods into a model; where ``keeping``, what it gives is kept for ``loss`` from then on."""
        self.leave(failed=True)
        self._before = [one for one in model.parameters() if one.requires_grad]
        self.session = prepared(model, self.methods, **self.given)
        self._open, self._begun, self._adopted = True, False, False
        if keeping:
            self._seen = model.register_forward_hook(self._keep)
        return self.session

    def adopt(self, optimizers: Sequence[torch.optim.Optimizer], schedulers: Iterable[Any] = ()) -> None:
        """Optimizers, once they are made and before they get back what a checkpoint had, train what there is now.

        Args:
            optimizers: torch's; the first one gets what methods added.
            schedulers: of their rates.
        """
        if not self._adopted:
            adopt(optimizers, schedulers, self._attached(), self._before)
            self._adopted = True

    def begin(self, steps: float, done: int = 0) -> None:
        """Before the first step, after ``adopt``.

        Args:
            steps: of the whole training.
            done: steps that an earlier, interrupted training made.

        Raises:
            StructureError: a training without end.
        """
        session = self._attached()
        if not 0 < steps < float("inf"):
            raise StructureError("methods need to know how long a training is: give it max_epochs or max_steps")
        session.now.steps, session.now.step = int(steps), done
        if self.saved is not None:
            session.load_state_dict(self.saved["methods"])
            session.now.step, self.saved = int(self.saved["step"]), None
        self._begun = self._due = True

    def ready(self, optimizer: torch.optim.Optimizer) -> None:
        """Before each batch; methods act before the first one of a step.

        Not after the step before it: a checkpoint that is written between them has the state from which they act.
        """
        if self._due:
            self._due = False
            self._attached().next_step(optimizer)

    def loss(self, loss: Tensor, batch: Any) -> Tensor:
        """The loss with what methods add to it, from what the model gave last.

        Raises:
            StructureError: a method learns from what the model gives, and the model was not called.
        """
        session = self._attached()
        outputs, self.outputs = self.outputs, None
        if outputs is None and any(method.learns for method in session.methods):
            raise StructureError(
                "a method learns from the model's outputs, but the training step called only a part of the model: "
                "name that part, as part=lambda module: module.net"
            )
        return session.loss(loss, batch, outputs)

    def stepped(self) -> None:
        """After each step of the optimizer."""
        self._attached().after_step()
        self._due = True

    def leave(self, failed: bool = False) -> None:
        """At the end: the model is an ordinary one again; also when training failed. ``session`` has the accounts."""
        if self._seen is not None:
            self._seen.remove()
            self._seen = None
        if self.session is not None and self._open:
            self._open = False
            self.session.close(failed=failed or not self._begun)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs beside the model's own state."""
        if self.session is None:
            return {}
        return {"methods": self.session.state_dict(), "step": self.session.now.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``state_dict``, at the next ``begin``."""
        self.saved = state or None

    def _attached(self) -> Session:
        if self.session is None:
            raise StructureError("methods are not attached: give the callback to the trainer before training starts")
        return self.session

    def _keep(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        if module.training and torch.is_grad_enabled():
            self.outputs = outputs


def adopt(
    optimizers: Sequence[torch.optim.Optimizer], schedulers: Iterable[Any], session: Session, before: Sequence[Tensor]
) -> None:
    """Optimizers that know nothing of methods train what the model has now.

    What methods replaced goes, what they put there comes into the first group, and what learns by settings of its own
    into a group of its own, which schedulers drive like the first.

    Args:
        optimizers: the first one gets what is new.
        schedulers: of rates; each has lists by group.
        session: with the model, and the groups of its methods.
        before: the parameters that the model had.
    """
    after = [one for one in session.model.parameters() if one.requires_grad]
    gone = {id(one) for one in before} - {id(one) for one in after}
    own = {id(one) for group in session.groups for one in group["params"]}
    for group in (group for one in optimizers for group in one.param_groups):
        group["params"] = [one for one in group["params"] if id(one) not in gone | own]
    known = {id(one) for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]}
    first = optimizers[0]
    old = {id(one) for one in before}  # what somebody left out of all optimizers stays out
    first.param_groups[0]["params"] += [one for one in after if id(one) not in known | own | old]
    for group in session.groups:
        _add(first, schedulers, group)


def _add(optimizer: torch.optim.Optimizer, schedulers: Iterable[Any], group: Mapping[str, Any]) -> None:
    leader, scale = optimizer.param_groups[0], group.get("scale", 1.0)
    own = {name: value for name, value in group.items() if name != "scale"}
    rates: dict[str, Any] = {name: leader[name] * scale for name in ("lr", "initial_lr") if name in leader}
    optimizer.add_param_group({**rates, **own})
    for scheduler in schedulers:
        for name, factor in (("base_lrs", scale), ("_last_lr", scale), ("base_values", scale)):
            if values := getattr(scheduler, name, None):
                setattr(scheduler, name, [*values, values[0] * factor])
        if lambdas := getattr(scheduler, "lr_lambdas", None):
            scheduler.lr_lambdas = [*lambdas, lambdas[0]]
