"""One training loop for all stages: the best state kept, a rolling checkpoint each epoch."""

from __future__ import annotations

import errno
import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression._atomic import written
from deepcompression.errors import DataError, DivergedError, one_line
from deepcompression.training import randomness
from deepcompression.training.batches import Batches
from deepcompression.training.device import Compute
from deepcompression.training.evaluate import Evaluation, evaluate
from deepcompression.training.optimizers import make_optimizer, make_schedule
from deepcompression.training.problem import Problem, backward, stepped

log = logging.getLogger(__name__)
REPORT_SECONDS = 0.2


@dataclass(frozen=True)
class Progress:
    """How far a training loop is; ``loss`` and ``metric`` are the last known ones."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    metric: float | None


@dataclass(frozen=True)
class Fit:
    """What a training loop did. The model has the state of ``best_epoch``."""

    history: list[dict[str, float]]
    best_epoch: int
    best_metric: float
    stopped: str


def fit(
    model: nn.Module,
    problem: Problem,
    *,
    epochs: int,
    optimizer: Mapping[str, Any],
    schedule: str | Mapping[str, Any] = "cosine",
    warmup: float = 0,
    seed: int = 0,
    compute: Compute | None = None,
    patience: int | None = None,
    gradient_clip: float | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    track_from: int = 1,
) -> Fit:
    """Trains ``model`` in place and leaves it with its best state on validation.

    Args:
        model: with structure held, where there is some (``holding.hold``).
        problem: data, step, metric.
        epochs: passes over the training split.
        optimizer: ``{factory, kwargs}``; the factory gets the parameters and the kwargs, such as lr.
        schedule: constant, cosine, linear (to zero, by step), or ``{factory, kwargs}`` of a torch scheduler
            (by epoch).
        warmup: epochs in which the rate rises linearly; not for a scheduler by factory.
        seed: of batch order, augmentation and dropout.
        compute: device, precision, memory format.
        patience: stop after so many epochs without a better validation metric.
        gradient_clip: largest norm of the whole gradient.
        checkpoint: file from which a killed loop goes on, written after each epoch; on the CPU the result
            then has the bits of an uninterrupted loop.
        progress: told a few times a second at most, and at the end of each epoch.
        on_step: called before each step with (step, steps of the whole loop), step from 0.
        track_from: first epoch (from 1) whose state can be the best; of equal metrics the lower loss wins.

    Raises:
        DivergedError: loss not finite; the model has its best state so far, the checkpoint the last epoch.
        FactoryError: optimizer, schedule, step or metric are not what they should be.
        DataError: the data fails, or nothing is left of it.
        StorageError: the checkpoint cannot be written.
    """
    loop = _Loop(model, problem, epochs, compute or Compute(), seed, checkpoint)
    loop.optimizer = make_optimizer(loop.model, optimizer)
    loop.schedule = make_schedule(loop.optimizer, schedule, warmup, epochs, len(loop.batches))
    loop.progress, loop.on_step, loop.gradient_clip = progress, on_step, gradient_clip
    loop.resume()
    reason = "all epochs done"
    for epoch in range(loop.epoch + 1, epochs + 1):
        if patience and loop.best and loop.epoch - loop.best["epoch"] >= patience:
            reason = f"no better validation for {patience} epochs"
            break
        loop.run_epoch(epoch, track=epoch >= track_from)
    loop.restore_best()
    if loop.history:
        _tell_no_numbers(loop.history, f"val_{problem.metric.name}", bool(loop.best))
    best = loop.best or {"epoch": loop.epoch, "metric": math.nan}
    return Fit(loop.history, int(best["epoch"]), float(best["metric"]), reason)


def _worst_if_nan(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _tell_no_numbers(history: list[dict[str, float]], name: str, best: bool) -> None:
    """A warning where epochs were validated with a result that is not a number."""
    bad = [int(row["epoch"]) for row in history if not math.isfinite(row[name])]
    if not bad:
        return
    which = f"{len(bad)} of {len(history)} epochs" if best else f"any of {len(history)} epochs"
    kept = "the best of the others is kept" if best else "the last epoch's weights are kept, for want of a better rule"
    told = f"{name.replace('_', ' ', 1)} is not a number"
    log.warning("training: %s in %s; %s", told, which, kept)


class _Loop:
    """The state of one training loop: all that its checkpoint holds."""

    optimizer: torch.optim.Optimizer
    schedule: Any
    progress: Callable[[Progress], None] | None
    on_step: Callable[[int, int], None] | None
    gradient_clip: float | None

    def __init__(
        self, model: nn.Module, problem: Problem, epochs: int, compute: Compute, seed: int, path: Path | None
    ) -> None:
        randomness.seed_everything(seed)
        self.model, self.problem, self.epochs, self.compute = compute.place(model), problem, epochs, compute
        self.generator = torch.Generator().manual_seed(seed)
        self.batches = Batches(
            problem.train, problem.batch_size, compute, self.generator, problem.augment, problem.drop_last
        )
        if self.batches.drops_all():
            raise DataError("data: drop_last leaves nothing to train on: all samples are fewer than a batch")
        self.path = path
        self.epoch = 0
        self.start = _copy(self.model)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}

    def run_epoch(self, epoch: int, track: bool) -> None:
        """One pass, its validation, the checkpoint."""
        started, rate = time.perf_counter(), float(self.optimizer.param_groups[0]["lr"])
        loss = self._train(epoch)
        if not math.isfinite(loss):
            self._diverged(epoch, loss, rate)
        result = evaluate(self.model, self.problem.validation, self.problem.step, self.problem.metric, self.compute)
        self.epoch = epoch
        entry = {"epoch": epoch, "loss": loss, self._metric_name: result.metric, "val_loss": result.loss}
        self.history.append({**entry, "lr": rate, "seconds": round(time.perf_counter() - started, 3)})
        if track:
            self._track(epoch, result)
        self._save()
        self._tell(epoch, len(self.batches))

    def _train(self, epoch: int) -> float:
        """All steps of one epoch; the mean loss. Nothing in here waits for the device."""
        steps, told, number = len(self.batches), 0.0, 0
        total = torch.zeros((), device=self.compute.resolved())
        self.model.train()
        for number, batch in enumerate(self.batches, 1):
            if self.on_step is not None:
                self.on_step((epoch - 1) * steps + number - 1, self.epochs * steps)
            total += self._step(batch)
            if time.perf_counter() - told > REPORT_SECONDS:
                told = time.perf_counter()
                self._tell(epoch, number)
        if not number:
            raise DataError(
                f"data: epoch {epoch} has no batch; the training split must give its samples in every epoch, and more "
                "than one batch where drop_last leaves out the last"
            )
        self.schedule.epoch_done()
        return float(total) / number

    def _step(self, batch: Any) -> Tensor:
        with self.compute.autocast():
            loss, _, _ = stepped(self.problem.train_step or self.problem.step, self.model, batch)
        self.optimizer.zero_grad(set_to_none=True)
        backward(loss)
        if self.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.gradient_clip)
        self.optimizer.step()
        self.schedule.step_done()
        return loss.detach()

    @property
    def _metric_name(self) -> str:
        return f"val_{self.problem.metric.name}"

    def _tell(self, epoch: int, step: int) -> None:
        if self.progress is not None:
            last = self.history[-1] if self.history else {}
            known = last.get("loss"), last.get(self._metric_name)
            self.progress(Progress(epoch, self.epochs, step, len(self.batches), *known))

    def _track(self, epoch: int, result: Evaluation) -> None:
        if not math.isfinite(result.metric):
            return  # no state to go back to: what is not a number never wins
        loss = -result.loss if math.isfinite(result.loss) else -math.inf
        sign = 1 if self.problem.metric.higher_is_better else -1
        rank = (sign * result.metric, loss)
        if not self.best or rank > (sign * self.best["metric"], _worst_if_nan(-self.best["loss"])):
            state = _copy(self.model)
            self.best = {"epoch": epoch, "metric": result.metric, "loss": result.loss, "state": state}

    def restore_best(self) -> None:
        """The model gets its best state, if one was tracked."""
        if self.best:
            self.model.load_state_dict(self.best["state"])

    def _diverged(self, epoch: int, loss: float, rate: float) -> None:
        self.model.load_state_dict(self.best["state"] if self.best else self.start)
        broken = [name for name, one in self.start.items() if one.is_floating_point() and bool(one.isnan().any())]
        kept = "the last good epoch is kept; " if self.best else ""
        hint = "lower lr, or set gradient_clip or warmup"
        if broken:
            hint = f"{broken[0]} held NaN before any training: look at what makes the model, or at its weights"
        raise DivergedError(
            f"training: the loss became {loss} in epoch {epoch} at learning rate {rate:.3g}; {kept}{hint}"
        )

    def _save(self) -> None:
        if self.path is None:
            return
        content = {
            "epoch": self.epoch,
            "history": self.history,
            "best": self.best,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": randomness.states(self._generators()),
        }
        with written(self.path, parents=True) as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # how torch tells that the operating system refused
                full = shutil.disk_usage(self.path.parent).free < 1 << 20
                raise OSError(errno.ENOSPC if full else errno.EIO, one_line(error)[:200]) from error

    def resume(self) -> None:
        """Goes on from the checkpoint if there is a readable one; an unreadable one is as good as none."""
        if self.path is None or not self.path.exists():
            return
        try:
            content = torch.load(self.path, map_location=self.compute.resolved(), weights_only=True)
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
        except Exception as error:  # torch's readers raise every kind for a damaged file
            log.warning("%s cannot be used (%s); training starts anew", self.path, one_line(error)[:200])
            self.model.load_state_dict(self.start)
            return
        self.schedule.load_state_dict(content["schedule"])
        self.epoch, self.history, self.best = content["epoch"], content["history"], content["best"]
        randomness.restore(content["random"], self._generators())

    def _generators(self) -> list[torch.Generator]:
        """What draws batch order: ours, and those in the loader, its samplers and its data set."""
        theirs = [one for one in randomness.found(self.batches.loader) if isinstance(one, torch.Generator)]
        return [self.generator, *(one for one in theirs if one is not self.generator)]


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
