"""Which bits each tensor gets: it changes no weight; later stages that say ``bits: allocated`` take what it found."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from tasks.execution.allocated import ALLOCATED
from tasks.execution.bench import Bench, Product, covering
from tasks.execution.patterns import SELECTED
from tasks.execution.run import Reference, Run
from tasks.execution.settings import ByName, Coder, Stage, table_of
from tasks.report.allocation import picture
from tasks.stages.costs import UNITS, Costs, Measured, Milliseconds, Rounded, amount, costs_of, limit_of, measured_in
from tasks.stages.linear import Groups, WeightBits
from tasks.stages.losses import SAMPLES, TOLERANCE, VECTORS, grids, losses_of, rounded_of, traces_of, tried_on, widths
from tasks.storage.store import write_json

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.allocation.hawq import Trace
    from deepcompression.allocation.integer_program import Assignment, Choices
    from deepcompression.structure.constraints import Structure
    from deepcompression.training.method import Context

Several = Annotated[list[WeightBits], Field(min_length=1)]
OF_HAWQ = ("vectors", "tolerance")


class Settings(Stage):
    """The bits of each tensor for the least predicted loss within a cost (HAWQ-V2, Dong et al. 2020)."""

    finds_bits: ClassVar[bool] = True

    stage: Literal["allocate"]
    by: Literal["hawq", "measured"] = Field(
        "hawq",
        description="what rounding a tensor is predicted to lose: hawq, its average Hessian trace times the squared "
        "change; measured, what the validation loss rises by when it alone is rounded",
    )
    bits: Annotated[Several | dict[str, Several], ByName, SELECTED] = Field(
        [2, 4, 8], description="that each tensor may get, or by name pattern; one alone is fixed"
    )
    scheme: Literal["symmetric", "asymmetric"] = "symmetric"
    per: Literal["tensor", "channel"] | Groups = "channel"
    range: Literal["minmax", "mse"] = "mse"
    cost: Literal["file_bytes", "flops", "latency"] = Field(
        "file_bytes",
        description="file_bytes: of the coded tensors; flops: operations x bits; latency: milliseconds by your table",
    )
    like: WeightBits | None = Field(None, description="at most what so many bits for every tensor cost")
    ratio: float | None = Field(None, gt=0, description="8 bits for every tensor cost so many times as much at least")
    most: float | None = Field(None, gt=0, description="bytes, or milliseconds, of these tensors at most")
    latency: Measured | Milliseconds | None = Field(
        None, description="milliseconds by tensor and bits, here or as {path: FILE.json}; for cost: latency"
    )
    order: bool = Field(False, description="bits must not fall as the trace grows")
    coder: Coder = Field("adaptive", description="by which bytes of the file are counted")
    samples: int | None = Field(
        None,
        ge=1,
        description=f"drawn from the training split, for traces and to try allocations; default {SAMPLES}",
    )
    vectors: int | None = Field(
        None, ge=2, description=f"of hawq: random ones that a trace is estimated by at most; default {VECTORS}"
    )
    tolerance: float | None = Field(
        None, gt=0, description=f"of hawq: standard error of a trace, to itself, that is enough; default {TOLERANCE}"
    )

    @model_validator(mode="after")
    def _onelimit(self) -> Settings:
        given = [name for name in ("like", "ratio", "most") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of like, ratio and most, got {' and '.join(given) or 'none'}")
        if self.most is not None and self.cost == "flops":
            raise ValueError("most is of file_bytes and latency; of flops say ratio, or like")
        if self.ratio is not None and self.cost == "latency":
            raise ValueError("ratio is of file_bytes and flops; of latency say most, or like")
        if (self.latency is not None) != (self.cost == "latency"):
            raise ValueError("cost: latency goes with latency, a table of milliseconds by tensor and bits")
        return self

    @model_validator(mode="after")
    def _has_effect(self) -> Settings:
        if self.by == "measured" and (given := [key for key in OF_HAWQ if getattr(self, key) is not None]):
            raise ValueError(f"{given[0]} is of by: hawq; remove it")
        if self.by == "measured" and self.order:
            raise ValueError("order: true ranks tensors by their traces, which by: measured does not have")
        for bits in table_of(self.bits).values():
            if len(set(bits)) < len(bits):
                raise ValueError(f"bits {bits} repeat: each is one choice")
        return self

    @property
    def draws(self) -> bool:
        """Hessian traces are estimated by random vectors."""
        return self.by == "hawq"

    def also(self) -> Mapping[str, Any] | None:
        """What a table in a file says."""
        return {"latency": measured_in(self.latency)} if isinstance(self.latency, Measured) else None

    def allocates(self, model: nn.Module) -> Mapping[str, int]:
        """The most that each tensor may get."""
        return {name: max(bits) for name, bits in _choices(self, model).items()}

    def fits(self, run: Run, model: nn.Module) -> None:
        """Each tensor can have each of its bits; what can be counted before anything trains reaches the limit."""
        choices = _choices(self, model)
        for width in widths(choices):
            grids(self, choices, width).table(model)
        if self.cost != "file_bytes":
            costs = costs_of(self, copy.deepcopy(model), choices, _context(run), {})
            limit_of(self, _tensors(choices, costs), costs)

    def follows(self, model: nn.Module, structure: Structure) -> None:
        """Grids of all these bits go with what earlier stages make true."""
        choices = _choices(self, model)
        for width in widths(choices):
            grids(self, choices, width).refuse_unfit(model, structure)


def work(bench: Bench, settings: Settings) -> Product:
    """The bits of each tensor, for the least predicted loss within a cost; later stages take them."""
    from deepcompression.allocation.tried import tried
    from deepcompression.errors import ValuesError
    from deepcompression.network.coverage import coverage
    from deepcompression.network.state import plain_state

    model = bench.model()
    state = plain_state(model)
    choices = {name: bits for name, bits in _choices(settings, model).items() if bool(state[name].any())}
    if not choices:
        raise ValuesError("all tensors that bits means are zero throughout: there is nothing to allocate")
    rounded = rounded_of(settings, model, state, choices)
    context = _context(bench.run, bench.seed)
    traces = traces_of(bench, settings, model, list(choices), context) if settings.by == "hawq" else {}
    losses = losses_of(bench, settings, model, rounded, traces)
    costs = costs_of(settings, model, choices, context, rounded)
    tensors = _tensors(choices, costs, losses, traces)
    with _named(bench.label):
        limit = limit_of(settings, tensors, costs)
    lost = _lost(bench, model, rounded, context, settings)
    result = Result(tensors, traces, limit, tried(tensors, limit, lost, ordered=settings.order))
    blank = {name: "zero throughout" for name in _choices(settings, model) if name not in choices}
    report = _report(settings, result, {name: state[name].numel() for name in choices})
    product = Product(state, selected=(), report=report, notes=_told(settings, result))
    return covering(product, coverage(bench.blank_model(), list(choices), blank))


@contextlib.contextmanager
def _named(label: str) -> Iterator[None]:
    """What is known only now is told as what is told before anything trains."""
    from deepcompression.errors import StructureError

    try:
        yield
    except StructureError as error:
        raise type(error)(f"stage {label}: {error}") from None


@dataclass(frozen=True)
class Result:
    """What tensors can get, their traces, the limit; and allocations that keep to it, the best as predicted first, each
    with what it loses when it is tried."""

    tensors: Sequence[Choices]
    traces: Mapping[str, Trace]
    limit: float
    tried: Sequence[tuple[Assignment, float]]

    @property
    def taken(self) -> Assignment:
        """The best as predicted, unless another is clearly better."""
        from deepcompression.allocation.tried import taken

        return taken(self.tried)


def _choices(settings: Settings, model: nn.Module) -> dict[str, list[int]]:
    """Bits that each tensor may get, rising."""
    from deepcompression.network.coverage import selected

    return {name: sorted(bits) for name, bits in selected(model, table_of(settings.bits)).items()}


def _context(run: Run, seed: int = 0) -> Context:
    from deepcompression.training.context import context_of

    return context_of(run.problem(), run.compute(), seed)


def _tensors(
    choices: Mapping[str, Sequence[int]],
    costs: Costs,
    losses: Costs | None = None,
    traces: Mapping[str, Trace] | None = None,
) -> list[Choices]:
    """What each tensor can get, costs and is predicted to lose: nothing, where that is not known yet."""
    from deepcompression.allocation.integer_program import Choices

    return [
        Choices(
            name,
            tuple(bits),
            tuple(costs[name][one] for one in bits),
            tuple(losses[name][one] if losses else 0.0 for one in bits),
            traces[name].mean if traces else 0.0,
        )
        for name, bits in choices.items()
    ]


def _lost(
    bench: Bench, model: nn.Module, rounded: Rounded, context: Context, settings: Settings
) -> Callable[[Sequence[Assignment]], list[float]]:
    """What allocations lose on samples of the training split: a classifier's divergence from what it was, else loss."""
    from deepcompression.allocation.tried import mean_losses

    losses = tried_on(bench, model, list(context.batches("allocate", settings.samples or SAMPLES, drawn=True)), context)

    def lost(allocations: Sequence[Assignment]) -> list[float]:
        values = [{name: rounded[name][width][0] for name, width in one.bits.items()} for one in allocations]
        return mean_losses(model, losses, values)

    return lost


def _report(settings: Settings, result: Result, weights: Mapping[str, int]) -> dict[str, Any]:
    """For later stages, the report's tables, and the picture."""
    return {
        ALLOCATED: result.taken.bits,
        "cost": UNITS[settings.cost],
        "limit": result.limit,
        "methods": [
            {
                "method": settings.by,
                "tensors": [_row(settings, result, one, weights[one.name]) for one in result.tensors],
                "allocations": _points(settings, result),
            }
        ],
    }


def _row(settings: Settings, result: Result, one: Choices, weights: int) -> dict[str, Any]:
    bits, trace = result.taken.bits[one.name], result.traces.get(one.name)
    row = {"tensor": one.name, "weights": weights, "bits": bits, UNITS[settings.cost]: one.costs[one.at(bits)]}
    curved = {"trace": trace.mean, "standard error": trace.error} if trace else {}
    return {**row, **curved, "predicted loss": one.losses[one.at(bits)]}


def _points(settings: Settings, result: Result) -> list[dict[str, Any]]:
    """The same bits everywhere, the best at several costs, and what was taken."""
    from deepcompression.allocation.integer_program import front, uniform

    every = widths({one.name: one.bits for one in result.tensors})
    named = [(f"{width} bits", uniform(result.tensors, width)) for width in every]
    named += [("best", one) for one in front(result.tensors, ordered=settings.order)]
    known = {tuple(one.bits.values()): lost for one, lost in result.tried}
    return [
        {"allocation": name, **_point(one), "tried": known.get(tuple(one.bits.values()))}
        for name, one in [*named, ("taken", result.taken)]
    ]


def _point(one: Assignment) -> dict[str, Any]:
    counts = {bits: list(one.bits.values()).count(bits) for bits in sorted(set(one.bits.values()))}
    told = ", ".join(f"{bits} bits: {count}" for bits, count in counts.items())
    return {"cost": one.cost, "predicted loss": one.loss, "tensors": told}


def _told(settings: Settings, result: Result) -> list[str]:
    taken, (best, lost) = result.taken, result.tried[0]
    vectors = next((f", {one.vectors} vectors" for one in result.traces.values()), "")
    cost = f"{amount(settings, taken.cost)}, {amount(settings, result.limit)} at most"
    notes = [f"by {settings.by}{vectors}: {cost} ({_point(taken)['tensors']})"]
    if all(taken.bits[one.name] == one.bits[-1] for one in result.tensors):
        notes.append("all have the most bits that they may have: the limit leaves nothing to choose")
    if taken is not best:
        least = min(other for _, other in result.tried)
        notes.append(
            f"what is predicted to be best ({_point(best)['tensors']}) loses {lost:.3g} when tried on samples, "
            f"what was taken {least:.3g}"
        )
    return notes


def leave(run: Run, reference: Reference) -> None:
    """The allocation and its picture, in the run's folder and in MLflow: ``figures/allocation.json`` and ``.svg``."""
    entry = run.store.find(reference.key)
    assert entry is not None
    report, folder = entry["report"], Path(run.folder) / "figures"
    write_json(folder / "allocation.json", {name: report[name] for name in (ALLOCATED, "cost", "limit", "methods")})
    picture(report, folder / "allocation.svg")
    for name in ("allocation.json", "allocation.svg"):
        run.tracker.artifact(folder / name, "figures")
