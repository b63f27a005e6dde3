"""Weights on grids after training: what the stage `quantize` does with its key ``weights``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tasks.execution.bench import Bench, Product
from tasks.execution.patterns import SELECTED
from tasks.execution.settings import Allocated, ByName, Strict, table_of

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.quantization.linear import Linear
    from deepcompression.structure.constraints import Structure

WeightBits = Annotated[int, Field(ge=2, le=16)]


class Groups(Strict):
    """A scale, or a codebook, for each so many consecutive elements of a channel."""

    group: int = Field(ge=1, description="elements, along the flattened rest of a channel; it divides that")


class Weights(Strict):
    """Weights become integers times a scale; no data is needed, and later training keeps the grids."""

    bits: Annotated[WeightBits | dict[str, WeightBits] | Allocated, ByName, SELECTED] = Field(
        8, description="of all, by name pattern, or those that a stage allocate found"
    )
    scheme: Literal["symmetric", "asymmetric"] = Field(
        "symmetric", description="asymmetric: integers need not be around 0, which is one of them all the same"
    )
    per: Literal["tensor", "channel"] | Groups = Field(
        "channel", description="what has a scale: a tensor, each output channel, or {group: N} elements of a channel"
    )
    range: Literal["minmax", "mse"] = Field(
        "mse", description="what decides a scale: the largest value, or the least squared error"
    )

    def table(self, model: nn.Module) -> dict[str, Linear]:
        """How each tensor that is meant is quantized; StructureError where one cannot be."""
        from deepcompression.quantization import linear

        per, group = ("group", self.per.group) if isinstance(self.per, Groups) else (self.per, None)
        return linear.table(model, table_of(self.bits), self.scheme, per, group, self.range)  # type: ignore[arg-type]

    def refuse_unfit(self, model: nn.Module, structure: Structure) -> None:
        """Raises StructureError where a tensor cannot be on such a grid, beside what is true of it by then."""
        from deepcompression.quantization.linear import refuse_unlike

        for name, how in self.table(model).items():
            refuse_unlike(name, how, structure.get(name, ()))


def on_grids(bench: Bench, product: Product, weights: Weights, correct: bool) -> Product:
    """The product with its weights on grids, and what was done to each tensor; mean and variance corrected, or not."""
    from deepcompression.quantization import linear
    from deepcompression.structure.constraints import together

    assert bench.input is not None and product.state is not None
    model = bench.blank_model()
    structure = together(bench.input.structure, product.structure)
    done = linear.quantize(product.state, weights.table(model), structure, correct)
    return replace(
        product,
        state=done.state,
        structure=together(product.structure, done.structure),
        report={
            **product.report,
            "not_linear": done.left,
            "methods": [*product.report.get("methods", ()), {"method": "weights", "layers": done.layers}],
        },
        notes=[*product.notes, *_told(done.layers)],
    )


def _told(layers: Collection[Any]) -> list[str]:
    """What was not corrected, by name."""
    return [f"{layer.name}: corrected is {layer.corrected}" for layer in layers if "not" in layer.corrected]


def left_alone(report: Mapping[str, Any]) -> dict[str, str]:
    """Why weights that were meant are on no grid, by name."""
    return dict(report.get("not_linear", {}))
