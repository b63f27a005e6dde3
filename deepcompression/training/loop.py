"""One training loop for all stages and methods: the best state kept, a rolling checkpoint each epoch."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression.data.batch import copied
from deepcompression.errors import DataError, DivergedError, RunError, one_line
from deepcompression.structure.constraints import Structure, together
from deepcompression.training import checkpoint as checkpoints
from deepcompression.training import randomness
from deepcompression.training.batches import Batches
from deepcompression.training.best import best_of, better, copied_state, tell_no_numbers
from deepcompression.training.context import context_of
from deepcompression.training.evaluate import Evaluation, evaluate
from deepcompression.training.evaluated_batch import evaluated_batch
from deepcompression.training.method import Account, Claim, Method
from deepcompression.training.optimizers import divide_gradients, make_optimizer, make_schedule
from deepcompression.training.plan import Fit, Plan, Progress
from deepcompression.training.problem import Problem, backward, compiling, stepped
from deepcompression.training.session import Session
from deepcompression.training.shards import Shards, refuse
from deepcompression.training.team import Team, of_all

log = logging.getLogger(__name__)
REPORT_SECONDS = 0.2


@dataclass(frozen=True)
class Trained:
    """What a training did: its loop, what methods made of the model, and what is true of its tensors now.

    ``labels``: what each method is called beside the others; ``claimed``: all that they claimed.
    """

    fit: Fit
    accounts: list[tuple[Method, Account]]
    structure: Structure
    labels: dict[Method, str]
    claimed: frozenset[Claim]


def train(
    model: nn.Module,
    problem: Problem,
    plan: Plan,
    methods: Sequence[Method] = (),
    *,
    structure: Structure | None = None,
    teacher: nn.Module | None = None,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    team: Team | None = None,
) -> Trained:
    """Trains ``model`` in place with methods at work, and leaves it with its best state on validation, baked.

    Args:
        model: with ordinary parameters; so it is at the end, also when training fails.
        problem: data, step, metric.
        plan: how it trains.
        methods: what takes part.
        structure: what is true of tensors before, and is held (see ``session.attach``).
        teacher: what methods may learn from; placed on the device, in eval mode, and never trained.
        checkpoint: file from which a killed training goes on, written after each epoch; on the CPU the result
            then has the bits of an uninterrupted one.
        progress: told a few times a second at most, and at the end of each epoch.
        team: of processes that all call this with the same: each computes its part of every batch, all end with the
            first one's weights, and only the first one writes and tells.

    Raises:
        StructureError: as ``session.attach``.
        DivergedError: loss not finite; the model has its best state so far, the checkpoint the last epoch.
        FactoryError: optimizer, schedule, step or metric are not what they should be.
        DataError: the data fails, or nothing is left of it.
        StorageError: the checkpoint cannot be written.
    """
    if team is not None:
        plan = replace(plan, compute=replace(plan.compute, device=team.device()))
    context = context_of(problem, plan.compute, plan.seed, structure=structure, teacher=teacher)
    context = replace(context, processes=team.count if team else 1)
    session = Session(plan.compute.place(model), methods, 1, context)
    with session:
        loop = _Loop(session, problem, plan, checkpoint, progress, team)
        with loop.in_pieces():
            done = _fit(loop)
    held = together(structure or {}, *(account.structure for _, account in session.accounts))
    return Trained(done, session.accounts, held, session.labels, session.context.claimed)


def _fit(loop: _Loop) -> Fit:
    plan, problem, session = loop.plan, loop.problem, loop.session
    loop.resume()
    first = min(int(plan.epochs * session.settled + 1e-6) + 1, plan.epochs)
    reason = "all epochs done"
    for epoch in range(loop.epoch + 1, plan.epochs + 1):
        if plan.patience and loop.best and loop.epoch - loop.best["epoch"] >= plan.patience:
            reason = f"no better validation for {plan.patience} epochs"
            break
        loop.run_epoch(epoch, track=epoch >= first)
    loop.restore_best()
    if loop.history:
        tell_no_numbers(loop.history, f"val_{problem.metric.name}", bool(loop.best))
    best = loop.best or {"epoch": loop.epoch, "metric": math.nan}
    return Fit(loop.history, int(best["epoch"]), float(best["metric"]), reason)


class _Loop:
    """The state of one training loop: all that its checkpoint holds."""

    def __init__(
        self,
        session: Session,
        problem: Problem,
        plan: Plan,
        path: Path | None,
        progress: Callable[[Progress], None] | None,
        team: Team | None,
    ) -> None:
        randomness.seed_everything(plan.seed)
        self.session, self.problem, self.plan, self.compute = session, problem, plan, plan.compute
        self.model = plan.compute.place(session.model)  # what methods put in has the memory format too: see team.py
        self.generator = torch.Generator().manual_seed(plan.seed)
        self.team = team if team and team.count > 1 else None
        share = self.team.share if self.team else None
        augment, drop_last = problem.augment, problem.drop_last
        self.batches = Batches(
            problem.train, problem.batch_size, plan.compute, self.generator, augment, drop_last, share=share
        )
        if self.batches.drops_all():
            raise DataError("data: drop_last leaves nothing to train on: all samples are fewer than a batch")
        self.path, self.progress = path, progress
        self.epoch = 0
        self.forward: nn.Module = torch.compile(self.model) if plan.compute.compiled else self.model  # type: ignore[assignment]
        if self.team:
            self.team.agree(self.model, said=False)
        self.start = copied_state(self.model)
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Any] = {}
        self.evaluated: int | None = None  # samples in a batch of validation
        self.optimizer = make_optimizer(self.model, plan.optimizer, session.groups)
        steps = -(-len(self.batches) // plan.accumulate)
        self.schedule = make_schedule(self.optimizer, plan.schedule, plan.warmup, plan.epochs, steps)
        session.now.steps = plan.epochs * steps
        self.shards: Shards | None = None
        if self.team and self.team.strategy == "fsdp":
            refuse([one.__name__ for one in type(self.optimizer).__mro__], plan.compute.compiled)
            self.shards = Shards(self.model, self.team, self._whole_loss)

    def in_pieces(self) -> AbstractContextManager[None]:
        """Where the model is in pieces, it is whole again afterwards."""
        return self.shards.working(lambda: self.best.get("state"), self.start) if self.shards else nullcontext()

    def _whole(self) -> AbstractContextManager[None]:
        """Within, all parameters are whole."""
        return self.shards.whole() if self.shards else nullcontext()

    def run_epoch(self, epoch: int, track: bool) -> None:
        """One pass, its validation, the checkpoint."""
        started, rate = time.perf_counter(), float(self.optimizer.param_groups[0]["lr"])
        loss = self._train(epoch)
        if not math.isfinite(loss):
            self._diverged(epoch, loss, rate)
        self.epoch = epoch
        with self._whole():
            result = self._validated()
            figures = self.session.after_epoch(result.metric)
            if track:
                self._track(epoch, result)
        entry = {"epoch": epoch, "loss": loss, self._metric_name: result.metric, "val_loss": result.loss, **figures}
        self.history.append({**entry, "lr": rate, "seconds": round(time.perf_counter() - started, 3)})
        self._save()
        self._tell(epoch, len(self.batches))

    def _validated(self) -> Evaluation:
        """On the validation split; of several processes by the first one."""
        if self.team is None:
            return self._evaluate()
        self.team.agree(self.model)
        drawn = self._generators()
        result: Evaluation
        result, states = self.team.said((self._evaluate(), randomness.states(drawn)) if self.team.first else None)
        randomness.restore(of_all(states), drawn)  # what validation drew, all have drawn
        return result

    def _evaluate(self) -> Evaluation:
        validation, step, metric = self.problem.validation, self.problem.step, self.problem.metric
        if self.evaluated is None:
            self.evaluated = evaluated_batch(self.model, validation, step, self.compute)
        return evaluate(self.model, validation, step, metric, self.compute, self.evaluated)

    def _train(self, epoch: int) -> float:
        """All steps of one epoch; the mean loss. Nothing in here waits for the device."""
        every, told, number = self.plan.accumulate, 0.0, 0
        steps, total = self.session.now.steps // self.plan.epochs, torch.zeros((), device=self.compute.resolved())
        self.model.train()
        if self.team:
            self.team.share.begin(self.plan.seed, epoch)
        batches = iter(self.batches.shared())
        for first in batches:
            self.session.now.step = (epoch - 1) * steps + number // every
            with self._whole() if self.session.looks else nullcontext():
                self.session.before_step(self.optimizer)
            loss, count = self._step(chain([first], islice(batches, every - 1)))
            total, number = total + loss, number + count
            if time.perf_counter() - told > REPORT_SECONDS:
                told = time.perf_counter()
                self._tell(epoch, number)
        if not number:
            raise DataError(
                f"data: epoch {epoch} has no batch; the training split must give its samples in every epoch, and more "
                "than one batch where drop_last leaves out the last"
            )
        self.schedule.epoch_done()
        return float(self.team.total(total) if self.team else total) / number

    def _step(self, batches: Iterable[tuple[Any, float]]) -> tuple[Tensor, int]:
        """One step of the optimizer: the sum of the batches' losses, and how many they were."""
        total, count = torch.zeros((), device=self.compute.resolved()), 0
        for batch, weight in batches:
            loss = self._loss(batch)
            loss = loss if weight == 1 else loss * weight
            if not count:
                self.optimizer.zero_grad(set_to_none=True)
            backward(loss)
            total, count = total + loss.detach(), count + 1
        if together := self.shards or self.team:
            together.add_gradients(self.optimizer)
        if count > 1:
            divide_gradients(self.optimizer, count)
        if self.plan.gradient_clip is not None:
            clip = self.shards.clip if self.shards else partial(nn.utils.clip_grad_norm_, self.model.parameters())
            clip(self.plan.gradient_clip)
        self.optimizer.step()
        self.schedule.step_done()
        if self.session.looks:
            with self._whole():
                if self.team and not self.session.now.step:
                    self.team.agree(self.model, said=False)  # methods begin with what each one's own samples are like
                self.session.after_step()
        else:
            self.session.after_step()
        return total, count

    def _loss(self, batch: Any) -> Tensor:
        return self.shards.loss(batch) if self.shards else self._whole_loss(batch)

    def _whole_loss(self, batch: Any) -> Tensor:
        again = copied(batch) if self.session.adds_to_loss else None  # a step may take parts out of its batch
        with self.compute.autocast(), compiling(self.compute.compiled):
            loss, outputs, _ = stepped(self.problem.step, self.forward, batch)
            return self.session.loss(loss, again, outputs)

    @property
    def _metric_name(self) -> str:
        return f"val_{self.problem.metric.name}"

    def _tell(self, epoch: int, step: int) -> None:
        if self.progress is not None and (self.team is None or self.team.first):
            last = self.history[-1] if self.history else {}
            known = last.get("loss"), last.get(self._metric_name)
            self.progress(Progress(epoch, self.plan.epochs, step, len(self.batches), *known))

    def _track(self, epoch: int, result: Evaluation) -> None:
        if better(result, self.best, self.problem.metric.higher_is_better):
            self.best = best_of(epoch, result, self.model)

    def restore_best(self) -> None:
        """The model gets its best state, if one was tracked."""
        if self.best:
            with self._whole():
                self.model.load_state_dict(self.best["state"])

    def _diverged(self, epoch: int, loss: float, rate: float) -> None:
        with self._whole():
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
        optimizer: Any = self.shards.optimizer_states(self.optimizer) if self.shards else self.optimizer.state_dict()
        with self._whole():
            self._write(optimizer)

    def _write(self, optimizer: Any) -> None:
        if self.path is None or (self.team and not self.team.first):
            return
        content = {
            "epoch": self.epoch,
            "history": self.history,
            "best": self.best,
            "model": self.model.state_dict(),
            "optimizer": optimizer,
            "schedule": self.schedule.state_dict(),
            "methods": self.session.state_dict(),
            "random": randomness.states(self._generators()),
        }
        checkpoints.save(self.path, content)

    def resume(self) -> None:
        """Goes on from the checkpoint if there is a readable one; an unreadable one is as good as none."""
        if self.path is None or not self.path.exists():
            return
        try:
            content = checkpoints.read(self.path, self.compute.resolved())
            self._load(content)
        except Exception as error:  # torch's readers raise every kind for a damaged file
            log.warning("%s cannot be used (%s); training starts anew", self.path, one_line(error)[:200])
            with self._whole():
                self.model.load_state_dict(self.start)
            return
        self.schedule.load_state_dict(content["schedule"])
        self.session.load_state_dict(content["methods"])
        self.epoch, self.history, self.best = content["epoch"], content["history"], content["best"]
        states = of_all(content["random"]) if self.team else content["random"]
        randomness.restore(states, self._generators())

    def _load(self, content: Mapping[str, Any]) -> None:
        each = content["optimizer"]
        found, here = len(each) if isinstance(each, list) else 0, self.team.count if self.shards and self.team else 0
        if found != here:
            raise RunError(f"its model is in {found or 'no'} pieces, here in {here or 'none'}")
        with self._whole():
            self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(each[self.team.rank] if self.shards and self.team else each)

    def _generators(self) -> list[torch.Generator]:
        """What draws batch order: ours, and those in the loader, its samplers and its data set."""
        theirs = [one for one in randomness.found(self.batches.loader) if isinstance(one, torch.Generator)]
        return [self.generator, *(one for one in theirs if one is not self.generator)]
