"""What a stage works with, and what it makes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tasks.console import progress
from tasks.execution.run import Reference, Run
from tasks.execution.settings import Distil, Training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepcompression.network.coverage import Covered
    from deepcompression.training.loop import Trained
    from deepcompression.training.method import Account, Context, Method
    from deepcompression.training.problem import Problem
    from deepcompression.training.team import Team


class Teams(Protocol):
    """What brings this process into a team of several, for a training."""

    def training(self) -> AbstractContextManager[Team]:
        """The team."""


class Lesson(Protocol):
    """Keys that say in which batches is learnt, and whether from a teacher too: a Training's are such."""

    batch_size: int | None
    drop_last: bool
    distil: Distil | None


@dataclass
class Bench:
    """What a stage works with."""

    run: Run
    label: str
    input: Reference | None
    folder: Path
    teams: Teams | None = None  # where the run has several devices

    @property
    def seed(self) -> int:
        """This stage's own seed."""
        return self.run.stage_seed(self.label)

    @property
    def checkpoint(self) -> Path:
        """Where a training loop keeps what lets it go on."""
        return self.folder / "checkpoint.pt"

    def state(self) -> dict[str, Tensor]:
        """The input's state_dict."""
        assert self.input is not None
        return self.run.state(self.input)

    def model(self) -> nn.Module:
        """The model with the input's weights."""
        assert self.input is not None
        return self.run.model_with(self.input)

    def blank_model(self) -> nn.Module:
        """A new model, with the edits of the input made."""
        return self.run.edited_model(self.input.edits if self.input else ())

    def problem(self, lesson: Lesson) -> Problem:
        """What a training learns, with the recipe's keys of that training."""
        return self.run.problem(lesson.batch_size, lesson.drop_last)

    def context(self) -> Context:
        """What criteria may use where nothing trains."""
        from deepcompression.training.context import context_of

        return context_of(self.run.problem(), self.run.compute(), self.seed)

    def train(self, model: nn.Module, training: Training, methods: Sequence[Method] = ()) -> Trained:
        """Trains ``model`` in place with a recipe's keys of a training, and methods at work; what is true of the input
        is held.
        """
        from deepcompression.training.loop import train
        from deepcompression.training.plan import Plan

        plan = Plan(
            training.epochs,
            training.optimizer_with_rate(),
            training.plain_schedule(),
            training.warmup,
            training.patience,
            training.gradient_clip,
            self.seed,
            self.run.compute(),
            training.accumulate,
        )
        taught = [training.distil.make()] if training.distil else []
        learns = any(method.learns for method in (*methods, *taught))
        together = self.teams.training() if self.teams else nullcontext()
        with progress(self.label, str(self.run.metric_object().name)) as show, together as team:
            return train(
                model,
                self.problem(training),
                plan,
                [*methods, *taught],
                structure=self.input.structure if self.input else {},
                teacher=self.run.teacher_model() if learns else None,
                checkpoint=self.checkpoint,
                progress=show,
                team=team,
            )


@dataclass
class Product:
    """What a stage made: a state_dict (or, when encoding, a file), what it adds to structure and edits, and what to
    report.
    """

    state: Mapping[str, Tensor] | None = None
    file: Path | None = None
    structure: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    edits: Sequence[Mapping[str, Any]] = ()
    selected: Collection[str] | None = None  # the tensors that it was to change; None: any
    regrouped: Sequence[str] = ()  # shared tensors whose weights did not stay with those that they were equal to
    compared: Mapping[str, Tensor] | None = None  # the input, arranged as ``state`` is, where units went or moved
    report: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float] = field(default_factory=dict)  # logged as label/name, at the stage's step
    history: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()  # what a person must see: console, report, the run's folder, a tag of its MLflow run


def trained(bench: Bench, training: Training, methods: Sequence[Method] = ()) -> Product:
    """The input trained with methods at work: what they made of it, what each of them reports, and, where methods claim
    tensors, what became of every tensor.
    """
    from deepcompression.network.state import plain_state
    from deepcompression.structure.constraints import together

    model = bench.model()
    done = bench.train(model, training, methods)
    accounts = [account for _, account in done.accounts]
    reports = [{"method": done.labels[method], **account.report} for method, account in done.accounts]
    product = Product(
        plain_state(model),
        structure=together(*(account.structure for account in accounts)),
        edits=[edit for account in accounts for edit in account.edits],
        regrouped=[name for account in accounts for name in account.regrouped],
        compared=_arranged(bench, accounts),
        report={"methods": reports, "best_epoch": done.fit.best_epoch, "stopped": done.fit.stopped},
        history=done.fit.history,
        notes=[note for account in accounts for note in account.notes],
    )
    return covering(product, _covered(model, done)) if done.claimed else product


def _arranged(bench: Bench, accounts: Sequence[Account]) -> Mapping[str, Tensor] | None:
    """The input in the shapes that it has now; None where they are its own."""
    changed = [account.arranged for account in accounts if account.arranged]
    state: Mapping[str, Tensor] = bench.state() if changed else {}
    for arrange in changed:
        state = arrange(state)
    return state or None


def _covered(model: nn.Module, done: Trained) -> list[Covered]:
    """Every tensor of a trained model: claimed by some method, or why not."""
    from deepcompression.network.coverage import coverage
    from deepcompression.training.method import ACTIVATION

    state, claimed = model.state_dict(), {target for target, role in done.claimed if role != ACTIVATION}
    blank = [name for name in claimed if not bool(state[name].any())]
    left = {name: why for _, account in done.accounts for name, why in account.left.items()}
    return coverage(model, claimed - set(blank) - set(left), {**left, **dict.fromkeys(blank, "zero throughout")})


def covering(product: Product, rows: Sequence[Covered]) -> Product:
    """``product`` with the table of every tensor, done or left alone; it warns where most bytes were left alone."""
    from deepcompression.network import coverage

    warning = coverage.warning(rows)
    told = "" if warning else coverage.sentence(rows)
    warnings = [*product.warnings, *([warning] if warning else [])]
    return replace(product, report={**product.report, "covered": rows, "told": told}, warnings=warnings)
