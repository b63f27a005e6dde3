"""A model that others learn from, asked once a step by however many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Teacher:
    """What a model says of a batch.

    Args:
        answer: (batch) -> outputs.
        model: which says it, for methods that look into its layers; None where only its outputs are known.
    """

    def __init__(self, answer: Callable[[Any], Any], model: nn.Module | None = None) -> None:
        self.answer, self.model = answer, model
        self._said: list[Any] = []

    def __call__(self, batch: Any) -> Any:
        """The outputs, without gradients; of the batch that was asked for last, until ``forget``."""
        if not self._said:
            with torch.no_grad():
                self._said = [self.answer(batch)]
        return self._said[0]

    def forget(self) -> None:
        """The next batch is another one."""
        self._said = []
