"""What rounding each tensor is predicted to lose, for the stage ``allocate``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from tasks.console import counted
from tasks.execution.bench import Bench
from tasks.stages.costs import EIGHT, Rounded
from tasks.stages.linear import Weights
from tasks.storage.store import write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deepcompression.allocation.hawq import Loss, Trace
    from deepcompression.training.method import Context
    from tasks.stages.allocate import Settings

SAMPLES, VECTORS, TOLERANCE = 256, 100, 0.2


def widths(choices: Mapping[str, Sequence[int]]) -> list[int]:
    """All bits that some tensor may get, rising."""
    return sorted({one for bits in choices.values() for one in bits})


def grids(settings: Settings, choices: Mapping[str, Sequence[int]], width: int) -> Weights:
    """As the stage ``quantize`` would put on grids of so many bits all that may have them."""
    names = {name: width for name, bits in choices.items() if width in bits}
    return Weights(bits=names, scheme=settings.scheme, per=settings.per, range=settings.range)


def rounded_of(
    settings: Settings, model: nn.Module, state: Mapping[str, Tensor], choices: Mapping[str, Sequence[int]]
) -> Rounded:
    """Each tensor with each of its bits, and with 8 for a ratio of bytes; and the squared norm of what that changes."""
    from deepcompression.allocation.hawq import perturbations

    more = [EIGHT] if settings.ratio and settings.cost == "file_bytes" else []
    wanted = {name: sorted({*bits, *more}) for name, bits in choices.items()}
    made: dict[str, dict[int, tuple[Tensor, float]]] = {name: {} for name in choices}
    for width in widths(wanted):
        for name, one in perturbations(state, grids(settings, wanted, width).table(model)).items():
            made[name][width] = one
    return made


def traces_of(
    bench: Bench, settings: Settings, model: nn.Module, names: Sequence[str], context: Context
) -> dict[str, Trace]:
    """Average Hessian traces; each draw is kept, so that a killed estimate goes on."""
    from deepcompression.allocation.hawq import Spread, hessian_traces

    kept, problem = bench.folder / "draws.json", bench.run.problem()
    spread = Spread(settings.tolerance or TOLERANCE, settings.vectors or VECTORS)
    batches = list(context.batches("allocate", settings.samples or SAMPLES, drawn=True))
    context.compute.place(model)
    with counted(bench.label, "Hessian traces: vectors", spread.vectors) as tell:

        def drawn(count: int, rows: Sequence[Sequence[float]]) -> None:
            write_json(kept, rows)
            tell(count)

        losses = [(partial(_loss, problem.step, batch), _count(batch)) for batch in batches]
        earlier = json.loads(kept.read_text()) if kept.exists() else ()
        made = hessian_traces(model, names, losses, seed=context.seed, spread=spread, earlier=earlier, drawn=drawn)
    return {one.name: one for one in made}


def _loss(step: Any, batch: Any, model: nn.Module) -> Tensor:
    from deepcompression.training.problem import stepped

    return stepped(step, model, batch)[0]


def _count(batch: Any) -> int:
    """Samples in a batch, as far as its parts tell."""
    from deepcompression.data.batch import count_of, parts

    inside = parts(batch)
    return count_of(inside[0] if inside else batch, inside[-1] if inside else batch, None) or 1


def tried_on(bench: Bench, model: nn.Module, batches: Sequence[Any], context: Context) -> list[tuple[Loss, int]]:
    """What is measured where allocations are tried, batch by batch: with the default step the divergence of the
    classifier's softmax from the unchanged model's, with another the loss.
    """
    import torch

    from deepcompression.allocation.tried import divergence

    context.compute.place(model).eval()
    if bench.run.step is not None:
        return [(partial(_loss, bench.run.problem().step, batch), _count(batch)) for batch in batches]
    with torch.no_grad():
        dense = [context.forward(model, batch) for batch in batches]
    return [
        (partial(divergence, context.forward, batch, before), _count(batch))
        for batch, before in zip(batches, dense, strict=True)
    ]


def losses_of(
    bench: Bench, settings: Settings, model: nn.Module, rounded: Rounded, traces: Mapping[str, Trace]
) -> dict[str, dict[int, float]]:
    """What each tensor is predicted to lose with each of its bits."""
    if settings.by == "hawq":
        return {
            name: {bits: traces[name].loss(squares) for bits, (_, squares) in some.items()}
            for name, some in rounded.items()
        }
    return _alone(bench, model, rounded)


def _alone(bench: Bench, model: nn.Module, rounded: Rounded) -> dict[str, dict[int, float]]:
    """By how much the validation loss rises when each tensor alone is rounded; never more with more bits."""
    from deepcompression.allocation.allocate import rises
    from deepcompression.allocation.sensitivity import losses_alone

    problem, compute = bench.run.problem(), bench.run.compute()
    made = {}
    with counted(bench.label, "rounded alone: tensors", len(rounded)) as tell:
        for place, (name, some) in enumerate(rounded.items(), 1):
            widths = sorted(some, reverse=True)
            trials = [model.get_parameter(name).detach(), *(some[bits][0] for bits in widths)]
            base, *found = losses_alone(model, problem, name, trials, compute=compute)
            made[name] = dict(zip(widths, rises(base, found)[1:].tolist(), strict=True))
            tell(place)
    return made
