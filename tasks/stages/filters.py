"""Pruning of what goes whole: what the stage `prune` does with ``granularity: filter``, ``channel`` or ``head``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from tasks.execution.bench import Bench, Product, covering
from tasks.execution.run import Run
from tasks.execution.samples import outputs
from tasks.execution.settings import Factory, table_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepcompression.pruning.filters import Choice, Limit
    from deepcompression.pruning.worth import Worth
    from deepcompression.training.method import Context
    from tasks.stages.prune import Settings


class Keys(Protocol):
    """What the stage and the method say of filters."""

    @property
    def granularity(self) -> str:
        """What goes whole."""

    @property
    def density(self) -> float | dict[str, float] | None:
        """By name, or of all."""

    @property
    def flops(self) -> float | None:
        """The part that stays."""

    @property
    def parameters(self) -> float | None:
        """The part that stays."""

    @property
    def multiple(self) -> int:
        """Of which as many stay."""

    @property
    def criterion(self) -> str | None:
        """Its name."""

    @property
    def score(self) -> Factory | None:
        """Of the user's."""


def refuse_unfit(run: Run, model: nn.Module, settings: Keys) -> None:
    """Raises StructureError where the keys mean channels, or a cost, that the model cannot lose, or cannot judge."""
    from deepcompression.pruning import filters as library
    from deepcompression.pruning.limits import refuse_out_of_reach
    from deepcompression.pruning.units import UNITS
    from deepcompression.training.context import context_of

    groups, left = UNITS[settings.granularity](model, lambda one: outputs(run, one))
    limit = limit_of(settings)
    if limit is None:
        meant = library.densities(model, table_of(settings.density), groups, left)
        groups = [group for group, density in meant if density < 1]
    else:
        refuse_out_of_reach(model, limit, groups, left, lambda one: outputs(run, one), settings.multiple)
    library.refuse_unfit(worth_of(settings, context_of(run.problem(), run.compute())), model, groups)


def limit_of(settings: Keys) -> Limit | None:
    """What a thin model may cost; None where a density is given."""
    from deepcompression.measure.flops import macs_in
    from deepcompression.pruning.filters import Limit, parameters_of

    if settings.flops is not None:
        return Limit(settings.flops, macs_in)
    if settings.parameters is not None:
        return Limit(settings.parameters, parameters_of, "parameters", "parameters")
    return None


def worth_of(settings: Keys, context: Context) -> Worth:
    """What makes channels important: the criterion, or the user's score summed over a filter."""
    from deepcompression import factory
    from deepcompression.pruning import worth as library

    if settings.score:
        return library.Summed(factory.function(settings.score.factory, settings.score.arguments()))
    return library.worth_of(settings.criterion or "fpgm", context)


def pruned(bench: Bench, settings: Settings) -> Product:
    """Filters zeroed, with all that belongs to their channels; or a thin model, once it is seen to give the same."""
    from deepcompression.pruning import filters as library

    model = bench.model()
    choices, left = _chosen(bench, model, settings)
    state, zeroed = library.masked(model, choices)
    places = library.cut(model, choices) if settings.remove else None
    product = _masked(bench, state, zeroed) if places is None else _thin(bench, model, state, places)
    return _told(model, product, choices, left, _counted(bench, model, choices))


def _chosen(bench: Bench, model: nn.Module, settings: Settings) -> tuple[list[Choice], dict[str, str]]:
    from deepcompression.pruning import filters as library
    from deepcompression.pruning.across import choose_across
    from deepcompression.pruning.limits import choose_within
    from deepcompression.pruning.prune import refresh
    from deepcompression.pruning.units import UNITS

    worth, limit, find = worth_of(settings, bench.context()), limit_of(settings), UNITS[settings.granularity]
    refresh(worth, bench.model())  # a copy: what is measured is measured where models train
    run, multiple = lambda one: outputs(bench.run, one), settings.multiple
    if limit is None:
        return library.choose(model, table_of(settings.density), worth, run, find, multiple)
    within = choose_across if settings.scope == "global" else choose_within
    return within(model, limit, worth, run, find, multiple)


def _counted(bench: Bench, model: nn.Module, choices: Sequence[Choice]) -> dict[str, Any]:
    """Multiplications and parameters with and without the channels that go."""
    from deepcompression.measure.flops import macs_in
    from deepcompression.pruning import filters as library

    ends = (model, library.thinned(model, choices))
    macs = [macs_in(one, lambda two: outputs(bench.run, two)) for one in ends]
    parameters = [library.parameters_of(one) for one in ends]
    return {"macs": macs[1] / max(macs[0], 1), "parameters": parameters[1] / max(parameters[0], 1)}


def _masked(bench: Bench, state: Mapping[str, Tensor], zeroed: Sequence[str]) -> Product:
    from deepcompression.network.state import bits_of
    from deepcompression.structure.constraints import structured

    before = bench.state()
    changed = [name for name, tensor in state.items() if not bits_of(tensor).equal(bits_of(before[name]))]
    return Product(state, structure=structured(zeroed), selected=[*zeroed, *changed])


def _thin(bench: Bench, model: nn.Module, state: Mapping[str, Tensor], places: Mapping[str, Any]) -> Product:
    from deepcompression.network.edits.apply import apply
    from deepcompression.network.state import plain_state
    from deepcompression.pruning import filters as library

    edit, before = library.edit_of(model, places), library.cut_state(bench.state(), places)
    thin = bench.blank_model()
    apply(thin, edit)
    thin.load_state_dict(before)
    model.load_state_dict(dict(state))
    gap = library.refuse_unlike(thin, model, lambda one: outputs(bench.run, one))
    return Product(plain_state(thin), edits=[edit], selected=[], compared=before, report={"gap": gap})


def _told(
    model: nn.Module,
    product: Product,
    choices: Sequence[Choice],
    left: Mapping[str, str],
    counted: Mapping[str, float],
) -> Product:
    from deepcompression.network.coverage import coverage
    from deepcompression.pruning.filters import account_of

    layers = account_of(choices)
    done = {member.tensor for one in choices for member in one.group.members}
    reasons = {name if name in model.state_dict() else f"{name}.weight": why for name, why in left.items()}
    named = {**dict.fromkeys(model.state_dict(), "makes or takes in no channels that go"), **reasons}
    told = f"without the channels that go {counted['macs']:.3g} of the multiplications stay"
    notes = [f"{told}, {counted['parameters']:.3g} of the parameters"]
    notes += [f"{name} loses no channels: {why}" for name, why in left.items()]
    report = {"layers": layers, "left": left, **counted, **product.report}
    return covering(replace(product, report=report, notes=notes), coverage(model, done, named))
