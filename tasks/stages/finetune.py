"""Fine-tuning with structure held."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.execution.bench import Bench, Product, trained
from tasks.execution.settings import Dropouts, Stage, Training


class Settings(Training, Stage):
    """Retraining of what is left, zeros and sharing held."""

    stage: Literal["finetune"]
    epochs: int = Field(10, ge=1)
    lr: float = Field(1e-4, gt=0)
    dropout: Dropouts = Field({}, description="dropout module -> the layer whose sparsity corrects its rate")


def work(bench: Bench, settings: Settings) -> Product:
    """The weights of the stage before retrained; their zeros and their sharing stay."""
    from deepcompression.training.dropout import DropoutCorrection

    return trained(bench, settings, [DropoutCorrection(settings.dropout)] if settings.dropout else [])
