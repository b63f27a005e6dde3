"""Weight sharing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from tasks.execution.bench import Bench, Product, covering
from tasks.execution.patterns import RESOLVED, SELECTED
from tasks.execution.settings import Bits, ByName, Rate, Stage, Strict, Training, table_of
from tasks.stages.linear import Groups

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepcompression.sharing.share import LayerSharing
    from deepcompression.structure.constraints import Structure
    from deepcompression.structure.shared import Shared


class Channels(Strict):
    """A codebook for each so many channels together."""

    channels: int = Field(ge=1, description="consecutive output channels; it divides their number")


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
    per: Literal["tensor", "channel"] | Groups | Channels = Field(
        "tensor",
        description="what has a codebook: a tensor, each output channel, {group: N} consecutive elements of a channel, "
        "or {channels: N} channels together",
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
        if self.per != "tensor" and (self.rate or self.train):
            told = self.per if isinstance(self.per, str) else ", ".join(f"{key}: {one}" for key, one in self.per)
            raise ValueError(f"per: {told} goes without rate and train, which draw one codebook for a tensor")
        return self

    @property
    def draws(self) -> bool:
        """Training does, and a random start."""
        return self.train is not None or self.init == "random"

    def parts(self, model: nn.Module) -> dict[str, Shared]:
        """What has a codebook in each tensor that is meant; StructureError where groups do not divide one."""
        from deepcompression.network.names import resolve
        from deepcompression.sharing.groups import parts

        names = resolve(model, table_of(self.bits))
        if isinstance(self.per, Groups):
            return parts(model, names, "group", self.per.group)
        if isinstance(self.per, Channels):
            return parts(model, names, "channels", self.per.channels)
        return parts(model, names, self.per)

    def follows(self, model: nn.Module, structure: Structure) -> None:
        """Tensors have no other values to keep, and none that codebooks of channels or groups would drive apart."""
        from deepcompression.errors import StructureError
        from deepcompression.network.parametrized import VALUES
        from deepcompression.sharing.groups import refuse_apart
        from deepcompression.structure.constraints import of_order

        for name, part in self.parts(model).items():
            for word in of_order(structure.get(name, ()), VALUES):
                raise StructureError(f"{name}: is {word} already, which share would undo; leave it out of bits")
            refuse_apart(name, part, structure.get(name, ()))

    def leaves(self, model: nn.Module) -> Structure:
        """Shared values."""
        return {name: ("zeros", part.word) for name, part in self.parts(model).items()}


def work(bench: Bench, settings: Settings) -> Product:
    """The non-zero weights of each layer take few values."""
    return _trained(bench, settings, settings.train) if settings.train else _at_once(bench, settings)


def _trained(bench: Bench, settings: Settings, train: Training) -> Product:
    from deepcompression.network.state import plain_state
    from deepcompression.sharing.reassign import TrainedSharing

    model = bench.model()
    done = bench.train(model, train, [TrainedSharing(settings.bits, settings.rate)])
    account = done.accounts[0][1]
    parts = settings.parts(model)
    product = _product(model, plain_state(model), account.report["layers"], account.regrouped, parts)
    return replace(product, selected=None, regrouped=account.regrouped, history=done.fit.history)


def _at_once(bench: Bench, settings: Settings) -> Product:
    from deepcompression.network import state
    from deepcompression.network.names import padding_rows, resolve
    from deepcompression.sharing import share as library

    assert bench.input is not None
    model = bench.model()
    bits, parts = resolve(model, table_of(settings.bits)), settings.parts(model)
    made = library.share(
        state.plain_state(model),
        bits,
        init=settings.init,
        solver=settings.solver,
        rate=_rates(model, settings.rate, bits),
        seed=bench.seed,
        padding=padding_rows(model),
        per=parts,
    )
    product = _product(model, made.state, made.layers, list(bits), parts)
    return replace(product, notes=list(_small(made.layers)))


def _small(layers: Sequence[LayerSharing]) -> Iterator[str]:
    """A sentence for each tensor with codebooks that save nothing."""
    for layer in layers:
        if layer.small:
            yield (
                f"{layer.name}: {layer.small:,} of its {layer.codebooks:,} codebooks have no more weights than "
                f"{2**layer.bits:,} values, and save nothing; take larger groups, or leave it out of bits by name"
            )


def _rates(model: Any, rate: float | Mapping[str, float], bits: Mapping[str, int]) -> dict[str, float]:
    from deepcompression.network.names import resolve

    rates = resolve(model, table_of(rate)) if rate else {}
    return {name: rates.get(name, 0.0) for name in bits}


def _product(
    model: nn.Module,
    state: Mapping[str, Tensor],
    layers: Sequence[LayerSharing],
    chosen: Sequence[str],
    parts: Mapping[str, Shared],
) -> Product:
    from deepcompression.network.coverage import coverage

    names = [layer.name for layer in layers if layer.nonzero]  # zero throughout: nothing to hold
    words = {name: ("zeros", parts[name].word) for name in names}
    product = Product(state, structure=words, selected=chosen, report={"layers": layers})
    blank = [name for name in chosen if name not in names]
    return covering(product, coverage(model, names, dict.fromkeys(blank, "zero throughout")))
