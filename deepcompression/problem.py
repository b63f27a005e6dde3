"""What is learnt from what: data, step, metric, where it is computed; and how well a model does it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from deepcompression import factory
from deepcompression.errors import DataError, FactoryError

Step = Callable[[nn.Module, Any], tuple[Tensor, Any, Any]]


@dataclass(frozen=True)
class Compute:
    """Where and how training computes.

    ``device``: auto (CUDA, else MPS, else CPU), or torch's name. ``precision``: of training's forward passes;
    bfloat16 is autocast, weights stay float32. ``channels_last``: memory format of images and convolutions.
    """

    device: str = "auto"
    precision: str = "float32"
    channels_last: bool = False

    def resolved(self) -> torch.device:
        """The device itself."""
        if self.device != "auto":
            return torch.device(self.device)
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

    def autocast(self) -> Any:
        """The context in which training's forward passes run."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(self.resolved().type, dtype=torch.bfloat16)

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the memory format."""
        model = model.to(self.resolved())
        return model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload]


class Accuracy:
    """Top-1 accuracy: one bool a sample, from logits (n, classes) and targets (n,)."""

    name = "accuracy"
    higher_is_better = True

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Scores (n,), bool."""
        return outputs.argmax(1) == targets


def cross_entropy_step(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The default step: cross-entropy of a classifier's logits; the batch is (samples, targets)."""
    samples, targets = batch
    logits = model(samples)
    return nn.functional.cross_entropy(logits, targets), logits, targets


def step_of(spec: Mapping[str, Any] | None) -> Step:
    """The step that ``{factory, kwargs}`` names, itself or what it returns; cross-entropy without one.

    Raises:
        FactoryError: it does not import, or is no function of (model, batch).
    """
    return factory.function(spec["factory"], spec["kwargs"]) if spec else cross_entropy_step


def metric_of(spec: Mapping[str, Any] | None) -> Any:
    """The metric that ``{factory, kwargs}`` names, itself or what it returns; accuracy without one.

    Raises:
        FactoryError: it does not import, or has no ``name`` or ``higher_is_better``.
    """
    if not spec:
        return Accuracy()
    named = factory.load(spec["factory"])
    itself = not isinstance(named, type) and hasattr(named, "name") and hasattr(named, "higher_is_better")
    metric = named if itself else factory.build(spec["factory"], spec["kwargs"])
    for attribute in ("name", "higher_is_better"):
        if not hasattr(metric, attribute):
            raise FactoryError(
                f"metric {spec['factory']}: has no {attribute!r}; expected an object with name (text) and "
                "higher_is_better (bool) that is called with (outputs, targets)"
            )
    return metric


@dataclass(frozen=True)
class Problem:
    """What is learnt from what: splits, the step (model, batch) -> (loss, outputs, targets), the metric.

    ``train_step`` is for training alone, where its loss is another than the one that is validated.
    """

    train: Any
    validation: Any
    step: Step = cross_entropy_step
    metric: Any = field(default_factory=Accuracy)
    augment: Callable[[Any, torch.Generator], Any] | None = None
    batch_size: int = 128
    train_step: Step | None = None


@dataclass(frozen=True)
class Evaluation:
    """A model's result on one split; ``correct`` and ``scores`` exist where scores are per sample."""

    metric: float
    loss: float
    total: int
    correct: int | None
    scores: Tensor | None


def evaluate(
    model: nn.Module,
    split: Any,
    step: Step,
    metric: Any,
    compute: Compute | None = None,
    batch_size: int = 1000,
) -> Evaluation:
    """Loss and metric of ``model`` on ``split``, in eval mode and float32.

    The metric is called with (outputs, targets) of each batch: per-sample scores (n,) are averaged over the
    split, one number a batch is averaged by batch size; a metric object with update, compute and reset sees
    all batches.

    Raises:
        FactoryError: step or metric return the wrong thing.
        DataError: the split is empty.
    """
    compute = compute or Compute()
    compute.place(model)
    mode = model.training
    model.eval()
    losses, scores, counts = [], [], []
    whole = all(hasattr(metric, name) for name in ("update", "compute", "reset"))
    if whole:
        metric.reset()
    with torch.no_grad():
        for batch in Batches(split, batch_size, compute):
            loss, outputs, targets = stepped(step, model, batch)
            counts.append(_count(batch))
            losses.append(float(loss) * counts[-1])
            scores.append(metric.update(outputs, targets) if whole else _scores(metric, outputs, targets, counts[-1]))
    model.train(mode)
    total = sum(counts)
    if not total:
        raise DataError("data: a split has no samples")
    if whole:
        return Evaluation(float(metric.compute()), sum(losses) / total, total, None, None)
    if all(score.ndim == 1 for score in scores):
        each = torch.cat(scores).cpu()
        binary = each.dtype == torch.bool
        return Evaluation(
            float(each.double().mean()), sum(losses) / total, total, int(each.sum()) if binary else None, each
        )
    mean = sum(float(score.double().mean()) * count for score, count in zip(scores, counts, strict=True)) / total
    return Evaluation(mean, sum(losses) / total, total, None, None)


class Batches:
    """The batches of one split on the device. Tensors move there once, cut without per-sample Python."""

    def __init__(
        self,
        split: Any,
        batch_size: int,
        compute: Compute,
        generator: torch.Generator | None = None,
        augment: Callable[[Any, torch.Generator], Any] | None = None,
    ) -> None:
        self.device = compute.resolved()
        self.format = torch.channels_last if compute.channels_last else torch.contiguous_format
        self.batch_size, self.generator, self.augment = batch_size, generator, augment
        self.loader: Any = None
        self.tensors: tuple[Tensor, ...] = ()
        if isinstance(split, tuple | list) and all(isinstance(part, Tensor) for part in split):
            self.tensors = tuple(part.to(self.device) for part in split)
            if len({len(part) for part in self.tensors}) != 1:
                raise DataError(f"data: the tensors of a split have lengths {[len(part) for part in self.tensors]}")
        elif isinstance(split, DataLoader):
            self.loader = split
        elif hasattr(split, "__getitem__") and hasattr(split, "__len__"):
            self.loader = DataLoader(split, batch_size, shuffle=generator is not None, generator=generator)
        else:
            raise DataError(
                f"data: expected a pair of tensors, a map-style dataset or a DataLoader, got {type(split).__name__}"
            )

    def __len__(self) -> int:
        """Batches in one pass."""
        return len(self.loader) if self.loader is not None else math.ceil(len(self.tensors[0]) / self.batch_size)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader if self.loader is not None else self._slices():
            batch = _moved(batch, self.device, self.format)
            if self.augment is not None and self.generator is not None:
                batch = self.augment(batch, self.generator)
            yield batch

    def _slices(self) -> Iterator[tuple[Tensor, ...]]:
        count = len(self.tensors[0])
        order = None if self.generator is None else torch.randperm(count, generator=self.generator).to(self.device)
        for start in range(0, count, self.batch_size):
            if order is None:
                yield tuple(part[start : start + self.batch_size] for part in self.tensors)
            else:
                yield tuple(part.index_select(0, order[start : start + self.batch_size]) for part in self.tensors)


def stepped(step: Step, model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
    """What ``step`` returns, if it is (loss, outputs, targets); else FactoryError."""
    answer = step(model, batch)
    if not (isinstance(answer, tuple) and len(answer) == 3 and isinstance(answer[0], Tensor)):
        raise FactoryError(
            f"step: expected (loss, outputs, targets) with a tensor as loss, got {type(answer).__name__}"
        )
    return answer


def _scores(metric: Any, outputs: Any, targets: Any, count: int) -> Tensor:
    scores = torch.as_tensor(metric(outputs, targets)).detach()
    if scores.ndim > 1 or (scores.ndim == 1 and len(scores) != count):
        raise FactoryError(
            f"metric {metric.name}: expected one score a sample ({count}) or one number, "
            f"got shape {tuple(scores.shape)}"
        )
    return scores


def _count(batch: Any) -> int:
    """Samples in a batch: the length of its first tensor."""
    if isinstance(batch, Mapping):
        return _count(next(iter(batch.values())))
    return len(batch) if isinstance(batch, Tensor) else _count(batch[0])


def _moved(batch: Any, device: torch.device, memory_format: torch.memory_format) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device, memory_format=memory_format) if batch.ndim == 4 else batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _moved(value, device, memory_format) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_moved(part, device, memory_format) for part in batch)
    return batch
