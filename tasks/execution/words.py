"""Words of a recipe that stand for a step or a metric, and what each stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Texts, so that reading a recipe imports no torch.
STEPS = {
    "classification": "deepcompression.training.steps:classification",
    "regression": "deepcompression.training.steps:regression",
    "segmentation": "deepcompression.training.steps:segmentation",
    "detection": "deepcompression.training.steps:detection",
    "token_classification": "deepcompression.training.steps:token_classification",
    "language_modelling": "deepcompression.training.steps:language_modelling",
}
METRICS = {
    "accuracy": "deepcompression.training.metrics:accuracy",
    "top_k": "deepcompression.training.metrics:top_k",
    "squared_error": "deepcompression.training.metrics:squared_error",
    "absolute_error": "deepcompression.training.metrics:absolute_error",
    "mean_iou": "deepcompression.training.metrics:mean_iou",
    "average_precision": "deepcompression.training.average_precision:average_precision",
    "token_accuracy": "deepcompression.training.metrics:token_accuracy",
    "perplexity": "deepcompression.training.metrics:perplexity",
    "torchmetrics": "deepcompression.training.metrics:torchmetrics",
}


def expanded(value: Any, words: Mapping[str, str]) -> Any:
    """A word, or a mapping of a word to its arguments, as factory and kwargs; everything else as it is.

    Args:
        value: of a recipe's key.
        words: what each stands for.
    """
    if isinstance(value, str) and value in words:
        return {"factory": words[value]}
    if isinstance(value, Mapping) and len(value) == 1:
        ((word, kwargs),) = value.items()
        if word in words:
            return {"factory": words[word], "kwargs": kwargs or {}}
    return value
