"""Removal of residual blocks: what the stage `prune` does with ``granularity: layer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks.execution.bench import Bench, Product, covering
from tasks.execution.run import Run
from tasks.execution.samples import outputs

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.pruning.blocks import Dropped
    from deepcompression.pruning.filters import Limit
    from tasks.stages.prune import Settings

SAMPLES, BATCH = 1024, 256  # of the validation split, by which blocks are chosen


def refuse_unfit(run: Run, model: nn.Module, settings: Settings) -> None:
    """Raises StructureError where the model has too few residual blocks for the keys."""
    from deepcompression.errors import StructureError
    from tasks.stages.filters import limit_of

    blocks, limit = _blocks(run, model), limit_of(settings)
    if limit is None and not _most(blocks, settings):
        raise StructureError(
            f"prune: density {settings.density} of {len(blocks)} residual blocks leaves none out; lower it"
        )
    if limit is not None:
        least = min(_part(run, model, [one for one in blocks if one != kept], limit) for kept in blocks)
        if least > limit.part:
            raise StructureError(
                f"prune: {limit.key}: {limit.part:g} is out of reach: with one of {len(blocks)} residual blocks "
                f"{least:.3g} of the {limit.unit} stay"
            )


def pruned(bench: Bench, settings: Settings) -> Product:
    """A model without some of its blocks, once it is seen to give what the one gives that skips them."""
    from deepcompression.network.edits.apply import apply_all
    from deepcompression.network.state import plain_state
    from deepcompression.pruning import blocks as library
    from deepcompression.pruning.filters import refuse_unlike

    model, before = bench.model(), bench.state()
    gone = _chosen(bench, model, settings)
    edits = library.edits_of(gone)
    thin = bench.model()
    apply_all(thin, edits)
    with library.without(model, [one.name for one in gone]):
        gap = refuse_unlike(thin, model, lambda one: outputs(bench.run, one))
    state = plain_state(thin)
    product = Product(
        state,
        edits=edits,
        selected=[name for name in state if name not in before],
        compared={name: before.get(name, tensor) for name, tensor in state.items()},
    )
    return _told(bench, model, product, gone, gap)


def _blocks(run: Run, model: nn.Module) -> list[str]:
    from deepcompression.errors import StructureError
    from deepcompression.pruning.blocks import residual_blocks

    found = residual_blocks(model, lambda one: outputs(run, one))
    if len(found) < 2:
        raise StructureError(
            f"prune: granularity: layer: the model has {len(found)} residual blocks of one shape, a module each that "
            "takes a tensor by position and returns one; of two or more some can be left out"
        )
    return found


def _most(blocks: Sequence[str], settings: Settings) -> int:
    """How many blocks go by a density."""
    density = settings.density
    return len(blocks) - max(round(len(blocks) * density), 1) if isinstance(density, float) else 0


def _part(run: Run, model: nn.Module, names: Sequence[str], limit: Limit) -> float:
    """What part of a cost stays without some blocks."""
    import copy

    from deepcompression.network.edits.apply import apply_all

    thin = copy.deepcopy(model)
    apply_all(thin, [{"kind": "bypass", "module": name} for name in names])
    costs = [limit.cost(one, lambda each: outputs(run, each)) for one in (model, thin)]
    return costs[1] / max(costs[0], 1)


def _chosen(bench: Bench, model: nn.Module, settings: Settings) -> list[Dropped]:
    from deepcompression.pruning.blocks import choose
    from tasks.stages.filters import limit_of

    run, blocks, limit = bench.run, _blocks(bench.run, model), limit_of(settings)

    def enough(names: Sequence[str]) -> bool:
        return len(names) >= _most(blocks, settings) if limit is None else _part(run, model, names, limit) <= limit.part

    return choose(model, blocks, enough, lambda one: _loss(run, one))


def _loss(run: Run, model: nn.Module) -> float:
    """The mean loss of the first samples of the validation split."""
    import torch

    from deepcompression.network.trace import resting
    from deepcompression.training.batches import Batches
    from deepcompression.training.problem import stepped

    problem, compute = run.problem(), run.compute()
    losses = []
    with resting(compute.place(model)), torch.no_grad():
        for batch in Batches(problem.validation, BATCH, compute, most=SAMPLES // BATCH):
            with compute.autocast():
                losses.append(float(stepped(problem.step, model, batch)[0]))
    model.to("cpu")
    return sum(losses) / max(len(losses), 1)


def _told(bench: Bench, model: nn.Module, product: Product, gone: Sequence[Dropped], gap: float) -> Product:
    from dataclasses import replace

    from deepcompression.measure.flops import macs_in
    from deepcompression.network.coverage import coverage
    from deepcompression.pruning.filters import Limit

    part = _part(bench.run, model, [one.name for one in gone], Limit(1.0, macs_in))
    done = [name for name in model.state_dict() if any(name.startswith(f"{one.name}.") for one in gone)]
    left = dict.fromkeys(model.state_dict(), "is in no block that goes")
    notes = [f"{one.name} goes: loss {one.loss:.4g} on validation without it" for one in gone]
    notes += [f"without these blocks {part:.3g} of the multiplications stay"]
    report: Mapping[str, Any] = {"methods": [{"method": "layer", "blocks": list(gone)}], "macs": part, "gap": gap}
    product = replace(product, report=report, figures={"macs": part}, notes=notes)
    return covering(product, coverage(model, done, left))
