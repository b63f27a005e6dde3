"""One training loop for all stages: the best state kept, a rolling checkpoint each epoch."""

from __future__ import annotations

import contextlib
import inspect
import logging
import math
import os
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepcompression import factory
from deepcompression.errors import DivergedError, FactoryError, StorageError
from deepcompression.problem import Batches, Compute, Evaluation, Problem, evaluate, stepped

log = logging.getLogger(__name__)
REPORT_SECONDS = 0.2
SHAPES: dict[str, Callable[[float], float]] = {  # fraction of the steps done -> fraction of the rate
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}


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
        model: with structure held, where there is some (``structure.hold``).
        problem: data, step, metric.
        epochs: passes over the training split.
        optimizer: ``{factory, kwargs}``; the factory gets the parameters and the kwargs, such as lr.
        schedule: constant, cosine, linear (to zero, by step), or ``{factory, kwargs}`` of a torch scheduler,
        by epoch. warmup: epochs in which the rate rises linearly (constant, cosine and linear schedules).
        seed: of batch order, augmentation and dropout. compute: device, precision, memory format. patience:
        stop after so many tracked epochs without a better validation metric. gradient_clip: largest norm of
        the whole gradient. checkpoint: file from which a killed loop goes on, written after each epoch; on
        the CPU the result then has
            the same bits as that of an uninterrupted loop.
        progress: told a few times a second at most.
        on_step: called before each step with (step, steps of the whole loop), step from 0.
        track_from: first epoch (from 1) whose state can be the best; of equal metrics the lower loss wins.

    Raises:
        DivergedError: loss not finite; the model has its best state so far, the checkpoint the last good
        epoch. FactoryError: optimizer, schedule, step or metric are not what they should be. StorageError:
        the checkpoint cannot be written.
    """
    loop = _Loop(model, problem, epochs, optimizer, schedule, warmup, seed, compute or Compute(), checkpoint)
    loop.resume()
    reason = "all epochs done"
    for epoch in range(loop.epoch + 1, epochs + 1):
        if patience and loop.best and loop.epoch - loop.best["epoch"] >= patience:
            reason = f"no better validation for {patience} epochs"
            break
        loop.run_epoch(epoch, progress, on_step, gradient_clip, track=epoch >= track_from)
    loop.restore_best()
    best = loop.best or {"epoch": loop.epoch, "metric": math.nan}
    return Fit(loop.history, int(best["epoch"]), float(best["metric"]), reason)


class _Loop:
    """The state of one training loop: all that its checkpoint holds."""

    def __init__(
        self,
        model: nn.Module,
        problem: Problem,
        epochs: int,
        optimizer: Mapping[str, Any],
        schedule: str | Mapping[str, Any],
        warmup: float,
        seed: int,
        compute: Compute,
        checkpoint: Path | None,
    ) -> None:
        _seed_everything(seed)
        self.model, self.problem, self.epochs, self.compute = compute.place(model), problem, epochs, compute
        self.generator = torch.Generator().manual_seed(seed)
        self.batches = Batches(problem.train, problem.batch_size, compute, self.generator, problem.augment)
        self.optimizer = _optimizer(self.model, optimizer)
        self.schedule, self.by_step = _schedule(self.optimizer, schedule, warmup, epochs, len(self.batches))
        self.path = checkpoint
        self.epoch = 0
        self.start = _copy(self.model)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}

    def run_epoch(
        self,
        epoch: int,
        progress: Callable[[Progress], None] | None,
        on_step: Callable[[int, int], None] | None,
        gradient_clip: float | None,
        track: bool,
    ) -> None:
        """One pass, its validation, the checkpoint."""
        started, told, steps = time.perf_counter(), 0.0, len(self.batches)
        rate = float(self.optimizer.param_groups[0]["lr"])
        last = self.history[-1] if self.history else {}
        metric_name = f"val_{self.problem.metric.name}"
        total = torch.zeros((), device=self.compute.resolved())
        self.model.train()
        number = 0
        for number, batch in enumerate(self.batches, 1):
            if on_step is not None:
                on_step((epoch - 1) * steps + number - 1, self.epochs * steps)
            total += self._step(batch, gradient_clip)
            if progress is not None and time.perf_counter() - told > REPORT_SECONDS:
                told = time.perf_counter()
                progress(Progress(epoch, self.epochs, number, steps, last.get("loss"), last.get(metric_name)))
        loss = float(total) / max(number, 1)
        if not math.isfinite(loss):
            self._diverged(epoch, loss, rate)
        if not self.by_step:
            self.schedule.step()
        result = evaluate(
            self.model, self.problem.validation, self.problem.step, self.problem.metric, self.compute
        )
        seconds = time.perf_counter() - started
        self.epoch = epoch
        self.history.append(
            {"epoch": epoch, "loss": loss, metric_name: result.metric, "val_loss": result.loss, "lr": rate,
             "seconds": round(seconds, 3)}
        )  # fmt: skip
        if track:
            self._track(epoch, result)
        self._save()
        if progress is not None:
            progress(Progress(epoch, self.epochs, steps, steps, loss, result.metric))

    def _step(self, batch: Any, gradient_clip: float | None) -> Tensor:
        with self.compute.autocast():
            loss, _, _ = stepped(self.problem.step, self.model, batch)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), gradient_clip)
        self.optimizer.step()
        if self.by_step:
            self.schedule.step()
        return loss.detach()

    def _track(self, epoch: int, result: Evaluation) -> None:
        sign = 1 if self.problem.metric.higher_is_better else -1
        rank = (sign * result.metric, -result.loss)
        if math.isnan(result.metric):
            return  # no state to go back to
        if not self.best or rank > (sign * self.best["metric"], -self.best["loss"]):
            self.best = {
                "epoch": epoch, "metric": result.metric, "loss": result.loss, "state": _copy(self.model)
            }  # fmt: skip

    def restore_best(self) -> None:
        """The model gets its best state, if one was tracked."""
        if self.best:
            self.model.load_state_dict(self.best["state"])

    def _diverged(self, epoch: int, loss: float, rate: float) -> None:
        self.model.load_state_dict(self.best["state"] if self.best else self.start)
        raise DivergedError(
            f"training: the loss became {loss} in epoch {epoch} at learning rate {rate:.3g}; "
            "the last good epoch is kept; lower lr, or set gradient_clip or warmup"
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
            "schedule": {k: v for k, v in self.schedule.state_dict().items() if not k.startswith("_get_lr")},
            "random": _random_states(),
            "generators": [generator.get_state() for generator in self._generators()],
        }
        part = self.path.with_suffix(".part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch turns a full disk into a RuntimeError
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise StorageError(f"{self.path}: the checkpoint cannot be written: {_one_line(error)}") from None

    def resume(self) -> None:
        """Goes on from the checkpoint if there is a readable one; an unreadable one is as good as none."""
        if self.path is None or not self.path.exists():
            return
        try:
            content = torch.load(self.path, map_location=self.compute.resolved(), weights_only=True)
            self.model.load_state_dict(content["model"])
            self.optimizer.load_state_dict(content["optimizer"])
        except Exception as error:  # torch's readers raise every kind for a damaged file
            log.warning("%s cannot be used (%s); training starts anew", self.path, _one_line(error))
            self.model.load_state_dict(self.start)
            return
        self.schedule.load_state_dict(content["schedule"])
        self.epoch, self.history, self.best = content["epoch"], content["history"], content["best"]
        for generator, state in zip(self._generators(), content["generators"], strict=True):
            generator.set_state(state.cpu())
        _set_random_states(content["random"])

    def _generators(self) -> list[torch.Generator]:
        """What draws batch order: ours, and that of a DataLoader of the user's."""
        theirs = getattr(self.batches.loader, "generator", None)
        return [self.generator] if theirs in (None, self.generator) else [self.generator, theirs]


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _optimizer(model: nn.Module, spec: Mapping[str, Any]) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kwargs = {**_fused(spec["factory"], parameters), **spec.get("kwargs", {})}
    made = factory.build(spec["factory"], {"params": parameters, **kwargs})
    if not isinstance(made, torch.optim.Optimizer):
        raise FactoryError(
            f"optimizer {spec['factory']}: expected a torch optimizer, got {type(made).__name__}"
        )
    return made


def _fused(spec: str, parameters: list[nn.Parameter]) -> dict[str, bool]:
    """torch's own optimizers step in one kernel where they can: several times faster for small nets."""
    able = {"cpu", "cuda"}
    if not spec.startswith("torch.optim") or "fused" not in inspect.signature(factory.load(spec)).parameters:
        return {}
    return {"fused": all(one.is_floating_point() and one.device.type in able for one in parameters)}


def _schedule(
    optimizer: torch.optim.Optimizer,
    schedule: str | Mapping[str, Any],
    warmup: float,
    epochs: int,
    steps: int,
) -> tuple[Any, bool]:
    """A scheduler, and whether it is stepped after each batch (else after each epoch)."""
    if not isinstance(schedule, str):
        return factory.build(
            schedule["factory"], {"optimizer": optimizer, **schedule.get("kwargs", {})}
        ), False
    if schedule not in SHAPES:
        raise FactoryError(
            f"schedule {schedule!r}: expected {', '.join(SHAPES)}, or a factory of a scheduler"
        )
    total, rising = epochs * steps, warmup * steps

    def scale(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        done = min((step - rising) / max(total - rising, 1), 1.0)
        return SHAPES[schedule](done)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, scale), True


def _seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # users' datasets draw from the global one
    random.seed(seed)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _random_states() -> dict[str, Any]:
    name, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "python": random.getstate(),
    }


def _set_random_states(states: Mapping[str, Any]) -> None:
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
