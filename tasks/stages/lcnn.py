"""Dictionaries for layers: lookups instead of multiplications."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from tasks.execution.bench import Bench, Product, covering
from tasks.execution.patterns import SELECTED
from tasks.execution.run import Run
from tasks.execution.samples import outputs
from tasks.execution.settings import ByName, Density, Stage, table_of

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.sharing.lcnn import LayerLookup, Wanted
    from deepcompression.structure.constraints import Structure

Size = Annotated[int, Field(ge=1)] | Density
Count = Annotated[int, Field(ge=1)]


class Settings(Stage):
    """A layer multiplies its inputs by a small dictionary once, and each kernel is a sum of few of the products
    (LCNN, Bagherinezhad et al. 2017); a finetune that follows trains both.
    """

    stage: Literal["lcnn"]
    size: Annotated[Size | dict[str, Size], ByName, SELECTED] = Field(
        0.25, description="vectors in a layer's dictionary: a count, or a fraction of its inputs"
    )
    nonzero: Annotated[Count | dict[str, Count], ByName, SELECTED] = Field(
        3, description="vectors that each column of a kernel is the sum of, at most"
    )
    fit: Literal["kmeans", "learned"] = Field(
        "kmeans", description="where the dictionary begins: k-means over columns, or dictionary learning"
    )

    def fits(self, run: Run, model: nn.Module) -> None:
        """Named layers must be such that they can be parted, and the model must run with them so."""
        import copy

        double = copy.deepcopy(model)
        _apply(double, _wanted(run, self, model)[0])
        _ran(run, double)

    def follows(self, model: nn.Module, structure: Structure) -> None:
        """Layers that have structure are not parted: it would be lost."""
        from deepcompression.errors import StructureError
        from deepcompression.network.names import resolve

        for name in resolve(model, table_of(self.size)):
            if structure.get(name):
                raise StructureError(
                    f"{name}: is {structure[name][0]} already, which a dictionary and lookups would not keep; let lcnn "
                    "come before, or leave it out of size"
                )

    def edits(self) -> Mapping[str, str]:
        """Layers in two."""
        return {"dictionary": "lcnn"}

    def alter(self, run: Run, model: nn.Module) -> None:
        """Layers in two, of other names."""
        _apply(model, _wanted(run, self, model)[0])


def work(bench: Bench, settings: Settings) -> Product:
    """Layers become a dictionary and what looks up in it."""
    from deepcompression.network.state import plain_state
    from deepcompression.sharing import lcnn as library
    from deepcompression.structure.constraints import structured

    model, before = bench.model(), bench.state()
    macs = _macs(bench.run, model)
    layers, left = _wanted(bench.run, settings, model)
    edits, rows = library.look_up(model, layers, settings.fit, bench.seed)
    _ran(bench.run, model)
    state, counted = plain_state(model), _counted(macs, _macs(bench.run, model))
    new = [name for name in state if name not in before]
    compared = {name: before.get(name, tensor) for name, tensor in state.items()}
    product = Product(
        state,
        structure=structured([f"{row.name}.lookup.weight" for row in rows if row.lookups]),
        edits=edits,
        selected=new,
        compared=compared,
        report={"methods": [{"method": "lcnn", "layers": rows, "left": left}], **counted},
        figures=counted,
        notes=[
            _told(rows, counted),
            *_lost(bench, rows),
            *(f"{name} gets no dictionary: {why}" for name, why in left.items()),
        ],
    )
    return _covering(product, model, rows, left)


def _wanted(run: Run, settings: Settings, model: nn.Module) -> tuple[list[Wanted], dict[str, str]]:
    from deepcompression.network.trace import shapes
    from deepcompression.sharing.lcnn import wanted

    seen = shapes(model, lambda one: outputs(run, one))
    return wanted(model, table_of(settings.size), table_of(settings.nonzero), seen)


def _apply(model: nn.Module, layers: list[Wanted]) -> None:
    from deepcompression.network.edits.apply import apply_all

    apply_all(model, [{"kind": "dictionary", "module": one.layer, "size": one.size} for one in layers])


def _ran(run: Run, model: nn.Module) -> None:
    from deepcompression.network.edits.apply import check

    check(model, lambda one: outputs(run, one))


def _macs(run: Run, model: nn.Module) -> tuple[int, int]:
    """Multiplications of a model, and those with a weight that is not zero."""
    from deepcompression.measure.flops import count_in

    counted = count_in(model, lambda one: outputs(run, one))
    return counted.macs, counted.nonzero


def _counted(before: tuple[int, int], after: tuple[int, int]) -> dict[str, float]:
    """What part of the multiplications is left: of those with what is not zero, and of all."""
    return {"operations": after[1] / max(before[1], 1), "macs": after[0] / max(before[0], 1)}


def _lost(bench: Bench, rows: list[LayerLookup]) -> list[str]:
    """What was true of weights that are not there any more."""
    assert bench.input is not None
    had = {row.name: bench.input.structure.get(f"{row.name}.weight", ()) for row in rows}
    return [f"{name}.weight was {' and '.join(words)}, which ends with it" for name, words in had.items() if words]


def _told(rows: list[LayerLookup], counted: Mapping[str, float]) -> str:
    lookups, weights = sum(row.lookups for row in rows), sum(row.weights for row in rows)
    return (
        f"{len(rows)} layers look up {lookups:,} times where {weights:,} weights were; {counted['operations']:.3g} of "
        f"the multiplications stay, where zeros are skipped ({counted['macs']:.3g} where they are not)"
    )


def _covering(product: Product, model: nn.Module, rows: list[LayerLookup], left: Mapping[str, str]) -> Product:
    from deepcompression.network.coverage import coverage

    done = [f"{row.name}.{part}.weight" for row in rows for part in ("dictionary", "lookup")]
    reasons: dict[str, Any] = {f"{name}.weight": why for name, why in left.items()}
    return covering(product, coverage(model, done, reasons))
