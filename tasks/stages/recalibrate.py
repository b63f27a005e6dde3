"""BatchNorm statistics estimated anew."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.execution.bench import Bench, Product
from tasks.execution.settings import Stage


class Settings(Stage):
    """BatchNorm statistics estimated anew, where no training follows a change of weights."""

    stage: Literal["recalibrate"]
    batches: int | None = Field(None, ge=1, description="default: one pass over the training split")
    batch_size: int | None = Field(None, ge=1, description="default 128; DataLoaders of yours have their own")
    drop_last: bool = Field(False, description="leave out a last batch that is smaller")


def work(bench: Bench, settings: Settings) -> Product:
    """The stage before with running means and variances of its present weights."""
    from deepcompression.network import state
    from deepcompression.training import recalibrate as library

    assert bench.input is not None
    model = bench.model()
    layers = library.recalibrate(
        model,
        bench.run.problem(settings.batch_size, settings.drop_last),
        batches=settings.batches,
        compute=bench.run.compute(),
        seed=bench.seed,
    )
    return Product(
        state.plain_state(model),
        report={"layers": layers},
        notes=[] if layers else ["the model has no BatchNorm with running statistics; nothing changed"],
    )
