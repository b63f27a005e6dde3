"""What outputs of layers are worth to what the model says: it changes no weight, its result is the report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tasks.execution.bench import Bench, Product
from tasks.execution.run import Run
from tasks.execution.settings import Stage

if TYPE_CHECKING:
    from deepcompression.reconstruction.importance import Importance


class Settings(Stage):
    """On how many samples it is measured."""

    stage: Literal["importance"]
    samples: int = Field(128, ge=1)


def work(bench: Bench, settings: Settings) -> Product:
    """Of all tensors that are compressed by default; ``measured`` reads it, at any size of the file."""
    from deepcompression.network.names import prunable
    from deepcompression.reconstruction.importance import importance
    from tasks.execution.samples import samples

    model = bench.model()
    compute, feed, forward = samples(bench.run, settings.samples, bench.seed, 1)
    compute.place(model)
    found = importance(model, prunable(model), feed, forward, divergence=bench.run.step is None, seed=bench.seed)
    report = {name: {"outputs": one.outputs.tolist(), "inputs": one.inputs.tolist()} for name, one in found.items()}
    return Product(bench.state(), selected=(), report=report)


def measured(run: Run, key: str) -> dict[str, Importance]:
    """What a task measured, from the store.

    Args:
        run: the run.
        key: of the task's result.
    """
    import torch

    from deepcompression.reconstruction.importance import Importance

    entry = run.store.find(key)
    assert entry is not None
    return {
        name: Importance(*(torch.tensor(one[part], dtype=torch.float64) for part in ("outputs", "inputs")))
        for name, one in entry["report"].items()
    }
