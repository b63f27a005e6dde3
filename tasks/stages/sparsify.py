"""Thresholds for what goes into layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tasks.execution.bench import Bench, Product
from tasks.execution.patterns import SELECTED
from tasks.execution.run import Run
from tasks.execution.samples import passes
from tasks.execution.settings import ByName, Stage, table_of

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.network.edits.quantize_values import Site

Part = Annotated[float, Field(ge=0, lt=1)]
BATCH = 32


class Settings(Stage):
    """What goes into layers becomes zero where it is small: for each a threshold from samples, which the file holds."""

    stage: Literal["sparsify"]
    zeros: Annotated[Part | dict[str, Part], ByName, SELECTED] = Field(
        0.5, description="part of the values that go into a layer which is to be zero, by name pattern of the layers"
    )
    samples: int = Field(512, ge=1, description="of the training split, from which thresholds are found")

    def fits(self, run: Run, model: nn.Module) -> None:
        """Named layers must have inputs that can have a threshold, and one part at least is above 0."""
        from deepcompression.errors import StructureError
        from deepcompression.pruning.activations import inputs_of

        if not inputs_of(model, table_of(self.zeros)).sites:
            raise StructureError("sparsify: no layer has values to make zero; give zeros: a part above 0")

    def edits(self) -> Mapping[str, str]:
        """Thresholds."""
        return {"threshold": "sparsify"}


def work(bench: Bench, settings: Settings) -> Product:
    """Small values that go into layers become zero while the model runs."""
    from deepcompression.network.state import plain_state
    from deepcompression.pruning import activations as library
    from deepcompression.training.context import context_of

    model, before = bench.model(), bench.state()
    inputs = library.inputs_of(model, table_of(settings.zeros))
    context = context_of(bench.run.problem(BATCH), bench.run.compute(), bench.seed)
    shares = [library.zeros(model, inputs.sites, lambda one: _passes(bench.run, one))]
    found, edits = library.put_thresholds(model, context, inputs.sites, settings.samples)
    model = model.to("cpu")
    shares.append(library.zeros(model, found, lambda one: _passes(bench.run, one)))
    rows = [_row(site, inputs.sites[site], value, shares) for site, value in found.items()]
    state = plain_state(model)
    new = [name for name in state if name not in before]
    return Product(
        state,
        edits=edits,
        selected=new,
        compared={name: before.get(name, tensor) for name, tensor in state.items()},
        report={"methods": [{"method": "sparsify", "inputs": rows, "left": inputs.left}]},
        figures={f"zeros/{row['layer']}": row["zeros"] for row in rows},
        notes=[*map(_told, rows), *(f"{name} has no threshold: {why}" for name, why in inputs.left.items())],
    )


def _passes(run: Run, model: nn.Module) -> Iterable[None]:
    return passes(run, model)


def _row(site: Site, asked: float, value: float, shares: list[dict[Site, float]]) -> dict[str, Any]:
    before, after = (one.get(site, 0.0) for one in shares)
    return {"layer": site.module, "asked": asked, "threshold": value, "zeros_before": before, "zeros": after}


def _told(row: Mapping[str, Any]) -> str:
    return (
        f"of what goes into {row['layer']} {row['zeros']:.1%} is zero on validation ({row['zeros_before']:.1%} before, "
        f"{row['asked']:.1%} asked for): magnitudes up to {row['threshold']:.4g}"
    )
