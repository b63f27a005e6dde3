"""What a recipe may say: one frozen pydantic type per part, every default visible in the resolved recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union

from pydantic import BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from tasks.execution.allocated import asks
from tasks.execution.settings import (
    Coder,
    Data,
    Distil,
    Evaluate,
    Factory,
    Hold,
    Model,
    Name,
    Rate,
    Strict,
    Teacher,
    Training,
)
from tasks.execution.words import METRICS, STEPS, expanded
from tasks.export_settings import Export, Target
from tasks.stages import STAGES, name_of, settings_of


def _kind(value: Any) -> str | None:
    stage = value.get("stage") if isinstance(value, Mapping) else getattr(value, "stage", None)
    return name_of(stage) if isinstance(stage, str) else None


Stage = Annotated[
    Union[tuple(Annotated[settings_of(name), Tag(name)] for name in (*STAGES, "custom"))],  # noqa: UP007  of the list
    Discriminator(
        _kind,
        custom_error_type="stage",
        custom_error_message=f"expected stage: one of {', '.join(STAGES)}, or package.module:callable",
    ),
]


class Budget(Strict):
    """What may be lost, or how large the file may be: density and bits of every layer are found by the run itself.

    It stands in place of ``stages``. At least one of metric_loss, file_bytes and ratio is given; metric_loss beside one
    of the others: the smallest file that loses no more, if it has no more bytes.
    """

    metric_loss: float | None = Field(
        None,
        gt=0,
        description="how much worse than the dense model, on validation: points of accuracy, or the metric's own unit",
    )
    file_bytes: int | None = Field(None, ge=100, description="bytes of the file at most")
    ratio: float | None = Field(None, gt=1, description="how many times smaller than the dense model at least")
    margin: float | None = Field(
        None,
        ge=0,
        description="of metric_loss, kept back, since the best of many looks better than it is; default: one standard "
        "error of the dense metric, at most a quarter of metric_loss",
    )
    time_limit: float | None = Field(None, gt=0, description="minutes of work for the whole run, baseline included")
    steps: int = Field(12, ge=1, description="files that are made and measured at most")
    epochs: int | None = Field(
        None,
        ge=1,
        description="of the first steps' pruning, twice as many near the limit; default: by time_limit, else 20",
    )
    train: Training | None = Field(None, description="how each step trains; default: as the dense model")
    distil: Distil | None = Field(Distil(), description="steps learn from the dense model (or teacher) too")
    rate: Rate = Field(0.01, description="what a coded bit is worth, see share.rate")
    coder: Coder = "adaptive"

    @model_validator(mode="after")
    def _one_limit(self) -> Budget:
        given = [name for name in ("metric_loss", "file_bytes", "ratio") if getattr(self, name) is not None]
        if not given:
            raise ValueError("expected one of metric_loss, file_bytes and ratio, or metric_loss and one of the others")
        if self.file_bytes is not None and self.ratio is not None:
            raise ValueError("file_bytes and ratio both say how large the file may be: keep one")
        if self.margin is not None and (self.metric_loss is None or self.margin >= self.metric_loss):
            raise ValueError("margin goes with metric_loss, and is less than it")
        return self


class Aims(Strict):
    """What the file must come to, judged on the validation split. A run whose file does not ends as AimMissed, exit
    code 3; file and report are kept. At least one is given; a budget, and the gates of promote, are aims by themselves.
    """

    max_metric_loss: float | None = Field(
        None,
        ge=0,
        description="how much worse than the dense model at most: points of accuracy, or the metric's own unit",
    )
    min_ratio: float | None = Field(None, gt=0, description="how many times smaller than the dense model at least")

    @model_validator(mode="after")
    def _something(self) -> Aims:
        if self.max_metric_loss is None and self.min_ratio is None:
            raise ValueError("expected max_metric_loss, min_ratio, or both")
        return self


class Tracking(Strict):
    """Where MLflow keeps the run. A tracking server that is away never sinks a run."""

    uri: str = "sqlite:///artifacts/mlflow.db"
    experiment: str = "deep-compression"


class Promote(Strict):
    """Registers the file as a version of an MLflow model and makes it the champion, if every gate given here passes.

    All gates are judged on the validation split. Losses are percentage points where samples are right or wrong, else
    in the metric's own unit.
    """

    model: Name = Field(description="the registered model")
    max_metric_loss: float | None = Field(None, ge=0, description="how much worse than the dense model at most")
    min_ratio: float | None = Field(None, gt=0, description="how many times smaller than the dense model at least")
    smaller_than_champion: bool = Field(False, description="whether it must have fewer bytes than the champion")
    max_metric_loss_to_champion: float | None = Field(
        None, ge=0, description="how much worse than the champion at most"
    )
    inputs: list[str] | None = Field(
        None, min_length=1, description="where samples are mappings: what the model takes, in its arguments' order"
    )

    @field_validator("inputs")
    @classmethod
    def _once(cls, inputs: list[str] | None) -> list[str] | None:
        if inputs and len(set(inputs)) < len(inputs):
            raise ValueError("expected each input once")
        return inputs


def _as_export(value: Any) -> Any:
    """A target's name is short for its keys."""
    return {"to": value} if isinstance(value, str) else value


Exports = list[Annotated[Export, BeforeValidator(_as_export, json_schema_input_type=Target | Export)]]


def _worded(words: dict[str, str]) -> Any:
    """A factory, or a word that stands for one, alone or with its arguments."""
    word = Literal[tuple(words)]
    return Annotated[
        Factory,
        BeforeValidator(
            lambda value: expanded(value, words), json_schema_input_type=word | dict[word, dict[str, Any]] | Factory
        ),
    ]


class Recipe(Strict):
    """One YAML = one run (or one run a seed)."""

    recipe_version: Literal[1] = 1
    name: Name
    seed: int | None = Field(None, ge=0)
    seeds: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)
    python_path: list[str] = Field([], description="folders of packages that are not installed")
    model: Model
    data: Data
    step: _worded(STEPS) | None = Field(  # type: ignore[valid-type]
        None, description="a word, or what returns (model, batch) -> (loss, outputs, targets)"
    )
    metric: _worded(METRICS) | None = Field(  # type: ignore[valid-type]
        None, description="a word, or what has name, higher_is_better; (outputs, targets) -> scores"
    )
    teacher: Teacher | None = Field(None, description="what stages with distil learn from; default: the dense model")
    train: Training | None = Field(
        Training(), description="how the dense model is trained; null with model.weights: a budget's steps train not"
    )
    hold: Hold = Hold()
    stages: list[Stage] = Field([])
    budget: Budget | None = Field(
        None, description="in place of stages: what may be lost, or how large the file may be"
    )
    aims: Aims | None = Field(None, description="what the file must come to; a run that misses one says so")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    devices: int = Field(
        1, ge=1, description="GPUs, or processes on the CPU, that train together; each takes a part of every batch"
    )
    strategy: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="how they do: each has the whole model (ddp), or a part of its weights, gradients and optimizer "
        "state, the whole one while it computes (fsdp)",
    )
    compile: bool = Field(False, description="training's forward passes go through torch.compile")
    num_workers: int = Field(0, ge=0, description="processes that read data sets which give single samples")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of training; of evaluation: evaluate")
    channels_last: bool = Field(False, description="memory format of images, in training and evaluation")
    evaluate: Evaluate = Evaluate()
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores")
    test: bool = Field(True, description="read the test split, once, at the end; a sweep's trials do not")
    store: str = Field("artifacts/store", description="stage results: a folder, or a URL such as s3://bucket/store")
    runs: str = Field("artifacts/runs", description="what runs leave: a folder, or a URL to copy it to")
    tracking: Tracking = Tracking()
    export: Exports = Field(
        [], description="files for other runtimes, for instance [onnx]; each is run there and compared"
    )
    promote: Promote | None = None

    @field_validator("stages")
    @classmethod
    def _order(cls, stages: list[Any]) -> list[Any]:
        """What makes the file comes last, once; rounding is not undone by later training."""
        if stages and not stages[-1].last:
            stages = [*stages, settings_of("encode").model_validate({"stage": "encode"})]
        rounded, found = None, False
        for number, stage in enumerate(stages):
            follows = stages[number + 1].stage if number + 1 < len(stages) else None
            if stage.last and follows:
                raise ValueError(
                    f"stage {number} ({stage.stage}) is followed by {follows}: {stage.stage} must be the last"
                )
            if rounded and stage.trains:
                raise ValueError(f"stage {number} ({stage.stage}) trains after {rounded}, which undoes its rounding")
            if (rounds := stage.alternates()) and follows != rounds[1]:
                raise ValueError(
                    f"stage {number} ({stage.stage}) has rounds: {rounds[0]}: a {rounds[1]} must follow it"
                )
            if asks(stage) and not found:
                raise ValueError(
                    f"stage {number} ({stage.stage}) has bits: allocated: a stage allocate must come before it"
                )
            rounded, found = stage.stage if stage.rounds_values else rounded, found or stage.finds_bits
        return stages

    @field_validator("export")
    @classmethod
    def _each_target_once(cls, exports: Exports) -> Exports:
        if len({one.to for one in exports}) < len(exports):
            raise ValueError(f"expected each target once, got {', '.join(one.to for one in exports)}")
        return exports

    @model_validator(mode="before")
    @classmethod
    def _default_seed(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and value.get("seed") is None and value.get("seeds") is None:
            return {**value, "seed": 0}
        return value

    @model_validator(mode="after")
    def _stages_or_budget(self) -> Recipe:
        if bool(self.stages) == bool(self.budget):
            raise ValueError("expected either stages, with at least one, or budget")
        return self

    @model_validator(mode="after")
    def _taught_by_itself(self) -> Recipe:
        if self.train and self.train.distil and not self.teacher:
            raise ValueError("train.distil needs a teacher: the dense model cannot learn from itself")
        if self.train is None and self.model.weights is None:
            raise ValueError(
                "train: null goes with model.weights: without a checkpoint the dense model is trained here"
            )
        return self

    @model_validator(mode="after")
    def _seed_or_seeds(self) -> Recipe:
        if self.seed is not None and self.seeds is not None:
            raise ValueError("seed and seeds are both given: keep one")
        if self.seeds and len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} repeat: each is one run")
        return self
