"""Methods in a Runner of MMEngine (MMDetection, MMSegmentation and the rest): a hook."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.errors import FactoryError
from deepcompression.training.guest import Guest
from deepcompression.training.method import Method

try:
    from mmengine.hooks import Hook
    from mmengine.model import is_model_wrapper
except ModuleNotFoundError as missing:
    raise FactoryError(f"in_mmengine: needs {missing.name}: pip install 'deep-compression[mmengine]'") from None

ADDED = "loss_methods"


class MethodsHook(Hook):  # type: ignore[misc]
    """Methods take part in ``train``; afterwards the model is an ordinary one, and ``accounts`` says what became of it.

    What methods add to the loss stands among the losses as ``loss_methods``. Outputs of a model of MMEngine's are its
    losses while it trains: a method that compares logits (``Distillation``) finds none.

    Args:
        methods: what takes part.
        part: the part of the model that they change, as ``lambda model: model.backbone``; default: all of it.
        given: samples, forward, teacher, structure, seed, as ``session.attach`` takes them.
    """

    def __init__(
        self, methods: Sequence[Method], *, part: Callable[[Any], nn.Module] | None = None, **given: Any
    ) -> None:
        self.guest, self.part = Guest(methods, given), part
        self._heard: Any = None

    @property
    def accounts(self) -> list[Any]:
        """(method, account) of each method, after the training."""
        return self.guest.session.accounts if self.guest.session else []

    def before_run(self, runner: Any) -> None:
        """A training that goes on loads what a checkpoint had into the model with its methods."""
        if runner._resume:
            self._enter(runner)

    def _enter(self, runner: Any) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.guest.enter(model if self.part is None else self.part(model), keeping=False)
        self._heard = model.register_forward_hook(self._hear, with_kwargs=True)
        self.guest.adopt([runner.optim_wrapper.optimizer], _schedulers(runner))

    def _hear(self, model: nn.Module, inputs: Any, named: Mapping[str, Any], losses: Any) -> Any:
        """What the model gives to train on, with what methods add."""
        session = self.guest.session
        if session is None or not (isinstance(losses, dict) and torch.is_grad_enabled() and session.adds_to_loss):
            return losses
        before = total(losses)
        after = session.loss(before, {**named, **dict(enumerate(inputs))}, losses)
        return losses if after is before else {**losses, ADDED: after - before}

    def before_train(self, runner: Any) -> None:
        """The optimizer is made, and weights are loaded: the methods come in."""
        if self._heard is None:
            self._enter(runner)
        steps, done = (-(-count // self._every(runner)) for count in (runner.max_iters, runner.iter))
        self.guest.begin(steps, done)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Before each iteration."""
        self.guest.ready(runner.optim_wrapper.optimizer)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """After each iteration, and where gradients are accumulated, after each that ended in a step."""
        if runner.optim_wrapper.should_update():
            self.guest.stepped()

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """In MMEngine's checkpoints."""
        checkpoint["methods"] = self.guest.state_dict()

    def after_load_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:
        """From there."""
        if runner._resume:
            self.guest.load_state_dict(checkpoint.get("methods", {}))

    def after_train(self, runner: Any) -> None:
        """The model is an ordinary one again."""
        if self._heard is not None:
            self._heard.remove()
            self._heard = None
        self.guest.leave()

    @staticmethod
    def _every(runner: Any) -> int:
        return int(getattr(runner.optim_wrapper, "_accumulative_counts", 1))


def total(losses: Mapping[str, Any]) -> Tensor:
    """The loss that MMEngine trains on: the sum of all that is called a loss."""
    found = [value for name, value in losses.items() if "loss" in name]
    flat = [part for value in found for part in (value if isinstance(value, list | tuple) else [value])]
    return torch.stack([part.mean() for part in flat]).sum()


def _schedulers(runner: Any) -> list[Any]:
    found = runner.param_schedulers
    return list(found) if isinstance(found, list | tuple) else []
