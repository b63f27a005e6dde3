"""Layers reconstructed on samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from tasks.console import bar
from tasks.execution.bench import Bench, Product, covering
from tasks.execution.patterns import RESOLVED, SELECTED
from tasks.execution.samples import samples
from tasks.execution.settings import Bits, ByName, Density, Rate, Stage, Strict, table_of
from tasks.stages.linear import Groups
from tasks.stages.share import Channels

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.reconstruction.layer import Wanted
    from deepcompression.reconstruction.reconstruct import Reconstruction, Task
    from deepcompression.structure.constraints import Structure
    from deepcompression.structure.shared import Shared

NAMED = 3  # layers that a note names
MOST = 8  # bits of a value, where a target is all that is said


class Target(Strict):
    """What all is to take, in the file."""

    ratio: float | None = Field(None, gt=1, description="the dense model takes so many times as much")
    bytes: int | None = Field(None, ge=1, description="at most, tensors that are not reconstructed included")

    @model_validator(mode="after")
    def _one(self) -> Target:
        if (self.ratio is None) == (self.bytes is None):
            raise ValueError("expected exactly one of ratio and bytes")
        return self


class Settings(Stage):
    """Weights pruned and rounded layer by layer, on a few samples without labels, and what that loses made up for."""

    stage: Literal["reconstruct"]
    samples: int = Field(128, ge=1, description="drawn from the training split, not augmented; labels are not used")
    density: Annotated[Density | dict[str, Density] | None, ByName, SELECTED] = Field(
        None, description="fraction of weights that stays, of all or by name pattern; without it none is pruned"
    )
    bits: Annotated[Bits | dict[str, Bits] | None, ByName, SELECTED] = Field(
        None, description="2**bits values, or integers of so many bits, for all or by name pattern; without it values "
        "stay free, and codebooks and scales that are there are fitted",
    )  # fmt: skip
    weights: Literal["kmeans", "linear"] = Field(
        "kmeans", description="values of a codebook, or symmetric integers times a scale"
    )
    per: Literal["tensor", "channel"] | Groups | Channels = Field(
        "tensor",
        description="what has a codebook or a scale: a tensor, each output channel, {group: N} consecutive elements of "
        "a channel, or {channels: N} channels together",
    )
    rate: Annotated[Rate | dict[str, Rate], ByName, RESOLVED] = Field(
        0.0,
        description="what a coded bit is worth, as a fraction of the weights' mean square: 0.01 to 0.1 make the file "
        "smaller, and prune further, at some error",
    )
    target: Target | None = Field(
        None,
        description="a size of the file: of each layer so many values as serve all best, by what a change of its "
        "outputs changes in what the model says; bits are then at most so many, by default 8",
    )
    damping: float = Field(0.05, gt=0, description="added to each input's mean square, as a part of the mean of all")
    order: Literal["energy", "natural"] = Field(
        "energy", description="in which order a layer's inputs are gone through: those of most energy first, or as is"
    )
    inputs: Literal["dense", "compressed"] = Field(
        "dense",
        description="what goes into a layer: what did before any changed, which needs half the time and loses less "
        "where samples are few; or what the layers before it give by then, for which it makes up too",
    )
    together: int = Field(
        1,
        ge=1,
        description="layers that are looked at in one pass over the samples: less time, but what is lost in one of "
        "them is not made up for by those behind it in the pass",
    )  # fmt: skip

    @model_validator(mode="after")
    def _has_effect(self) -> Settings:
        if self.target and self.rate:
            raise ValueError("target finds what a bit is worth: remove rate")
        if self.target and self.weights == "kmeans" and self.per != "tensor":
            raise ValueError("target goes with per: tensor, or with weights: linear")
        if self.rate and self.bits is None:
            raise ValueError("rate goes with bits, such as bits: 8")
        if self.weights == "kmeans" and self.rate and self.per != "tensor":
            raise ValueError("rate goes with per: tensor, or with weights: linear")
        if self.weights == "linear" and isinstance(self.per, Channels):
            raise ValueError("per: channels is of codebooks; integers have a scale per tensor, channel or {group: N}")
        if self.weights == "linear" and 1 in table_of(self.bits).values():
            raise ValueError("weights: linear takes bits of 2 and more")
        return self

    @property
    def most(self) -> Mapping[str, int] | int | None:
        """Bits, by name pattern: of a target at most."""
        return MOST if self.target and self.bits is None else self.bits

    def names(self, model: nn.Module) -> list[str]:
        """Tensors that are meant: those of bits and density, or all."""
        from deepcompression.network.names import prunable, resolve

        meant = {name for one in (self.most, self.density) if one is not None for name in resolve(model, table_of(one))}
        given = self.most is not None or self.density is not None
        return [name for name in _matrices(model) if name in meant] if given else prunable(model)

    def parts(self, model: nn.Module) -> dict[str, Shared]:
        """What has a codebook or a scale in each tensor of ``bits``; StructureError where groups do not divide one."""
        from deepcompression.network.names import resolve
        from deepcompression.sharing.groups import parts

        names = [] if self.most is None else list(resolve(model, table_of(self.most)))
        if isinstance(self.per, Groups):
            return parts(model, names, "group", self.per.group)
        if isinstance(self.per, Channels):
            return parts(model, names, "channels", self.per.channels)
        return parts(model, names, self.per)

    def wanted(self, model: nn.Module) -> dict[str, Wanted]:
        """What becomes of each tensor that is meant."""
        from deepcompression.network.names import resolve
        from deepcompression.reconstruction.layer import Wanted
        from deepcompression.structure.shared import Shared

        density, bits = (resolve(model, table_of(one)) if one is not None else {} for one in (self.density, self.most))
        rates = resolve(model, table_of(self.rate)) if self.rate else {}
        parts = self.parts(model)
        return {
            name: Wanted(
                density.get(name), bits.get(name), self.weights, parts.get(name, Shared()), rates.get(name, 0.0),
                damping=self.damping, order=self.order,
            )
            for name in self.names(model)
        }  # fmt: skip

    def follows(self, model: nn.Module, structure: Structure) -> None:
        """Tensors that get values have none that must stay."""
        from deepcompression.errors import StructureError
        from deepcompression.network.parametrized import VALUES
        from deepcompression.structure.constraints import SHARED, of_kind, of_order

        for name in self.parts(model):
            words = structure.get(name, ())
            for word in (*of_order(words, VALUES), *of_kind(words, SHARED)):
                raise StructureError(
                    f"{name}: is {word} already, which reconstruct would draw anew; leave it out of bits, and its "
                    "values are fitted"
                )
        for name in self.names(model):
            for word in of_kind(structure.get(name, ()), "binary"):
                raise StructureError(f"{name}: is {word} already, which reconstruct cannot keep; leave it out by name")

    def leaves(self, model: nn.Module) -> Structure:
        """Zeros, and shared values or grids."""
        return {name: self.words(name, wanted) for name, wanted in self.wanted(model).items()}

    def words(self, name: str, wanted: Wanted) -> tuple[str, ...]:
        """What is true of a tensor afterwards."""
        from deepcompression.structure.grid import Grid

        zeros = ("zeros",) if wanted.density is not None or wanted.rate or self.target else ()
        if wanted.bits is None:
            return zeros
        if wanted.method == "linear":
            return (*zeros, Grid(wanted.bits, wanted.part.axis, wanted.part.group).word)
        return ("zeros", wanted.part.word)


class Priced(Settings):
    """Of a budget: what outputs are worth was measured before, by a task ``importance``."""

    measured: str


def _matrices(model: nn.Module) -> list[str]:
    from deepcompression.network.names import first_names, parameters

    first = first_names(model)
    return [name for name, one in parameters(model).items() if first[name] == name and one.ndim >= 2]


def work(bench: Bench, settings: Settings) -> Product:
    """Layers pruned and rounded on samples, each beside those before it; every one is kept when it is done."""
    from deepcompression.network.coverage import coverage
    from deepcompression.network.state import plain_state
    from deepcompression.reconstruction.kept import KeptLayers
    from deepcompression.reconstruction.reconstruct import Task, reconstruct

    assert bench.input is not None
    model = bench.model()
    state = plain_state(model)
    blank = {name: "zero throughout" for name in settings.names(model) if not bool(state[name].any())}
    wanted = {name: one for name, one in settings.wanted(model).items() if name not in blank}
    compute, feed, forward = samples(bench.run, settings.samples, bench.seed)
    compute.place(model)
    with bar(bench.label, len(wanted)) as advance:
        kept = KeptLayers(bench.folder, advance)
        independent = settings.inputs == "dense"
        task = Task(wanted, feed, forward, bench.input.structure, together=settings.together, independent=independent)
        task = task if settings.target is None else _aimed(bench, settings, settings.target, model, task)
        done = reconstruct(model, task, earlier=kept.earlier, done=kept.done)
    rows = coverage(model, [one.name for one in done.layers], {**blank, **done.left})
    return covering(_product(model, settings, wanted, done), rows)


def _aimed(bench: Bench, settings: Settings, target: Target, model: nn.Module, task: Task) -> Task:
    """With what outputs are worth, and the bytes that there are for the weights."""
    from deepcompression.errors import StructureError, ValuesError
    from deepcompression.network.state import dense_bytes, plain_state
    from deepcompression.reconstruction.aimed import aimed, left_for, remember, remembered
    from deepcompression.reconstruction.importance import importance
    from tasks.stages.importance import measured as importance_of

    path, state = bench.folder / "importance.pt", plain_state(model)
    names = [name for name, one in task.wanted.items() if one.bits is not None]
    limit = target.bytes or dense_bytes(bench.blank_model()) / (target.ratio or 1)
    try:
        left_for(state, names, limit)
    except StructureError as error:
        raise ValuesError(
            f"stage {bench.label}: target: {error}; let a stage quantize with rest come before, or ask for less"
        ) from None
    found = importance_of(bench.run, settings.measured) if isinstance(settings, Priced) else remembered(path)
    if found is None:
        _, feed, forward = samples(bench.run, settings.samples, bench.seed, 1)
        found = importance(model, names, feed, forward, divergence=bench.run.step is None, seed=bench.seed)
        remember(path, found)
    return aimed(task, state, found, limit)


def _product(model: nn.Module, settings: Settings, wanted: Mapping[str, Wanted], done: Reconstruction) -> Product:
    from deepcompression.network.state import plain_state

    names = [one.name for one in done.layers]
    return Product(
        plain_state(model),
        structure={name: words for name in names if (words := settings.words(name, wanted[name]))},
        selected=[*names, *(one.constant for one in done.layers if one.constant)],
        report={"layers": [asdict(one) for one in done.layers]},
        notes=list(_told(done)),
    )


def _told(done: Reconstruction) -> Iterator[str]:
    """Which layers were made up for, with how much error, and what else is to be known of them."""
    ways = defaultdict(list)
    for one in done.layers:
        ways[one.how].append(one)
    for how, some in ways.items():
        worst = max(some, key=lambda one: one.error)
        yield (
            f"{len(some)} layers reconstructed ({how}): {sum(one.nonzero for one in some):,} of "
            f"{sum(one.weights for one in some):,} weights are not zero; the outputs of {worst.name} are off most, by "
            f"{worst.error:.2%} of their energy"
        )
    yield from (f"{one.name}: {one.note}" for one in done.layers if one.note)
    fixed = defaultdict(list)
    for one in done.layers:
        if one.fixed:
            fixed[one.fixed].append(one.name)
    for why, names in fixed.items():
        yield f"outputs of {_some(names)} keep their constant: {why}"
    for why in dict.fromkeys(done.left.values()):
        yield f"{_some([name for name, other in done.left.items() if other == why])} left alone: {why}"


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(list(names)[:NAMED])}{more}"
