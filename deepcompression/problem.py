"""What is learnt from what: data, step, metric, where it is computed; and how well a model does it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, count, islice, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from deepcompression import factory
from deepcompression.batch import count_of, described, lengths, moved, parts
from deepcompression.errors import DataError, DeepCompressionError, FactoryError, in_one_line, told
from deepcompression.randomness import kept
from deepcompression.splits import Columns, Stream, as_split, columns_of

log = logging.getLogger(__name__)
Step = Callable[[nn.Module, Any], tuple[Tensor, Any, Any]]
BATCH_SIZE = 128  # of training, where nobody says another
COUNTING_SECONDS = 600.0  # in which a stream that tells no length must come to its end
ONE_SAMPLE = "Expected more than 1 value per channel"  # torch's BatchNorm, of a batch that it cannot normalise


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
        """Scores (n,), bool.

        Raises:
            FactoryError: outputs and targets are no logits and classes that belong together.
        """
        logits = isinstance(outputs, Tensor) and outputs.ndim > 1 and outputs.shape[1] > 1
        if not (logits and isinstance(targets, Tensor) and targets.shape == (len(outputs), *outputs.shape[2:])):
            raise FactoryError(
                "metric accuracy: expected logits (n, classes), two classes at least, as the step's outputs and "
                f"classes (n,) as its targets, got {described(outputs)} and {described(targets)}; let the step return "
                "these, or name a metric of yours"
            )
        return outputs.argmax(1) == targets


def cross_entropy_step(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The default step: cross-entropy of a classifier's logits; the batch has two parts, samples and targets.

    Raises:
        FactoryError: the batch has not.
    """
    pair = parts(batch)
    if pair is None or len(pair) != 2:
        raise FactoryError(
            f"step: the default one takes batches (samples, targets), got {described(batch)}; name a step of yours"
        )
    samples, targets = pair
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
    whole = hasattr(named, "name") and hasattr(named, "higher_is_better")
    itself = not isinstance(named, type) and (whole or factory.still_needs(named, spec["kwargs"]) == 2)
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

    ``train_step`` is for training alone, where its loss is another than the one that is validated. ``batch_size`` and
    ``drop_last`` (leave out a last batch that is smaller) are for splits that are no DataLoaders.
    """

    train: Any
    validation: Any
    step: Step = cross_entropy_step
    metric: Any = field(default_factory=Accuracy)
    augment: Callable[[Any, torch.Generator], Any] | None = None
    batch_size: int = BATCH_SIZE
    train_step: Step | None = None
    drop_last: bool = False


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
    split, one number a batch is averaged by samples; a metric object with update, compute and reset sees
    all batches. A batch has as many samples as it has scores, else as its targets tell, else its outputs
    (``batch.count_of``); the loss is averaged by samples too.

    Raises:
        FactoryError: step or metric fail, return the wrong thing, or leave open how many samples there are.
        DataError: the split is empty, or fails.
    """
    compute = compute or Compute()
    return judged(model, Batches(split, batch_size, compute), step, metric, compute)


def judged(model: nn.Module, batches: Batches, step: Step, metric: Any, compute: Compute) -> Evaluation:
    """``evaluate`` on batches."""
    compute.place(model)
    mode = model.training
    model.eval()
    losses, scores, counts = [], [], []
    whole = all(hasattr(metric, name) for name in ("update", "compute", "reset"))
    with _of_metric(metric):
        _ = metric.reset() if whole else None
    with torch.no_grad():
        for batch, size in zip(batches, batches.sizes(), strict=False):
            loss, outputs, targets = stepped(step, model, batch)
            with _of_metric(metric):
                score = metric.update(outputs, targets) if whole else _scores(metric, outputs, targets, size)
            scores.append(score)
            counts.append(len(score) if not whole and score.ndim else _count(outputs, targets, size))
            losses.append(float(loss) * counts[-1])
    model.train(mode)
    total = sum(counts)
    if not total:
        raise DataError("data: a split has no samples")
    if whole:
        with _of_metric(metric):
            return Evaluation(_number(metric), sum(losses) / total, total, None, None)
    if all(score.ndim == 1 for score in scores):
        each = torch.cat(scores).cpu()
        binary = each.dtype == torch.bool
        return Evaluation(
            float(each.double().mean()), sum(losses) / total, total, int(each.sum()) if binary else None, each
        )
    mean = sum(float(score.double().mean()) * count for score, count in zip(scores, counts, strict=True)) / total
    return Evaluation(mean, sum(losses) / total, total, None, None)


class Batches:
    """The batches of one split on the device. Tensors move there once, cut without per-sample Python.

    Args:
        split: one of the forms of ``splits.as_split``.
        batch_size: where the split is no DataLoader.
        compute: device and memory format.
        generator: draws the order, and whatever ``augment`` draws; without one, samples come in the split's own.
        augment: (batch, generator) -> batch.
        drop_last: leaves out a last batch that is smaller; where the split is no DataLoader.
        most: no more batches than that.

    Raises:
        DataError: the split has another form, or no samples; while iterating, in one line, whatever it raises.
        FactoryError: while iterating, whatever ``augment`` raises.
    """

    def __init__(
        self,
        split: Any,
        batch_size: int,
        compute: Compute,
        generator: torch.Generator | None = None,
        augment: Callable[[Any, torch.Generator], Any] | None = None,
        drop_last: bool = False,
        most: int | None = None,
    ) -> None:
        split = as_split(split)
        self.device = compute.resolved()
        self.format = torch.channels_last if compute.channels_last else torch.contiguous_format
        self.batch_size, self.generator, self.augment, self.drop_last = batch_size, generator, augment, drop_last
        self.names = split.names if isinstance(split, Columns) else None
        self.tensors = tuple(part.to(self.device) for part in columns_of(split))
        self.loader: Any = None
        if isinstance(split, DataLoader):
            self.loader = split
        elif isinstance(split, Stream):
            self.loader = DataLoader(split, batch_size, drop_last=drop_last)
        elif not self.tensors:
            self.loader = DataLoader(
                split, batch_size, shuffle=generator is not None, generator=generator, drop_last=drop_last
            )
        self.most = most
        self._counted: int | None = None

    def __len__(self) -> int:
        """Batches in one pass; a stream that does not tell is read once to count them."""
        if self.loader is None:
            whole, rest = divmod(len(self.tensors[0]), self.batch_size)
            return whole + (rest > 0 and not self.drop_last)
        if self._tells_length():
            return len(self.loader)
        if self._counted is None:
            self._counted = self._count()
        return self._counted

    def __iter__(self) -> Iterator[Any]:
        source = self._slices() if self.loader is None else self._fetched()
        for batch in islice(source, self.most):
            batch = moved(batch, self.device, self.format)
            yield batch if self.augment is None or self.generator is None else self._augmented(batch)

    def sizes(self) -> Iterator[int | None]:
        """Samples that are put into each batch, as far as the split tells; then None for ever."""
        known = self.known()
        if known is None:
            return repeat(None)
        total, size = known
        return chain(repeat(size, total // size), [total % size] if total % size else [], repeat(None))

    def known(self) -> tuple[int, int] | None:
        """Samples in one pass, and in a batch; None where the split does not tell."""
        return (len(self.tensors[0]), self.batch_size) if self.loader is None else _sampled(self.loader)

    def drops_last(self) -> bool:
        """Whether a last batch that is smaller is left out."""
        if self.loader is None:
            return self.drop_last
        return bool(self.loader.drop_last or getattr(self.loader.batch_sampler, "drop_last", False))

    def drops_all(self) -> bool:
        """Whether the only batch is one that is left out, as far as the split tells."""
        known = self.known()
        if known is None:
            return self.loader is not None and self._tells_length() and not len(self.loader)
        return self.drops_last() and known[0] < known[1]

    def _augmented(self, batch: Any) -> Any:
        assert self.augment is not None and self.generator is not None
        try:
            changed = self.augment(batch, self.generator)
        except DeepCompressionError:
            raise
        except Exception as error:
            raise FactoryError(f"augment: {told(error)}; the batch is {described(batch)}") from error
        if changed is None:
            raise FactoryError("augment: returned None; expected the changed batch")
        return changed

    def _slices(self) -> Iterator[Any]:
        count = len(self.tensors[0])
        order = None if self.generator is None else torch.randperm(count, generator=self.generator).to(self.device)
        for start in range(0, count - (count % self.batch_size if self.drop_last else 0), self.batch_size):
            if order is None:
                yield self._batch([part[start : start + self.batch_size] for part in self.tensors])
            else:
                chosen = order[start : start + self.batch_size]
                yield self._batch([part.index_select(0, chosen) for part in self.tensors])

    def _batch(self, tensors: list[Tensor]) -> Any:
        return tuple(tensors) if self.names is None else dict(zip(self.names, tensors, strict=True))

    def _fetched(self) -> Iterator[Any]:
        """What the loader yields; of a stream that tells a length, no more than that: it may be endless."""
        with _of_data(self.loader):
            iterator = iter(self.loader)
        end, most = object(), self._told()
        if self.generator is not None:
            iterator = islice(iterator, most)
        for number in count():
            with _of_data(self.loader):
                batch = next(iterator, end)
            if batch is end:
                return
            if number == most:
                name = type(self.loader.dataset).__name__
                log.warning(
                    "data: %s goes on after the %s batches that its length tells; these count", name, f"{most:,}"
                )
                return
            yield batch

    def _told(self) -> int | None:
        """Batches of a stream by the length that it tells; in validation by each worker, which may give all of it."""
        if not isinstance(self.loader.dataset, Stream) or not self._tells_length():
            return None
        return len(self.loader) * (1 if self.generator is not None else max(1, self.loader.num_workers))

    def _tells_length(self) -> bool:
        try:
            return len(self.loader) >= 0
        except (TypeError, NotImplementedError):
            return False

    def _count(self) -> int:
        """One pass over a stream, after which everything is drawn as if there had been none."""
        started, number, said = time.perf_counter(), 0, False
        with kept([self.generator] if self.generator else [], self.loader):
            for _ in self._fetched():
                number += 1
                spent = time.perf_counter() - started
                if spent > COUNTING_SECONDS / 60 and not said:
                    said = True
                    log.warning(
                        "data: %s tells no length and is read to count its batches, for %.0f s at most",
                        type(self.loader.dataset).__name__,
                        COUNTING_SECONDS,
                    )
                if spent > COUNTING_SECONDS:
                    raise DataError(
                        f"data: {type(self.loader.dataset).__name__} tells no length and has not ended after "
                        f"{number:,} batches in {COUNTING_SECONDS:.0f} s; give it a __len__: how many samples are an "
                        "epoch"
                    )
        log.warning(
            "data: %s tells no length; it was read once to count its %s batches, which took %.1f s; "
            "with a __len__ that is not needed",
            type(self.loader.dataset).__name__,
            f"{number:,}",
            time.perf_counter() - started,
        )
        return number


def stepped(step: Step, model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
    """What ``step`` returns, if it is (loss, outputs, targets) with a loss of one element, which comes out 0-dim.

    Raises:
        FactoryError: it is something else, or the step fails.
    """
    try:
        answer = step(model, batch)
    except (DeepCompressionError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise FactoryError(f"step: {told(error)}{_hint(error)}; the batch is {described(batch)}") from error
    if not isinstance(answer, tuple | list) or len(answer) != 3:
        raise FactoryError(f"step: expected (loss, outputs, targets), got {described(answer)}")
    loss, outputs, targets = answer
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        reason = "; do not turn it into a number" if isinstance(loss, int | float) else ""
        reason = "; take its mean" if isinstance(loss, Tensor) else reason
        raise FactoryError(
            f"step: expected (loss, outputs, targets) with a tensor of one element as loss, got {described(loss)}"
            f"{reason}"
        )
    return loss.reshape(()) if loss.ndim else loss, outputs, targets


def backward(loss: Tensor) -> None:
    """Gradients of a step's loss.

    Raises:
        FactoryError: it has none.
    """
    if not loss.requires_grad:
        raise FactoryError(
            "step: the loss has no gradient; let the step compute it from the model's outputs, without "
            "torch.no_grad(), detach() or item()"
        )
    loss.backward()  # type: ignore[no-untyped-call]


def _hint(error: Exception) -> str:
    if ONE_SAMPLE in str(error):
        return (
            "; BatchNorm cannot train on a batch of one sample: set drop_last: true (of a DataLoader: there), or "
            "another batch_size"
        )
    if any(word in str(error) for word in ("dtype", "scalar type", "Double", "not implemented for 'Int'")):
        return "; models take float32 samples, cross-entropy int64 classes: is it the data's dtype?"
    return ""


def _of_metric(metric: Any) -> AbstractContextManager[None]:
    return in_one_line(f"metric {_called(metric)}", FactoryError)


def _called(metric: Any) -> str:
    return str(getattr(metric, "name", type(metric).__name__))


def _of_data(loader: Any) -> AbstractContextManager[None]:
    return in_one_line(f"data: {type(loader.dataset).__name__} does not give a batch", DataError)


def _sampled(loader: Any) -> tuple[int, int] | None:
    """Samples in all, and in a batch, of a DataLoader that cuts them in order; None where it does not tell."""
    batches = loader.batch_sampler
    if (
        type(batches) is not BatchSampler
        or isinstance(loader.dataset, Stream)
        or not hasattr(batches.sampler, "__len__")
    ):
        return None
    return len(batches.sampler), batches.batch_size  # type: ignore[arg-type]


def _scores(metric: Any, outputs: Any, targets: Any, size: int | None) -> Tensor:
    answer = metric(outputs, targets)
    try:
        scores = torch.as_tensor(answer).detach()
    except (TypeError, ValueError, RuntimeError):
        raise _wrong_score(metric, described(answer), "") from None
    if scores.ndim > 1:
        raise _wrong_score(metric, f"shape {tuple(scores.shape)}", "; average what a sample has beyond one, or flatten")
    known = (lengths(targets) or lengths(outputs)) | ({size} if size is not None else set())
    if scores.ndim == 1 and known and len(scores) not in known:
        raise _wrong_score(metric, f"shape {tuple(scores.shape)}", f"; samples are {' or '.join(map(str, known))}")
    return scores


def _wrong_score(metric: Any, got: str, hint: str) -> FactoryError:
    return FactoryError(f"metric {_called(metric)}: expected one score a sample (n,) or one number, got {got}{hint}")


def _count(outputs: Any, targets: Any, size: int | None) -> int:
    count = count_of(outputs, targets, size)
    if count is None:
        raise FactoryError(
            "step: nothing tells how many samples a batch has, by which means are taken: targets are "
            f"{described(targets)}, outputs {described(outputs)}; return targets whose length is the number of "
            "samples, or let the metric return one score a sample (n,)"
        )
    return count


def _number(metric: Any) -> float:
    """What a metric object computes from all batches."""
    value = metric.compute()
    several = isinstance(value, Tensor) and value.numel() != 1
    if several or value is None or isinstance(value, Mapping | list | tuple | str):
        raise FactoryError(f"metric {_called(metric)}: compute() must return one number, got {described(value)}")
    return float(value)
