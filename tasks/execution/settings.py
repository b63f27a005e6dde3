"""What several parts of a recipe share: names, factories, model and data, trainings; and the base of stages."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from tasks.execution.patterns import DROPOUTS, NAMED

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.structure.constraints import Structure
    from deepcompression.training.method import Method
    from tasks.execution.run import Run

Density = Annotated[float, Field(gt=0, le=1)]
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
Dropouts = Annotated[dict[str, TensorName], ByName, DROPOUTS]
Precision = Literal["float32", "float16", "bfloat16"]
Allocated = Literal["allocated"]  # bits that an earlier stage finds
Coder = Literal["huffman", "adaptive", "auto", "packed"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]  # a folder's name, never a path
CALLABLE = r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"
Spec = Annotated[str, Field(pattern=CALLABLE, description="package.module:callable")]

Place = tuple[Any, ...]  # keys and indices that lead to a value


class Strict(BaseModel):
    """Base of every part: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def parts(value: Any, place: Place = ()) -> Iterator[tuple[Place, BaseModel]]:
    """Every typed part of a recipe and its place, from the outside in."""
    if isinstance(value, BaseModel):
        yield place, value
        for key, one in value:
            yield from parts(one, (*place, key))
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from parts(one, (*place, key))
    elif isinstance(value, list | tuple):
        for index, one in enumerate(value):
            yield from parts(one, (*place, index))


def tables(kind: type[BaseModel]) -> set[str]:
    """The keys of a part, and of all parts in it, that may be tables by tensor name."""
    found, waiting, seen = set[str](), [kind], set[type]()
    while waiting:
        one = waiting.pop()
        if one not in seen:
            seen.add(one)
            found |= {key for key, field in one.model_fields.items() if ByName in field.metadata}
            waiting += [inner for field in one.model_fields.values() for inner in _parts_in(field.annotation)]
    return found


def _parts_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for one in get_args(annotation):
        yield from _parts_in(one)


def plain(part: BaseModel | None) -> Any:
    """A part as JSON has it: for keys of the store, other processes, and the library."""
    return None if part is None else part.model_dump(mode="json")


def table_of(value: Any) -> Mapping[str, Any]:
    """One value for all layers as the table of values by name pattern."""
    return value if isinstance(value, Mapping) else {"default": value}


class Factory(Strict):
    """A callable of anybody's, and the keyword arguments that it gets."""

    factory: Spec
    kwargs: dict[str, Any] = {}

    def arguments(self) -> dict[str, Any]:
        """``kwargs``, a copy for who may change it."""
        arguments: dict[str, Any] = plain(self)["kwargs"]
        return arguments


class Weights(Strict):
    """An existing checkpoint: .safetensors, a file of torch.save (weights only, no code is run), .dcz, or the index or
    folder of a checkpoint in several files. What is in a file tells its kind, whatever its name."""

    path: str = Field(
        description="a file or folder; hub:default is what torchvision, timm or Hugging Face publish for the factory"
    )
    key: str | None = Field(None, description="where in the file the weights lie, for instance state_dict or model_ema")
    strip: list[str] = Field([], description="prefixes to remove from tensor names, for instance module.")
    ignore: list[TensorName] = Field(
        [], description="patterns of names, or of their last parts, to leave out: position_ids, criterion.*"
    )


class Model(Factory):
    """The dense model: a factory of an untrained network, or a hub's name for one (``torchvision:mobilenet_v2``,
    ``timm:resnet18``, ``transformers:AutoModel``), and where its weights come from."""

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


class MethodSettings(Strict):
    """Base of the keys of every method of a training."""

    learns: ClassVar[bool] = False  # from a teacher

    # In editors a method is titled by its file.
    model_config = ConfigDict(model_title_generator=lambda kind: f"method {kind.__module__.rpartition('.')[2]}")

    def make(self) -> Method:
        """The library's method with these keys."""
        raise NotImplementedError

    def edits(self) -> Mapping[str, str]:
        """Kinds of edits that it makes of the model, each with the key that asks for it."""
        return {}

    def fits(self, run: Run, model: nn.Module) -> None:
        """Raises StructureError, before anything trains, where it does not fit the model."""

    def sites(self, model: nn.Module) -> Collection[str]:
        """What goes into layers of the model, as ``layer:input[0]``, that it puts on grids."""
        return ()

    def follows(self, model: nn.Module, structure: Structure) -> None:
        """Raises StructureError, before anything trains, where it does not go with what earlier stages make true."""

    def leaves(self, model: nn.Module) -> Structure:
        """What it will make true of tensors of the model, as far as that can be told before."""
        return {}


class Distil(MethodSettings):
    """Distillation (Hinton 2015): the loss is part that of the labels, part that of a teacher's opinion of each sample.

    The teacher is the recipe's ``teacher`` where there is one, else the run's own dense model.
    """

    learns: ClassVar[bool] = True

    temperature: float = Field(4.0, gt=0, description="softens both opinions; 1 to 10 are usual")
    weight: float = Field(0.5, ge=0, le=1, description="the teacher's part of the loss")

    def make(self) -> Method:
        """The method."""
        from deepcompression.distillation.logits import Distillation

        return Distillation(self.temperature, self.weight)


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
    accumulate: int = Field(1, ge=1, description="batches whose gradients make one step, by their mean")
    distil: Distil | None = Field(None, description="learn from a teacher too")

    @model_validator(mode="after")
    def _one_rate(self) -> Training:
        if "lr" in self.optimizer.kwargs:
            raise ValueError("the learning rate stands twice: remove optimizer.kwargs.lr, keep lr")
        return self

    def optimizer_with_rate(self) -> dict[str, Any]:
        """``factory`` and ``kwargs`` of the optimizer, ``lr`` among these."""
        return {"factory": self.optimizer.factory, "kwargs": {"lr": self.lr, **self.optimizer.arguments()}}

    def plain_schedule(self) -> str | dict[str, Any]:
        """The schedule's name, or its ``factory`` and ``kwargs``."""
        return self.schedule if isinstance(self.schedule, str) else plain(self.schedule)


class Evaluate(Strict):
    """How a model is evaluated on a split."""

    batch_size: int | None = Field(
        None, ge=1, description="default: as many as memory serves well, at most 1000; DataLoaders have their own"
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of validation; the file itself is always judged in float32"
    )


class Hold(Strict):
    """Which structure of a foreign checkpoint training must keep, by tensor name or pattern."""

    zeros: Annotated[list[TensorName] | None, NAMED] = Field(None, description="default: partly zero prunable weights")
    shared: Annotated[list[TensorName], NAMED] = []


class Teacher(Model):
    """Another, larger model to learn from: a checkpoint, or trained here before the dense one."""

    train: Training = Training()

    @model_validator(mode="after")
    def _untaught(self) -> Teacher:
        if self.train.distil:
            raise ValueError("the teacher itself learns from labels: remove teacher.train.distil")
        return self


class Stage(Strict):
    """Base of every stage's ``Settings``: its keys, and what the rest of the house asks of them.

    Keys with names or patterns of the model's say so in their annotation (``tasks.execution.patterns``).
    """

    # In editors a stage is titled by its file.
    model_config = ConfigDict(model_title_generator=lambda kind: kind.__module__.rpartition(".")[2].title())

    last: ClassVar[bool] = False  # it makes the file: no stage follows, and a recipe without one gets one
    finds_bits: ClassVar[bool] = False  # later stages may say ``bits: allocated``

    @property
    def rounds_values(self) -> bool:
        """Whether later training would undo what it does."""
        return False

    @property
    def draws(self) -> bool:
        """Whether the result depends on the seed."""
        return True

    @property
    def trains(self) -> bool:
        """Whether weights learn in it."""
        return any(isinstance(part, Training) for _, part in parts(self))

    def alternates(self) -> tuple[int, str] | None:
        """Where the stage and the one that follows it run in turn: how many times, and what must follow."""
        return None

    def in_round(self, number: int) -> Stage:
        """Its keys when it runs for the ``number``-th time, from 0."""
        return self

    def fits(self, run: Run, model: nn.Module) -> None:
        """Raises StructureError, before anything trains, where several keys together do not fit the model."""

    def edits(self) -> Mapping[str, str]:
        """Kinds of edits that it may make of the model, each with what in the recipe asks for it: an export is refused
        by them before anything trains.
        """
        made = [part.edits() for _, part in parts(self) if isinstance(part, MethodSettings)]
        return {kind: key for one in made for kind, key in one.items()}

    def alter(self, run: Run, model: nn.Module) -> None:
        """Makes of a new model, in place, one with the names of tensors and modules that later stages find."""

    def ranges(self) -> Mapping[str, str]:
        """Ranges of the grids that it puts values on, other than static ones, each with the key that asks for it."""
        return {}

    def follows(self, model: nn.Module, structure: Structure) -> None:
        """Raises StructureError, before anything trains, where it does not go with what earlier stages make true."""
        for _, part in parts(self):
            if isinstance(part, MethodSettings):
                part.follows(model, structure)

    def allocates(self, model: nn.Module) -> Mapping[str, int] | None:
        """The most bits that it can find for each tensor, for later stages that say ``bits: allocated``; None: none."""
        return None

    def leaves(self, model: nn.Module) -> Structure:
        """What the stage will make true of tensors of the model, as far as that can be told before."""
        from deepcompression.structure.constraints import together

        return together(*(part.leaves(model) for _, part in parts(self) if isinstance(part, MethodSettings)))

    def sites(self, model: nn.Module) -> Collection[str]:
        """What goes into layers, as ``layer:input[0]``, that it puts on grids: once a recipe."""
        return {site for _, part in parts(self) if isinstance(part, MethodSettings) for site in part.sites(model)}

    def also(self) -> Mapping[str, Any] | None:
        """What decides the result and stands in no key, such as the contents of a file."""
        return None
