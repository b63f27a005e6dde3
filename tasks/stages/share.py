"""Weight sharing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from tasks.execution.bench import Bench, Product, covering
from tasks.execution.patterns import RESOLVED, SELECTED
from tasks.execution.settings import Bits, ByName, Rate, Stage, Training, table_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepcompression.sharing.share import LayerSharing
    from deepcompression.structure.constraints import Structure


class Reassign(Training):
    """Training while weights share: codes are drawn anew as weights move (straight-through), and come to rest."""

    epochs: int = Field(10, ge=1)
    lr: float = Field(5e-4, gt=0)


class Settings(Stage):
    """Weight sharing: 1-D k-means over each layer's non-zero weights (section 3)."""

    stage: Literal["share"]
    bits: Annotated[Bits | dict[str, Bits], ByName, SELECTED] = 5
    init: Literal["linear", "density", "random", "optimal"] = "linear"
    solver: Literal["own", "sklearn", "uniform"] = Field(
        "own",
        description="what finds the values: own k-means, scikit-learn's for reference, or uniform: evenly spaced ones",
    )
    rate: Annotated[Rate | dict[str, Rate], ByName, RESOLVED] = Field(
        0.0,
        description="what a coded bit is worth, as a fraction of the weights' mean square: 0 is plain k-means; 0.01 to "
        "0.1 make the file smaller, and prune further, at some error",
    )
    train: Reassign | None = Field(None, description="train meanwhile; else weights are shared as they are")

    @model_validator(mode="after")
    def _solved(self) -> Settings:
        if self.solver != "own" and (self.rate or self.train):
            raise ValueError(f"solver: {self.solver} goes without rate and train")
        if (self.solver, self.init) in (("sklearn", "optimal"), ("uniform", "optimal")):
            raise ValueError(f"solver: {self.solver} does not go with init: optimal, which solver: own finds")
        return self

    @property
    def draws(self) -> bool:
        """Training does, and a random start."""
        return self.train is not None or self.init == "random"

    def follows(self, model: nn.Module, structure: Structure) -> None:
        """Tensors have no other values to keep."""
        from deepcompression.errors import StructureError
        from deepcompression.network.names import resolve
        from deepcompression.network.parametrized import VALUES
        from deepcompression.structure.constraints import of_order

        for name in resolve(model, table_of(self.bits)):
            for word in of_order(structure.get(name, ()), VALUES):
                raise StructureError(f"{name}: is {word} already, which share would undo; leave it out of bits")

    def leaves(self, model: nn.Module) -> Structure:
        """Shared values."""
        from deepcompression.network.names import resolve
        from deepcompression.structure.constraints import structured

        names = resolve(model, table_of(self.bits))
        return structured(names, names)


def work(bench: Bench, settings: Settings) -> Product:
    """The non-zero weights of each layer take few values."""
    return _trained(bench, settings, settings.train) if settings.train else _at_once(bench, settings)


def _trained(bench: Bench, settings: Settings, train: Training) -> Product:
    from deepcompression.network.state import plain_state
    from deepcompression.sharing.reassign import TrainedSharing

    model = bench.model()
    done = bench.train(model, train, [TrainedSharing(settings.bits, settings.rate)])
    account = done.accounts[0][1]
    product = _product(model, plain_state(model), account.report["layers"], account.regrouped)
    return replace(product, selected=None, regrouped=account.regrouped, history=done.fit.history)


def _at_once(bench: Bench, settings: Settings) -> Product:
    from deepcompression.network import state
    from deepcompression.network.names import padding_rows, resolve
    from deepcompression.sharing import share as library

    assert bench.input is not None
    model = bench.model()
    bits = resolve(model, table_of(settings.bits))
    made = library.share(
        state.plain_state(model),
        bits,
        init=settings.init,
        solver=settings.solver,
        rate=_rates(model, settings.rate, bits),
        seed=bench.seed,
        padding=padding_rows(model),
    )
    return _product(model, made.state, made.layers, list(bits))


def _rates(model: Any, rate: float | Mapping[str, float], bits: Mapping[str, int]) -> dict[str, float]:
    from deepcompression.network.names import resolve

    rates = resolve(model, table_of(rate)) if rate else {}
    return {name: rates.get(name, 0.0) for name in bits}


def _product(
    model: nn.Module, state: Mapping[str, Tensor], layers: Sequence[LayerSharing], chosen: Sequence[str]
) -> Product:
    from deepcompression.network.coverage import coverage
    from deepcompression.structure.constraints import structured

    names = [layer.name for layer in layers if layer.nonzero]  # zero throughout: nothing to hold
    product = Product(state, structure=structured(names, names), selected=chosen, report={"layers": layers})
    blank = [name for name in chosen if name not in names]
    return covering(product, coverage(model, names, dict.fromkeys(blank, "zero throughout")))
