"""What all stages of one run share, and the references that they hand to each other: plain values, nothing loaded."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, cast

from tasks.execution.settings import Data, Evaluate, Factory, Hold, Model, Teacher, plain
from tasks.storage.store import Store
from tasks.tracking.runs import Tracker

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepcompression.data.splits import Splits
    from deepcompression.training.device import Compute
    from deepcompression.training.identity import Identity
    from deepcompression.training.problem import Problem


@dataclass(frozen=True)
class Reference:
    """A stage's result in the store: where the state_dict lies, what is true of its tensors, and the edits that turn
    the recipe's model into the one that they belong to.
    """

    key: str
    object: str
    structure: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    edits: tuple[Mapping[str, Any], ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)

    @property
    def zeros(self) -> list[str]:
        """Names of the tensors whose zeros stay."""
        return self._having("zeros")

    @property
    def shared(self) -> list[str]:
        """Names of the tensors whose sharing stays."""
        return self._having("shared")

    def _having(self, word: str) -> list[str]:
        return [name for name, words in self.structure.items() if any(one.partition("(")[0] == word for one in words)]


@dataclass(frozen=True)
class Run:
    """One run of one recipe with one seed. Everything in it is plain, so it reaches a worker anywhere."""

    name: str
    seed: int
    folder: str
    store_folder: str
    model: Model
    data: Data
    step: Factory | None
    metric: Factory | None
    hold: Hold
    device: str
    precision: str
    channels_last: bool
    threads: int | None
    python_path: tuple[str, ...]
    tracker: Tracker
    teacher: Teacher | None = None  # what stages with distil learn from
    taught_by: Reference | None = None
    evaluate: Evaluate = field(default_factory=Evaluate)
    devices: int = 1
    strategy: Literal["ddp", "fsdp"] = "ddp"
    compiled: bool = False
    num_workers: int = 0

    @property
    def store(self) -> Store:
        """The store that this run reads and writes."""
        return Store(self.store_folder)

    def stage_seed(self, label: str) -> int:
        """A seed of its own for each stage, so that one stage's draws do not depend on another's."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{label}".encode()).digest()[:4]) >> 1

    def ready(self) -> None:
        """Makes the user's packages importable and sets this process's threads."""
        import torch

        for folder in reversed(self.python_path):
            if folder not in sys.path:
                sys.path.insert(0, folder)
        if self.threads:
            torch.set_num_threads(self.threads)

    def compute(self) -> Compute:
        """Device, precision and memory format of training and evaluation."""
        from deepcompression.training.device import Compute

        how = self.evaluate
        return Compute(
            self.device,
            self.precision,
            self.channels_last,
            how.batch_size,
            how.precision,
            self.num_workers,
            self.compiled,
        )

    def blank_model(self, draw: int = 0) -> nn.Module:
        """A new model from the recipe's factory, its initial weights drawn from this run's seed.

        Args:
            draw: another number draws other weights.

        Raises:
            FactoryError: the factory does not import, fails, or returns something else than a module.
        """
        import torch

        from deepcompression import factory
        from deepcompression.errors import FactoryError
        from deepcompression.training.randomness import seed_everything

        seed_everything(self.stage_seed("model") + draw)
        model = factory.build(self.model.factory, self.model.arguments())
        if not isinstance(model, torch.nn.Module):
            raise FactoryError(
                f"model.factory {self.model.factory}: expected a torch.nn.Module, got {type(model).__name__}"
            )
        return model

    def model_identity(self) -> str:
        """A digest of what the model's factory makes: arguments and code alone need not decide it. Once a process."""
        return _identified(_text(self.model))

    def edited_model(self, edits: Sequence[Mapping[str, Any]]) -> nn.Module:
        """A new model from the recipe's factory with edits made."""
        model = self.blank_model()
        if edits:
            from deepcompression.network.edits.apply import apply_all

            apply_all(model, edits)
        return model

    def model_with(self, reference: Reference) -> nn.Module:
        """The model with a stage's weights."""
        model = self.edited_model(reference.edits)
        model.load_state_dict(self.state(reference))
        return model

    def state(self, reference: Reference) -> dict[str, Tensor]:
        """The state_dict of a stage's result."""
        from safetensors.torch import load_file

        return load_file(self.store.object_path(reference.object))

    def splits(self) -> Splits:
        """Train, validation and test data; loaded once a process."""
        return _made(_text(self.data))[0]

    def rewind(self) -> None:
        """Brings generators in the data, and what data sets count, back to where they were when the data was made.

        Whatever else this process has read, a stage then draws what it would draw as the first.
        """
        _made(_text(self.data))[1]()

    def data_identity(self) -> Identity:
        """What identifies the data; found once a run and process, of what cannot be identified anew for each run."""
        return _identity(_text(self.data), self.folder)

    def problem(self, batch_size: int | None = None, drop_last: bool = False) -> Problem:
        """What is learnt from what, by which loss, judged by which metric."""
        from deepcompression import factory
        from deepcompression.training.problem import BATCH_SIZE, Problem, step_of

        splits, augment = self.splits(), self.data.augment
        return Problem(
            train=splits.train,
            validation=splits.validation,
            step=step_of(plain(self.step)),
            metric=self.metric_object(),
            augment=factory.function(augment.factory, augment.arguments()) if augment else None,
            batch_size=batch_size or BATCH_SIZE,
            drop_last=drop_last,
        )

    def teacher_model(self) -> nn.Module:
        """What stages with distil learn from."""
        assert self.taught_by is not None
        return replace(self, model=self.teacher or self.model).model_with(self.taught_by)

    def metric_object(self) -> Any:
        """What has ``name``, ``higher_is_better``, and scores outputs against targets."""
        from deepcompression.training.problem import metric_of

        return metric_of(plain(self.metric))


def _text(part: Model | Data) -> str:
    return json.dumps(plain(part), sort_keys=True)


def _splits(data: str) -> Splits:
    from deepcompression import factory
    from deepcompression.data.splits import as_splits, split_validation
    from deepcompression.errors import DataError

    config = json.loads(data)
    made = as_splits(factory.build(config["factory"], config["kwargs"]), config["factory"])
    if made.validation is None:
        return split_validation(made, config["validation"] or 0.1)
    if config["validation"] is not None:
        raise DataError(
            f"data.validation: {config['validation']} is given, but {config['factory']} returns a validation split of "
            "its own; remove the key"
        )
    return made


@lru_cache(maxsize=4)
def _identified(model: str) -> str:
    """Of two models of one draw all that they hold, where it is the same; else names and shapes alone."""
    from deepcompression import factory
    from deepcompression.training.digest import content
    from deepcompression.training.randomness import kept, seed_everything

    def made() -> nn.Module:
        seed_everything(0)
        config = json.loads(model)
        return cast("nn.Module", factory.build(config["factory"], config["kwargs"]))

    with kept([]):
        found = {content(made()) for _ in range(2)}
        if len(found) == 1 and (one := found.pop()):
            return one
        return str(content([(name, value.shape, value.dtype) for name, value in made().state_dict().items()]))


@lru_cache(maxsize=2)
def _made(data: str) -> tuple[Splits, Callable[[], None]]:
    """Splits, and the way back to how they were made."""
    from deepcompression.training.randomness import way_back

    made = _splits(data)
    return made, way_back(made.train, made.validation, made.test)


@lru_cache(maxsize=2)
def _identity(data: str, folder: str) -> Identity:
    from deepcompression.training.identity import identify

    splits, rewind = _made(data)
    rewind()
    return identify(splits)
