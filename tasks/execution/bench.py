"""What a stage works with, and what it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tasks.execution.run import Reference, Run
from tasks.execution.settings import Distil, Training

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepcompression.network.coverage import Covered
    from deepcompression.training.problem import Problem


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

    def problem(self, lesson: Lesson) -> Problem:
        """What a training learns, with the recipe's keys of that training."""
        problem = self.run.problem(lesson.batch_size, lesson.drop_last)
        return self.run.distilled(problem, lesson.distil) if lesson.distil else problem

    def fit_arguments(self, training: Training, show: Any) -> dict[str, Any]:
        """A recipe's training keys as the keyword arguments of ``deepcompression.training.loop.fit``."""
        return {
            "epochs": training.epochs,
            "optimizer": training.optimizer_with_rate(),
            "schedule": training.plain_schedule(),
            "warmup": training.warmup,
            "patience": training.patience,
            "gradient_clip": training.gradient_clip,
            "seed": self.seed,
            "compute": self.run.compute(),
            "checkpoint": self.checkpoint,
            "progress": show,
        }


@dataclass
class Product:
    """What a stage made: a state_dict (or, when encoding, a file), the structure in it, and what to report."""

    state: Mapping[str, Tensor] | None = None
    file: Path | None = None
    zeros: Sequence[str] = ()
    shared: Sequence[str] = ()
    regrouped: Sequence[str] = ()  # shared tensors whose weights did not stay with those that they were equal to
    compared: Mapping[str, Tensor] | None = None  # the input, arranged as ``state`` is, where units changed places
    report: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()  # what a person must see: console, report, the run's folder, a tag of its MLflow run


def covering(product: Product, rows: Sequence[Covered]) -> Product:
    """``product`` with the table of every tensor, done or left alone; it warns where most bytes were left alone."""
    from deepcompression.network import coverage

    warning = coverage.warning(rows)
    told = "" if warning else coverage.sentence(rows)
    warnings = [*product.warnings, *([warning] if warning else [])]
    return replace(product, report={**product.report, "covered": rows, "told": told}, warnings=warnings)
