"""What is learnt from what: data, step, metric, where it is computed; and how well a model does it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from deepcompression import factory
from deepcompression.data.batch import described, parts
from deepcompression.errors import DeepCompressionError, FactoryError, one_line, told

log = logging.getLogger(__name__)
Step = Callable[[nn.Module, Any], tuple[Tensor, Any, Any]]
BATCH_SIZE = 128  # of training, where nobody says another
ONE_SAMPLE = "Expected more than 1 value per channel"  # torch's BatchNorm, of a batch that it cannot normalise


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

    ``batch_size`` and
    ``drop_last`` (leave out a last batch that is smaller) are for splits that are no DataLoaders.
    """

    train: Any
    validation: Any
    step: Step = cross_entropy_step
    metric: Any = field(default_factory=Accuracy)
    augment: Callable[[Any, torch.Generator], Any] | None = None
    batch_size: int = BATCH_SIZE
    drop_last: bool = False


def stepped(step: Step, model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
    """What ``step`` returns, if it is (loss, outputs, targets) with a loss of one element, which comes out 0-dim.

    Args:
        step: the user's.
        model: is given to it.
        batch: on the device.

    Raises:
        FactoryError: it is something else, or the step fails.
    """
    try:
        answer = step(model, batch)
    except (DeepCompressionError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise FactoryError(
            f"step: {told(error)}{_hint(error)}; the batch is {described(batch)}, of which it should make "
            "(loss, outputs, targets)"
        ) from error
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


@contextmanager
def compiling(compiled: bool) -> Iterator[None]:
    """Within, a compiler that fails is told as such.

    Raises:
        FactoryError: torch.compile fails.
    """
    try:
        yield
    except FactoryError as error:
        if not compiled or not type(error.__cause__).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise FactoryError(f"compile: torch.compile fails: {one_line(error.__cause__)[:200]}; leave it out") from error


def _hint(error: Exception) -> str:
    if ONE_SAMPLE in str(error):
        return (
            "; BatchNorm cannot train on a batch of one sample: set drop_last: true (of a DataLoader: there), or "
            "another batch_size"
        )
    if any(word in str(error) for word in ("dtype", "scalar type", "Double", "not implemented for 'Int'")):
        return "; models take float32 samples, cross-entropy int64 classes: is it the data's dtype?"
    return ""
