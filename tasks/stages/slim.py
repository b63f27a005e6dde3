"""Clean-up of dead units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from tasks.execution.bench import Bench, Product
from tasks.execution.patterns import Matched
from tasks.execution.run import Run
from tasks.execution.samples import outputs
from tasks.execution.settings import ByName, Density, Stage, table_of

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.network.coverage import Covered
    from deepcompression.pruning.slim import Slimmed
    from deepcompression.structure.constraints import Structure


def _fit(run: Run, model: nn.Module, units: Any) -> None:
    from deepcompression.network import trace
    from deepcompression.pruning.kept_units import wanted

    wanted(model, table_of(units), trace.shapes(model, lambda one: outputs(run, one)))


Units = Annotated[int, Field(ge=1)] | Density


class Settings(Stage):
    """Clean-up that keeps what the model computes: dead units (channels, rows) are removed throughout, others change
    places so that the file is smaller. It does not train and may stand anywhere, also after quantize.
    """

    draws: ClassVar[bool] = False

    stage: Literal["slim"]
    units: Annotated[Units | dict[str, Units] | None, ByName, Matched(_fit)] = Field(
        None,
        description="how many units of a layer stay (a count, or a fraction), those of the largest norms; accuracy "
        "suffers: let a finetune or gradual pruning follow",
    )
    reorder: bool = Field(True, description="put units in the order that codes smallest")

    def follows(self, model: nn.Module, structure: Structure) -> None:
        """Units change places where nothing is grouped by them."""
        from deepcompression.structure.constraints import refuse_torn

        if self.reorder:
            refuse_torn(structure, "a new order of units; reorder: false, or per: channel before")


def work(bench: Bench, settings: Settings) -> Product:
    """The stage before without dead units, the others in the order that codes smallest."""
    from deepcompression.network import state
    from deepcompression.pruning import slim as library
    from deepcompression.structure.constraints import structured

    assert bench.input is not None
    model = bench.model()
    made = library.slim(
        model,
        units=None if settings.units is None else table_of(settings.units),
        reorder=settings.reorder,
        shared=bench.input.shared,
        outputs=lambda model: outputs(bench.run, model),
    )
    return Product(
        state.plain_state(model),
        structure=structured(made.zeroed),
        compared=made.arranged,
        report={"layers": made.layers, "left": made.left, "covered": _covered(model, made)},
        notes=made.notes,
    )


def _covered(model: nn.Module, made: Slimmed) -> list[Covered]:
    """Every tensor: in a chain of units, or why its layer is in none."""
    from deepcompression.network.coverage import coverage

    done = {f"{layer}.weight" for one in made.layers for layer in (one.name, *one.through, one.consumer)}
    why = {f"{layer}.weight": reason for layer, reason in made.left.items()}
    return coverage(model, done, {**dict.fromkeys(model.state_dict(), "in no chain of units"), **why})
