"""Fine-tuning with structure held."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from tasks.execution.bench import Bench, Product
from tasks.execution.execute import shown
from tasks.execution.settings import Dropouts, Stage, Training


class Settings(Training, Stage):
    """Retraining of what is left, zeros and sharing held."""

    stage: Literal["finetune"]
    epochs: int = Field(10, ge=1)
    lr: float = Field(1e-4, gt=0)
    dropout: Dropouts = Field({}, description="dropout module -> the layer whose sparsity corrects its rate")


def work(bench: Bench, settings: Settings) -> Product:
    """The weights of the stage before retrained; their zeros and their sharing stay."""
    return train(bench, settings, settings.dropout)


def train(bench: Bench, training: Training, dropout: Mapping[str, str]) -> Product:
    """The training itself: what ``quantize`` does too, to the centroids."""
    from deepcompression.network import state
    from deepcompression.training import finetune as library

    assert bench.input is not None
    model = bench.model()
    with shown(bench.run, bench.label) as show:
        tuned = library.finetune(
            model,
            bench.problem(training),
            zeros=bench.input.zeros,
            shared=bench.input.shared,
            dropout=dropout,
            **bench.fit_arguments(training, show),
        )
    return Product(
        state.plain_state(model),
        zeros=bench.input.zeros,
        shared=bench.input.shared,
        report={"best_epoch": tuned.fit.best_epoch, "stopped": tuned.fit.stopped, "dropout": tuned.dropout},
        history=tuned.fit.history,
    )
