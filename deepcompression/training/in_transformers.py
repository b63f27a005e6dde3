"""Methods in a Trainer of Hugging Face's transformers: a callback."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from deepcompression._atomic import written
from deepcompression.errors import FactoryError, StructureError
from deepcompression.training.guest import Guest
from deepcompression.training.method import Method

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as missing:
    raise FactoryError(
        f"in_transformers: needs {missing.name}: pip install 'deep-compression[hub]' accelerate"
    ) from None

log = logging.getLogger(__name__)


class MethodsCallback(TrainerCallback):  # type: ignore[misc]
    """Methods take part in ``train``; afterwards the model is an ordinary one, and ``accounts`` says what became of it.

    What methods add to the loss, they add to the one that the model itself gives with labels.

    Args:
        methods: what takes part.
        part: the part of the model that they change, as ``lambda model: model.encoder``; default: all of it.
        given: samples, forward, teacher, structure, seed, as ``session.attach`` takes them; batches are what the model
            takes, by name.
    """

    def __init__(
        self, methods: Sequence[Method], *, part: Callable[[Any], nn.Module] | None = None, **given: Any
    ) -> None:
        given.setdefault("forward", lambda model, batch: logits(model(**batch)))
        self.guest, self.part = Guest(methods, given), part
        self._heard: Any = None

    @property
    def accounts(self) -> list[Any]:
        """(method, account) of each method, after the training."""
        return self.guest.session.accounts if self.guest.session else []

    def on_init_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """The Trainer has its model, and no optimizer yet: the methods come in."""
        self._enter(of["model"])

    def _enter(self, model: nn.Module) -> None:
        self.guest.enter(model if self.part is None else self.part(model), keeping=False)
        self._heard = model.register_forward_hook(self._hear, with_kwargs=True)

    def _hear(self, model: nn.Module, inputs: Any, batch: Any, outputs: Any) -> Any:
        """What the model gives, with a loss that methods have had their say in."""
        session = self.guest.session
        if session is None or not (model.training and torch.is_grad_enabled() and session.adds_to_loss):
            return outputs
        if getattr(outputs, "loss", None) is None:
            raise StructureError(
                "methods that add to the loss need a model that gives one: batches without labels, label smoothing "
                "and a compute_loss of your own leave it out; call session.loss in compute_loss instead"
            )
        outputs["loss"] = session.loss(outputs.loss, batch, logits(outputs))
        return outputs

    def on_train_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """The optimizer is made; what a checkpoint had is back.

        Raises:
            StructureError: gradients are accumulated, and a method adds to the loss.
        """
        if self._heard is None:  # given to add_callback, or train() is called once more
            self._enter(of["model"])
        session = self.guest.session
        if session and session.adds_to_loss and args.gradient_accumulation_steps > 1:
            raise StructureError(
                "gradient_accumulation_steps: a Trainer divides by the samples of all steps, which what methods add to "
                "the loss does not know; set it to 1, or call session.loss in a compute_loss of your own"
            )
        if state.global_step:
            self._resume(_file(args, state))
        scheduler = getattr(of["lr_scheduler"], "scheduler", of["lr_scheduler"])
        self.guest.adopt([_plain(of["optimizer"])], [scheduler])
        self.guest.begin(state.max_steps, state.global_step)

    def _resume(self, file: Path) -> None:
        if file.exists():
            self.guest.load_state_dict(torch.load(file, weights_only=True))
        else:
            log.warning("%s is not there: methods go on without what they knew before", file)

    def on_step_begin(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """Before each step."""
        self.guest.ready(_plain(of["optimizer"]))

    def on_step_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """After each step of the optimizer."""
        self.guest.stepped()

    def on_save(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """Beside the Trainer's checkpoint lies what methods need to go on."""
        if state.is_world_process_zero and _file(args, state).parent.is_dir():
            with written(_file(args, state)) as file:
                torch.save(self.guest.state_dict(), file)

    def on_train_end(self, args: Any, state: Any, control: Any, **of: Any) -> None:
        """The model is an ordinary one again."""
        if self._heard is not None:
            self._heard.remove()
            self._heard = None
        self.guest.leave()


def _file(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "methods.pt"


def _plain(optimizer: Any) -> Any:
    """Without what accelerate puts around it."""
    return getattr(optimizer, "optimizer", optimizer)


def logits(outputs: Any) -> Any:
    """What a model of Hugging Face says of its samples; all that it gives where it has no logits."""
    found = getattr(outputs, "logits", None)
    return outputs if found is None else found
