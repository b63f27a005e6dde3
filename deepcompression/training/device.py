"""Where and how precisely a model computes."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Compute:
    """Where and how training computes.

    ``device``: auto (CUDA, else MPS, else CPU), or torch's name. ``precision``: of training's forward passes;
    bfloat16 is autocast, weights stay float32. ``channels_last``: memory format of images and convolutions.
    ``evaluate_batch``: samples in a batch of evaluation; None: as many as memory serves well.
    ``evaluate_precision``: of evaluation's forward passes. ``workers``: processes that read data sets of single
    samples. ``compiled``: training's forward passes go through torch.compile.
    """

    device: str = "auto"
    precision: str = "float32"
    channels_last: bool = False
    evaluate_batch: int | None = None
    evaluate_precision: str = "float32"
    workers: int = 0
    compiled: bool = False

    def resolved(self) -> torch.device:
        """The device itself."""
        if self.device != "auto":
            return torch.device(self.device)
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

    def autocast(self) -> Any:
        """The context in which training's forward passes run."""
        return self._cast(self.precision)

    def evaluation(self) -> Any:
        """The context in which evaluation's forward passes run."""
        return self._cast(self.evaluate_precision)

    def _cast(self, precision: str) -> Any:
        if precision == "float32":
            return nullcontext()
        return torch.autocast(self.resolved().type, dtype=torch.bfloat16)

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device, in the memory format."""
        model = model.to(self.resolved())
        return model.to(memory_format=torch.channels_last) if self.channels_last else model  # type: ignore[call-overload]


@dataclass(frozen=True)
class Stay(Compute):
    """Models stay where they are: in training loops of others, which move them as they like."""

    def place(self, model: nn.Module) -> nn.Module:
        """The model itself."""
        return model
