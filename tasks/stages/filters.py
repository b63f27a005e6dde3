"""Pruning of filters: what the stage `prune` does with ``granularity: filter``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tasks.execution.bench import Bench, Product, covering
from tasks.execution.run import Run
from tasks.execution.samples import outputs
from tasks.execution.settings import table_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepcompression.pruning.filters import Choice
    from tasks.stages.prune import Settings


def refuse_unfit(run: Run, model: nn.Module, settings: Settings) -> None:
    """Raises StructureError where the keys mean channels, or multiplications, that the model cannot lose."""
    from deepcompression.network.channels import channel_groups
    from deepcompression.pruning.filters import densities, refuse_out_of_reach

    found = channel_groups(model, lambda one: outputs(run, one))
    if settings.flops is None:
        densities(model, table_of(settings.density), *found)
    else:
        refuse_out_of_reach(model, settings.flops, lambda one: _macs(run, one), *found)


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

    criterion, run = library.criterion_of(settings.criterion), lambda one: outputs(bench.run, one)
    if settings.flops is None:
        return library.choose(model, table_of(settings.density), criterion, run)
    return library.choose_within(model, settings.flops, lambda one: _macs(bench.run, one), criterion, run)


def _macs(run: Run, model: nn.Module) -> int:
    from deepcompression.measure.flops import count_in

    return count_in(model, lambda one: outputs(run, one)).macs


def _counted(bench: Bench, model: nn.Module, choices: Sequence[Choice]) -> dict[str, Any]:
    """Multiplications and parameters with and without the channels that go."""
    from deepcompression.pruning import filters as library

    ends = (model, library.thinned(model, choices))
    macs = [_macs(bench.run, one) for one in ends]
    parameters = [sum(each.numel() for each in one.parameters()) for one in ends]
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
