"""Metrics by the kind of a task, as a recipe names them.

Scores of samples are averaged, and let two models be compared sample by sample; what counts tokens, pixels or boxes
sees all batches (``update``, ``compute``, ``reset``).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from deepcompression.errors import FactoryError
from deepcompression.training.problem import Accuracy


def accuracy() -> Accuracy:
    """The class of the largest logit, right or wrong, of each sample."""
    return Accuracy()


class TopK:
    """Whether a sample's class is among the k largest logits: bool (n,)."""

    higher_is_better = True

    def __init__(self, k: int) -> None:
        self.k, self.name = k, f"top_{k}"

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Scores (n,) of logits (n, classes) and classes (n,)."""
        return (outputs.topk(min(self.k, outputs.shape[1]), 1).indices == targets[:, None]).any(1)


def top_k(k: int = 5) -> TopK:
    """Whether a sample's class is among the ``k`` largest logits.

    Raises:
        FactoryError: k below 1.
    """
    if k < 1:
        raise FactoryError(f"metric top_k: expected k of 1 or more, got {k}")
    return TopK(k)


class Error:
    """The mean of |output - target|^power of each sample: (n,), lower is better."""

    higher_is_better = False

    def __init__(self, name: str, power: int) -> None:
        self.name, self.power = name, power

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Scores (n,) of outputs and targets of one shape (n, ...)."""
        apart = (outputs.double() - targets.double()).abs().pow(self.power)
        return apart.reshape(len(apart), -1).mean(1)


def squared_error() -> Error:
    """The squared error of each sample."""
    return Error("squared_error", 2)


def absolute_error() -> Error:
    """The absolute error of each sample."""
    return Error("absolute_error", 1)


class TokenAccuracy:
    """The part of all tokens that are right, those of the class ``ignore`` left out."""

    name = "token_accuracy"
    higher_is_better = True

    def __init__(self, ignore: int) -> None:
        self.ignore = ignore
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self.right, self.total = 0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Counts logits (n, tokens, classes) against classes (n, tokens)."""
        counted = targets != self.ignore
        self.right += int((outputs.argmax(-1) == targets)[counted].sum())
        self.total += int(counted.sum())

    def compute(self) -> float:
        """The part, 0 to 1; NaN of no token."""
        return self.right / self.total if self.total else float("nan")


def token_accuracy(ignore: int = -100) -> TokenAccuracy:
    """The part of all tokens that are right.

    Args:
        ignore: the class of tokens that do not count.
    """
    return TokenAccuracy(ignore)


class Perplexity:
    """e to the mean cross-entropy, in nats, of all tokens but those of the label ``ignore``; lower is better."""

    name = "perplexity"
    higher_is_better = False

    def __init__(self, ignore: int) -> None:
        self.ignore = ignore
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self.sum, self.total = 0.0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Adds logits (n, tokens, vocabulary) and labels (n, tokens), in step."""
        each = functional.cross_entropy(
            outputs.flatten(0, -2).float(), targets.flatten(), ignore_index=self.ignore, reduction="sum"
        )
        self.sum += float(each)
        self.total += int((targets != self.ignore).sum())

    def compute(self) -> float:
        """The perplexity; NaN of no token."""
        return float(torch.tensor(self.sum / self.total, dtype=torch.float64).exp()) if self.total else float("nan")


def perplexity(ignore: int = -100) -> Perplexity:
    """Perplexity over tokens.

    Args:
        ignore: the label of tokens that do not count.
    """
    return Perplexity(ignore)


class MeanIoU:
    """Intersection over union of each class over all pixels, averaged over the classes that occur."""

    name = "mean_iou"
    higher_is_better = True

    def __init__(self, ignore: int) -> None:
        self.ignore = ignore
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self.counts = torch.zeros(0, 0, dtype=torch.int64)

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Counts logits (n, classes, h, w) against classes (n, h, w)."""
        classes, counted = outputs.shape[1], targets != self.ignore
        pairs = targets[counted] * classes + outputs.argmax(1)[counted]
        found = torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes).cpu()
        self.counts = found if not self.counts.numel() else self.counts + found

    def compute(self) -> float:
        """The mean, 0 to 1; NaN of no pixel."""
        both = self.counts.diagonal()
        either = self.counts.sum(0) + self.counts.sum(1) - both
        return float((both[either > 0] / either[either > 0]).double().mean())


def mean_iou(ignore: int = 255) -> MeanIoU:
    """Mean intersection over union.

    Args:
        ignore: the class of pixels that do not count.
    """
    return MeanIoU(ignore)


class TorchMetric:
    """A metric of torchmetrics: it sees all batches."""

    def __init__(self, metric: Any, name: str, value: str | None) -> None:
        self.metric, self.name, self.value = metric, name, value
        self.higher_is_better = bool(metric.higher_is_better)

    def reset(self) -> None:
        """Begins anew."""
        self.metric.reset()

    def update(self, outputs: Any, targets: Any) -> None:
        """Adds a batch, where its values are."""
        device = getattr(outputs, "device", None)
        self.metric = self.metric.to(device) if device is not None else self.metric
        self.metric.update(outputs, targets)

    def compute(self) -> Any:
        """Its number; of several by name the one that was asked for."""
        found = self.metric.compute()
        if not isinstance(found, Mapping):
            return found
        if self.value not in found:
            raise FactoryError(
                f"metric {self.name}: gives {', '.join(map(str, found))}: name one as value, got {self.value!r}"
            )
        return found[self.value]


def torchmetrics(
    metric: str, value: str | None = None, higher_is_better: bool | None = None, **arguments: str | float | bool | None
) -> TorchMetric:
    """A metric of torchmetrics by its class, such as ``classification.MulticlassF1Score``.

    Args:
        metric: the class, below ``torchmetrics``.
        value: which number of a metric that gives several by name (``map`` of ``detection.MeanAveragePrecision``).
        higher_is_better: where the metric itself does not say.
        arguments: its own.

    Raises:
        FactoryError: torchmetrics is missing, has no such class, or does not say which way is better.
    """
    module, _, name = f"torchmetrics.{metric}".rpartition(".")
    try:
        made = getattr(import_module(module), name)(**arguments)
    except ModuleNotFoundError as error:
        raise FactoryError(
            f"metric torchmetrics: {metric} needs {error.name}: pip install 'deep-compression[hub]'"
        ) from None
    except AttributeError:
        raise FactoryError(f"metric torchmetrics: there is no {module}.{name}") from None
    if higher_is_better is not None:
        made.higher_is_better = higher_is_better
    if made.higher_is_better is None:
        raise FactoryError(f"metric torchmetrics: {metric} does not say higher_is_better: name it")
    return TorchMetric(made, name, value)
