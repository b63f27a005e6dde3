"""What a recipe may say: one frozen pydantic type per part, every default visible in the resolved recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from deepcompression.pruning.criteria import CRITERIA

Density = Annotated[float, Field(gt=0, le=1)]
Quality = Annotated[float, Field(gt=0)]
Bits = Annotated[int, Field(ge=1, le=16)]
Rate = Annotated[float, Field(ge=0)]


def _as_name(value: Any) -> Any:
    """Layers of nn.Sequential are called by numbers, which YAML reads as such."""
    if isinstance(value, bool | float) or value is None:
        shown = "null" if value is None else str(value).lower()
        raise ValueError(f"expected a tensor's or module's name, got what YAML reads as {shown}; put it in quotes")
    return str(value) if isinstance(value, int) else value


def _by_name(value: Any) -> Any:
    return {_as_name(key): one for key, one in value.items()} if isinstance(value, Mapping) else value


TensorName = Annotated[str, BeforeValidator(_as_name)]
ByName = BeforeValidator(_by_name)  # of what may be a table by tensor name
Criterion = Literal[tuple(CRITERIA)]
Precision = Literal["float32", "float16", "bfloat16"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]  # a folder's name, never a path
Spec = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$", description="package.module:callable")]


class Strict(BaseModel):
    """Base of every part: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Factory(Strict):
    """A callable of anybody's, and the keyword arguments that it gets."""

    factory: Spec
    kwargs: dict[str, Any] = {}


class Weights(Strict):
    """An existing checkpoint: .safetensors, .pt (weights only, no code is run) or .dcz."""

    path: str
    key: str | None = Field(None, description="where in the file the weights lie, for instance state_dict")
    strip: list[str] = Field([], description="prefixes to remove from tensor names, for instance module.")


class Model(Factory):
    """The dense model: a factory of an untrained network, and where its weights come from."""

    weights: Weights | None = Field(None, description="a checkpoint; without one the model is trained here")


class Data(Factory):
    """Three splits; where the factory returns no validation split, it is taken from the training data."""

    validation: int | float | None = Field(None, description="samples (a count) or a fraction; default a tenth")
    augment: Factory | None = Field(None, description="changes each training batch, for instance data:shift")

    @field_validator("validation")
    @classmethod
    def _positive(cls, value: float | None) -> float | None:
        if value is not None and not (0 < value < 1 if isinstance(value, float) else value >= 1):
            raise ValueError("expected a count of samples (1 or more) or a fraction between 0 and 1")
        return value


class Distil(Strict):
    """Distillation (Hinton 2015): the loss is part that of the labels, part that of a teacher's opinion of each sample.

    The teacher is the recipe's ``teacher`` where there is one, else the run's own dense model.
    """

    temperature: float = Field(4.0, gt=0, description="softens both opinions; 1 to 10 are usual")
    weight: float = Field(0.5, ge=0, le=1, description="the teacher's part of the loss")


class Training(Strict):
    """One training loop: how long, with which optimizer, at what rate."""

    epochs: int = Field(20, ge=1)
    batch_size: int | None = Field(None, ge=1, description="default 128; DataLoaders of yours have their own")
    drop_last: bool = Field(False, description="leave out a last batch that is smaller; of DataLoaders: set it there")
    lr: float = Field(1e-3, gt=0)
    optimizer: Factory = Factory(factory="torch.optim:AdamW")
    schedule: Literal["constant", "cosine", "linear"] | Factory = "cosine"
    warmup: float = Field(0, ge=0, description="epochs of rising learning rate at the start")
    patience: int | None = Field(None, ge=1, description="stop after so many epochs without a better validation")
    gradient_clip: float | None = Field(None, gt=0, description="largest norm of the whole gradient")
    distil: Distil | None = Field(None, description="learn from a teacher too")

    @model_validator(mode="after")
    def _one_rate(self) -> Training:
        if "lr" in self.optimizer.kwargs:
            raise ValueError("the learning rate stands twice: remove optimizer.kwargs.lr, keep lr")
        return self


class Hold(Strict):
    """Which structure of a foreign checkpoint training must keep, by tensor name or pattern."""

    zeros: list[TensorName] | None = Field(None, description="default: partly zero prunable weights")
    shared: list[TensorName] = []


class Gradual(Training):
    """Gradual pruning: the density falls along a cubic curve while the model trains (Zhu & Gupta 2017)."""

    ramp: float = Field(0.7, gt=0, le=1, description="fraction of the epochs in which the density falls")
    start: Density = Field(1.0, description="density at the first step")


class Prune(Strict):
    """Magnitude pruning (Han et al. 2015, section 3): small weights become +0.0."""

    stage: Literal["prune"]
    density: Annotated[Density | dict[str, Density] | None, ByName] = Field(
        None, description="fraction of weights that stays"
    )
    quality: Annotated[Quality | dict[str, Quality] | None, ByName] = Field(
        None, description="the paper's: threshold = quality x standard deviation of the layer's weights"
    )
    scope: Literal["layer", "global"] = "layer"
    rounds: int = Field(1, ge=1, description="prune and the finetune that follows, alternating so many times")
    gradual: Gradual | None = None
    criterion: Criterion = Field(
        "magnitude", description="what makes a weight important; wanda: its magnitude times the size of its input"
    )
    score: Factory | None = Field(None, description="a criterion of yours: returns (name, weight) -> importance")
    dropout: Annotated[dict[str, TensorName], ByName] = Field(
        {}, description="gradual only: dropout module -> the layer it feeds"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Prune:
        if (self.density is None) == (self.quality is None):
            raise ValueError("expected exactly one of density and quality")
        if self.scope == "global" and not isinstance(self.density, float):
            raise ValueError("scope: global takes one density for all selected layers, such as density: 0.1")
        if self.gradual and (self.rounds > 1 or self.quality is not None):
            raise ValueError("gradual goes with density and rounds: 1")
        if self.criterion != "magnitude" and (self.score or self.quality is not None):
            raise ValueError(f"criterion: {self.criterion} goes with density, and without a score of yours")
        if self.dropout and not self.gradual:
            raise ValueError("dropout belongs to the finetune stage, or to gradual pruning")
        return self


class Finetune(Training):
    """Retraining of what is left, zeros and sharing held."""

    stage: Literal["finetune"]
    epochs: int = Field(10, ge=1)
    lr: float = Field(1e-4, gt=0)
    dropout: Annotated[dict[str, TensorName], ByName] = Field(
        {}, description="dropout module -> the layer whose sparsity corrects its rate"
    )


class Reassign(Training):
    """Training while weights share: codes are drawn anew as weights move (straight-through), and come to rest."""

    epochs: int = Field(10, ge=1)
    lr: float = Field(5e-4, gt=0)


class Share(Strict):
    """Weight sharing: 1-D k-means over each layer's non-zero weights (section 3)."""

    stage: Literal["share"]
    bits: Annotated[Bits | dict[str, Bits], ByName] = 5
    init: Literal["linear", "density", "random", "optimal"] = "linear"
    rate: Annotated[Rate | dict[str, Rate], ByName] = Field(
        0.0,
        description="what a coded bit is worth, as a fraction of the weights' mean square: 0 is plain k-means; 0.01 to "
        "0.1 make the file smaller, and prune further, at some error",
    )
    train: Reassign | None = Field(None, description="train meanwhile; else weights are shared as they are")


class CentroidTraining(Training):
    """Trained quantization: centroids follow the summed gradient of their weights (section 3.3)."""

    epochs: int = Field(5, ge=1)
    lr: float = Field(1e-4, gt=0)


class Quantize(Strict):
    """Trained quantization, then the precision of codebooks and of all that is not shared."""

    stage: Literal["quantize"]
    train: CentroidTraining | None = None
    codebook: Precision | Literal["auto"] = Field(
        "float32", description="of shared values; auto is float16, or bfloat16 where float16 has not the range"
    )
    rest: Precision | Literal["int8", "auto"] = Field(
        "float32",
        description="of what is not shared, such as biases; int8 is integers and a scale; auto tries int8, bfloat16 "
        "and float16 on each tensor and takes the smallest that the validation loss does not feel",
    )


class Recalibrate(Strict):
    """BatchNorm statistics estimated anew, where no training follows a change of weights."""

    stage: Literal["recalibrate"]
    batches: int | None = Field(None, ge=1, description="default: one pass over the training split")
    batch_size: int | None = Field(None, ge=1, description="default 128; DataLoaders of yours have their own")
    drop_last: bool = Field(False, description="leave out a last batch that is smaller")


Units = Annotated[int, Field(ge=1)] | Density


class Slim(Strict):
    """Clean-up that keeps what the model computes: dead units (channels, rows) are removed throughout, others change
    places so that the file is smaller. It does not train and may stand anywhere, also after quantize.
    """

    stage: Literal["slim"]
    units: Annotated[Units | dict[str, Units] | None, ByName] = Field(
        None,
        description="how many units of a layer stay (a count, or a fraction), those of the largest norms; accuracy "
        "suffers: let a finetune or gradual pruning follow",
    )
    reorder: bool = Field(True, description="put units in the order that codes smallest")


class Encode(Strict):
    """The file: positions, codes and codebooks, losslessly coded."""

    stage: Literal["encode"]
    coder: Literal["huffman", "adaptive", "auto", "packed"] = Field(
        "huffman",
        description="huffman decodes fastest; adaptive is smallest; auto is adaptive where that decodes soon enough",
    )


class Custom(Strict):
    """A stage of the user's own; every further key is a keyword argument of the callable."""

    model_config = ConfigDict(extra="allow", frozen=True)
    stage: Spec


BUILT_IN = ("prune", "finetune", "share", "quantize", "recalibrate", "slim", "encode")


def _stage_kind(value: Any) -> str | None:
    stage = value.get("stage") if isinstance(value, Mapping) else getattr(value, "stage", None)
    if isinstance(stage, str):
        return "custom" if ":" in stage else stage
    return None


Stage = Annotated[
    Annotated[Prune, Tag("prune")]
    | Annotated[Finetune, Tag("finetune")]
    | Annotated[Share, Tag("share")]
    | Annotated[Quantize, Tag("quantize")]
    | Annotated[Recalibrate, Tag("recalibrate")]
    | Annotated[Slim, Tag("slim")]
    | Annotated[Encode, Tag("encode")]
    | Annotated[Custom, Tag("custom")],
    Discriminator(
        _stage_kind,
        custom_error_type="stage",
        custom_error_message=f"expected stage: one of {', '.join(BUILT_IN)}, or package.module:callable",
    ),
]


class Teacher(Model):
    """Another, larger model to learn from: a checkpoint, or trained here before the dense one."""

    train: Training = Training()

    @model_validator(mode="after")
    def _untaught(self) -> Teacher:
        if self.train.distil:
            raise ValueError("the teacher itself learns from labels: remove teacher.train.distil")
        return self


class Budget(Strict):
    """What may be lost, or how large the file may be: density and bits of every layer are found by the run itself.

    It stands in place of ``stages``. Exactly one of metric_loss, file_bytes and ratio is given.
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
    coder: Literal["huffman", "adaptive", "auto", "packed"] = "adaptive"

    @model_validator(mode="after")
    def _one_limit(self) -> Budget:
        given = [name for name in ("metric_loss", "file_bytes", "ratio") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of metric_loss, file_bytes and ratio, got {given or 'none'}")
        if self.margin is not None and (self.metric_loss is None or self.margin >= self.metric_loss):
            raise ValueError("margin goes with metric_loss, and is less than it")
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


class Recipe(Strict):
    """One YAML = one run (or one run a seed)."""

    recipe_version: Literal[1] = 1
    name: Name
    seed: int | None = Field(None, ge=0)
    seeds: list[Annotated[int, Field(ge=0)]] | None = Field(None, min_length=1)
    python_path: list[str] = Field([], description="folders of packages that are not installed")
    model: Model
    data: Data
    step: Factory | None = Field(None, description="returns (model, batch) -> (loss, outputs, targets)")
    metric: Factory | None = Field(None, description="has name, higher_is_better; (outputs, targets) -> scores")
    teacher: Teacher | None = Field(None, description="what stages with distil learn from; default: the dense model")
    train: Training = Training()
    hold: Hold = Hold()
    stages: list[Stage] = []
    budget: Budget | None = Field(
        None, description="in place of stages: what may be lost, or how large the file may be"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of training; evaluation is float32")
    channels_last: bool = False
    threads: int | None = Field(None, ge=1, description="CPU threads; default: all cores")
    test: bool = Field(True, description="read the test split, once, at the end; a sweep's trials do not")
    store: str = Field("artifacts/store", description="stage results: a folder, or a URL such as s3://bucket/store")
    runs: str = Field("artifacts/runs", description="what runs leave: a folder, or a URL to copy it to")
    tracking: Tracking = Tracking()
    promote: Promote | None = None

    @field_validator("stages")
    @classmethod
    def _order(cls, stages: list[Any]) -> list[Any]:
        """The file comes last, once; rounding is not undone by later training."""
        if stages and stages[-1].stage != "encode":
            stages = [*stages, Encode(stage="encode")]
        quantized = False
        for number, stage in enumerate(stages):
            follows = stages[number + 1].stage if number + 1 < len(stages) else None
            if stage.stage == "encode" and follows:
                raise ValueError(f"stage {number} (encode) is followed by {follows}: encode must be the last")
            if quantized and _trains(stage):
                raise ValueError(f"stage {number} ({stage.stage}) trains after quantize, which undoes its rounding")
            if getattr(stage, "rounds", 1) > 1 and follows != "finetune":
                raise ValueError(f"stage {number} (prune) has rounds: {stage.rounds}: a finetune must follow it")
            quantized |= stage.stage == "quantize"
        return stages

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
        if self.train.distil and not self.teacher:
            raise ValueError("train.distil needs a teacher: the dense model cannot learn from itself")
        return self

    @model_validator(mode="after")
    def _seed_or_seeds(self) -> Recipe:
        if self.seed is not None and self.seeds is not None:
            raise ValueError("seed and seeds are both given: keep one")
        if self.seeds and len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} repeat: each is one run")
        return self


def _trains(stage: Any) -> bool:
    return (
        stage.stage == "finetune"
        or getattr(stage, "gradual", None) is not None
        or (stage.stage in ("share", "quantize") and stage.train is not None)
    )
