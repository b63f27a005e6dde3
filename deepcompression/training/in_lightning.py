"""Methods in a Trainer of Lightning: a callback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from deepcompression.errors import FactoryError
from deepcompression.training.guest import Guest
from deepcompression.training.method import Method

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError as missing:
    raise FactoryError(f"in_lightning: needs {missing.name}: pip install 'deep-compression[lightning]'") from None


class MethodsCallback(Callback):  # type: ignore[misc]
    """Methods take part in ``fit``; afterwards the module is an ordinary one, and ``accounts`` says what became of it.

    Args:
        methods: what takes part.
        part: the part of the module that they change, as ``lambda module: module.net``; default: all of it.
        given: samples, forward, teacher, structure, seed, as ``session.attach`` takes them.
    """

    def __init__(
        self, methods: Sequence[Method], *, part: Callable[[Any], nn.Module] | None = None, **given: Any
    ) -> None:
        self.guest, self.part = Guest(methods, given), part

    @property
    def accounts(self) -> list[Any]:
        """(method, account) of each method, after the training."""
        return self.guest.session.accounts if self.guest.session else []

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Before optimizers are made: the methods come in, and have their say in each loss."""
        if stage != "fit":
            return
        pl_module.to(trainer.strategy.root_device)
        self.guest.enter(pl_module if self.part is None else self.part(pl_module))
        self.own = pl_module.training_step
        pl_module.training_step = self._step

    def _step(self, batch: Any, *more: Any, **named: Any) -> Any:
        answer = self.own(batch, *more, **named)
        if isinstance(answer, Tensor):
            return self.guest.loss(answer, batch)
        if isinstance(answer, dict) and "loss" in answer:
            return {**answer, "loss": self.guest.loss(answer["loss"], batch)}
        return answer

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Optimizers are made."""
        self.guest.adopt(trainer.optimizers, [one.scheduler for one in trainer.lr_scheduler_configs])

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """What a checkpoint had is back."""
        self.steps = trainer.global_step
        self.guest.begin(trainer.estimated_stepping_batches, self.steps)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Before each batch."""
        self.guest.ready(trainer.optimizers[0])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After each batch, and where gradients are accumulated, after each that ended in a step."""
        if trainer.global_step != self.steps:
            self.steps = trainer.global_step
            self.guest.stepped()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The module is an ordinary one again."""
        self._leave(pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Also when training fails."""
        self._leave(pl_module, failed=True)

    def _leave(self, pl_module: Any, failed: bool = False) -> None:
        pl_module.__dict__.pop("training_step", None)
        self.guest.leave(failed)

    def state_dict(self) -> dict[str, Any]:
        """In Lightning's checkpoints."""
        return self.guest.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From there."""
        self.guest.load_state_dict(state_dict)
