"""Steps by the kind of a task: what of a batch goes into the model, and by which loss it learns.

A batch is (samples, targets), or a mapping: then what the model's forward has as its arguments goes into it, and
``labels`` are the targets. Of an answer with ``logits`` (as transformers give it) or ``out`` (as torchvision's
segmenters) these are the outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepcompression.data.batch import described, parts
from deepcompression.errors import FactoryError
from deepcompression.training.problem import Step

LABELS = ("labels", "label", "targets", "target")
LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": functional.mse_loss,
    "l1": functional.l1_loss,
    "huber": functional.huber_loss,
}


def classification(label_smoothing: float = 0.0) -> Step:
    """One class a sample: logits (n, classes), classes (n,).

    Args:
        label_smoothing: as torch's cross-entropy has it, 0 to 1.
    """

    def step(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        logits, targets = _answered(model, batch)
        return functional.cross_entropy(logits, targets, label_smoothing=label_smoothing), logits, targets

    return step


def regression(loss: str = "mse") -> Step:
    """Numbers: outputs (n,) or (n, m), targets of the same shape; one output a sample may be (n, 1).

    Args:
        loss: mse, l1 or huber.

    Raises:
        FactoryError: none of these.
    """
    if loss not in LOSSES:
        raise FactoryError(f"step regression: loss: expected {', '.join(LOSSES)}, got {loss!r}")

    def step(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        outputs, targets = _answered(model, batch)
        if outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 1:
            outputs = outputs.squeeze(-1)
        if outputs.shape != targets.shape:
            raise FactoryError(
                f"step regression: outputs {described(outputs)} and targets {described(targets)} are of unlike shapes"
            )
        return LOSSES[loss](outputs, targets.to(outputs.dtype)), outputs, targets

    return step


def segmentation(ignore: int = 255, auxiliary: float = 0.5) -> Step:
    """A class for each pixel: logits (n, classes, h, w), classes (n, h, w).

    Args:
        ignore: the class of pixels that do not count.
        auxiliary: what a second answer of torchvision's segmenters, ``aux``, counts in the loss while it trains.
    """

    def step(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        answer, targets = _run(model, batch)
        logits = _logits(answer)
        loss = functional.cross_entropy(logits, targets, ignore_index=ignore)
        if model.training and isinstance(answer, Mapping) and "aux" in answer:
            loss = loss + auxiliary * functional.cross_entropy(answer["aux"], targets, ignore_index=ignore)
        return loss, logits, targets

    return step


def token_classification(ignore: int = -100) -> Step:
    """A class for each token: logits (n, tokens, classes), classes (n, tokens).

    Args:
        ignore: the class of tokens that do not count.
    """

    def step(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        logits, targets = _answered(model, batch)
        return _of_tokens(logits, targets, ignore), logits, targets

    return step


def language_modelling(ignore: int = -100, shift: bool = True) -> Step:
    """The next token: logits (n, tokens, vocabulary), labels (n, tokens), which are the tokens themselves.

    Args:
        ignore: the label of tokens that do not count.
        shift: False where each place's own token is asked for, as masked language models are.

    Returns:
        A step whose outputs and targets are in step: without the last token's answer, and the first token.
    """

    def step(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
        logits, targets = _answered(model, batch)
        if shift:
            logits, targets = logits[:, :-1], targets[:, 1:]
        return _of_tokens(logits, targets, ignore), logits, targets

    return step


def detection() -> Step:
    """Boxes and their classes. A batch is a mapping with ``images`` (n, c, h, w), ``boxes`` (n, most, 4) as x0, y0, x1,
    y1 in pixels, and ``labels`` (n, most), 0 where there is none; or (images, a list of mappings of boxes and labels).

    The model has ``loss_of(outputs, targets)`` and ``detections(outputs)``, or is as torchvision's detectors are: in
    training it takes (images, targets) and gives losses, in evaluation images and gives detections. Of the latter the
    loss in evaluation is 0.
    """
    return _detect


def _detect(model: nn.Module, batch: Any) -> tuple[Tensor, Any, Any]:
    images, targets = _boxed(batch)
    if hasattr(model, "loss_of") and hasattr(model, "detections"):
        outputs = model(images)
        found = [] if model.training else model.detections(outputs)  # type: ignore[operator]
        return model.loss_of(outputs, targets), found, targets  # type: ignore[operator]
    if model.training:
        losses = model(list(images), targets)
        return torch.stack(list(losses.values())).sum(), [], targets
    return torch.zeros(()), model(list(images)), targets


def _boxed(batch: Any) -> tuple[Any, list[dict[str, Tensor]]]:
    """Images, and of each its boxes and labels alone."""
    if isinstance(batch, Mapping) and {"images", "boxes", "labels"} <= set(batch):
        pairs = zip(batch["boxes"], batch["labels"], strict=True)
        return batch["images"], [{"boxes": boxes[labels > 0], "labels": labels[labels > 0]} for boxes, labels in pairs]
    inside = parts(batch)
    if inside is None or len(inside) != 2 or isinstance(batch, Mapping):
        raise FactoryError(
            f"step detection: expected a mapping of images, boxes and labels, or (images, targets), "
            f"got {described(batch)}"
        )
    return inside[0], list(inside[1])


def _of_tokens(logits: Tensor, targets: Tensor, ignore: int) -> Tensor:
    """Cross-entropy over tokens that count; 0 where none does."""
    if bool((targets == ignore).all()):
        return logits.sum() * 0
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=ignore)


def _answered(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    answer, targets = _run(model, batch)
    return _logits(answer), targets


def _logits(answer: Any) -> Any:
    """The tensor that an answer is, or has by its usual names."""
    if isinstance(answer, Tensor):
        return answer
    for name in ("logits", "out"):
        found = answer.get(name) if isinstance(answer, Mapping) else getattr(answer, name, None)
        if isinstance(found, Tensor):
            return found
    raise FactoryError(
        f"step: the model returns {described(answer)}; expected a tensor, or logits or out in what it returns; name a "
        "step of yours"
    )


def _run(model: nn.Module, batch: Any) -> tuple[Any, Any]:
    """What the model answers, and the targets of a batch."""
    if isinstance(batch, Mapping):
        name = next((one for one in LABELS if one in batch), None)
        if name is None:
            raise FactoryError(f"step: expected labels in a batch, got {described(batch)}; name a step of yours")
        return model(**{key: value for key, value in batch.items() if key != name and _takes(model, key)}), batch[name]
    pair = parts(batch)
    if pair is None or len(pair) != 2:
        raise FactoryError(f"step: expected (samples, targets) or a mapping with labels, got {described(batch)}")
    return model(pair[0]), pair[1]


def _takes(model: nn.Module, name: str) -> bool:
    parameters = signature(model.forward).parameters
    return name in parameters or any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values())
