"""BatchNorm statistics estimated anew."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.execution.bench import Bench, Product
from tasks.execution.settings import Stage


class Settings(Stage):
    """BatchNorm statistics estimated anew, where no training follows a change of weights; what is better is kept."""

    stage: Literal["recalibrate"]
    batches: int | None = Field(None, ge=1, description="default: one pass over the training split")
    batch_size: int | None = Field(None, ge=1, description="default 128; DataLoaders of yours have their own")
    drop_last: bool = Field(False, description="leave out a last batch that is smaller")
    blend: float | None = Field(
        None,
        ge=0,
        le=1,
        description="part of the new statistics; default: the best on validation of 0 to 1 by quarters",
    )


def work(bench: Bench, settings: Settings) -> Product:
    """The stage before with running means and variances of its present weights, as far as they serve validation."""
    from deepcompression.network import state
    from deepcompression.training import recalibrate as library

    assert bench.input is not None
    model = bench.model()
    done = library.recalibrate_best(
        model,
        bench.run.problem(settings.batch_size, settings.drop_last),
        parts=library.BLENDS if settings.blend is None else [settings.blend],
        batches=settings.batches,
        compute=bench.run.compute(),
        seed=bench.seed,
    )
    report = {"layers": done.layers, "part": done.part, "losses": {str(one): loss for one, loss in done.losses.items()}}
    return Product(state.plain_state(model), report=report, notes=done.notes)
