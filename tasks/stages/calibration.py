"""What goes into layers on grids, after training, and biases: what the stage `quantize` does with its keys
``activations`` and ``correct: [bias]``.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from tasks.console import counted
from tasks.execution.bench import Bench, Product
from tasks.execution.patterns import SELECTED
from tasks.execution.settings import Allocated, ByName, Strict

if TYPE_CHECKING:
    from torch import nn

    from deepcompression.quantization.calibrate import Calibrated, Calibration, Plan
    from deepcompression.quantization.correct_bias import Corrected
    from deepcompression.training.method import Context
    from tasks.execution.run import Run

ActivationBits = Annotated[int, Field(ge=2, le=16)]
Observer = Literal["minmax", "moving_average", "percentile", "mse", "kl", "symmetric_kl", "kl_j", "js", "auto"]
SAMPLES = 512
BIASES = "correct: [bias]"
NAMED = 3  # layers that a note names
BATCH, FEWEST = 32, 4  # samples at a time, and batches: auto keeps one of four apart
OF_STATIC = ("observer", "samples", "percentile", "search")  # keys that dynamic ranges have no use for


class Search(Strict):
    """The space in which observers look for the best range."""

    steps: int = Field(
        16, ge=1, le=256, description="parts of each end; then as many between the neighbours of the best"
    )


class Activations(Strict):
    """What goes into layers becomes integers times a scale; the file has an edit for it."""

    bits: Annotated[ActivationBits | dict[str, ActivationBits] | Allocated, ByName, SELECTED] = Field(
        8,
        description="of the inputs of all layers, or by name pattern of the layers; recurrent ones when named; "
        "allocated: those of the layer's weights",
    )
    scheme: Literal["symmetric", "asymmetric"] = Field(
        "asymmetric", description="of values below 0; where there are none, integers are from 0 on for either"
    )
    range: Literal["static", "dynamic", "dynamic_row", "dynamic_token"] = Field(
        "static", description="static: from samples; dynamic: of each call, each sample or each vector, while it runs"
    )
    observer: Observer | None = Field(
        None,
        description="what decides a static range; default mse, the least squared error; auto takes the best of all for "
        "each value, by the outputs of its layers on samples that are kept apart",
    )
    samples: int | None = Field(
        None, ge=1, description=f"drawn from the training split, not augmented; default {SAMPLES}"
    )
    percentile: float | None = Field(
        None, ge=50, le=100, description="of the observer of that name: the part of the values in range; default 99.99"
    )
    search: Search | None = Field(None, description="default {steps: 16}")

    @model_validator(mode="after")
    def _has_effect(self) -> Activations:
        given = [key for key in OF_STATIC if getattr(self, key) is not None]
        if self.range != "static" and given:
            raise ValueError(f"{given[0]} has no effect with range: {self.range}, which looks at no samples; remove it")
        if self.percentile is not None and self.observer not in ("percentile", "auto"):
            raise ValueError("percentile goes with observer: percentile, or auto")
        if self.observer == "auto" and self.samples == 1:
            raise ValueError("observer: auto keeps samples apart to choose by; give more than samples: 1")
        return self

    def plan(self) -> Plan:
        """The same for the library."""
        from deepcompression.quantization.calibrate import Plan

        plan = Plan(self.scheme, self.range, self.observer or "mse", self.samples or SAMPLES)
        plan = plan if self.percentile is None else replace(plan, percentile=self.percentile)
        return plan if self.search is None else replace(plan, steps=self.search.steps)

    def sites(self, model: nn.Module) -> Collection[str]:
        """The inputs that are meant; StructureError where one that is named cannot be quantized."""
        from deepcompression.quantization.inputs import inputs_of

        return [str(site) for site in inputs_of(model, self.bits, self.range).sites]


def refuse_few(run: Run, activations: Activations | None) -> None:
    """Raises StructureError, before anything trains, where the training split has too few samples for these keys; None:
    for biases alone.
    """
    from deepcompression.quantization import calibrate

    plan = activations.plan() if activations else calibrate.Plan(samples=SAMPLES)
    calibrate.refuse_few(_context(run, plan.samples), plan, "activations" if activations else BIASES)


def on_grids(bench: Bench, before: Product, product: Product, activations: Activations) -> Product:
    """The product with an edit for what goes into its layers, found on the model as it was ``before`` weights were
    rounded; and what was done to each value.
    """
    from deepcompression.quantization.calibrate import calibrate
    from deepcompression.quantization.inputs import inputs_of

    assert product.state is not None
    model, plan = _model(bench, before), activations.plan()
    inputs = inputs_of(model, activations.bits, activations.range)
    with counted(bench.label, "activations: batches", _batches(plan.samples)) as tell:
        found = calibrate(model, _context(bench.run, plan.samples, bench.seed), inputs.sites, plan, tell)
    shown = {"method": "activations", "sites": _rows(found.found), "left": inputs.left}
    floating = [f"activations: {one}" for one in found.floating]
    report = {
        "sites": found.found,
        "calibration": {"samples": found.samples, "digest": found.digest},
        "methods": [*product.report.get("methods", ()), shown],
    }
    return replace(
        product,
        state={**product.state, **found.state()},
        edits=[*product.edits, *(one.record() for one in found.found)],
        report={**product.report, **report},
        notes=[
            *product.notes,
            *_told(found, plan),
            *floating,
            *(f"{name}: {why}" for name, why in inputs.left.items()),
        ],
    )


def biases_corrected(bench: Bench, before: Product, product: Product, activations: Activations | None) -> Product:
    """The product with biases that bring the mean of each layer's outputs back to where it was ``before``."""
    from deepcompression.network.state import plain_state
    from deepcompression.quantization.correct_bias import correct_bias

    assert bench.input is not None
    dense, quantized = _model(bench, before), _model(bench, product)
    samples = (activations.samples if activations else None) or SAMPLES
    context = _context(bench.run, samples, bench.seed)
    keep = {name: f"{name} must stay {words[0]}" for name, words in bench.input.structure.items()}
    compute = context.compute
    compute.place(quantized)
    batches = context.batches(BIASES, samples)
    with counted(bench.label, "bias: batches", _batches(samples)) as tell:
        feed = (tell(number) or batch for number, batch in enumerate(batches, 1))
        done = correct_bias(compute.place(dense), quantized, feed, context.forward, keep)
    return replace(
        product,
        state=plain_state(quantized),
        report={**product.report, "methods": [*product.report.get("methods", ()), {"method": "bias", "layers": done}]},
        notes=[*product.notes, *_told_biases(done)],
    )


def _model(bench: Bench, product: Product) -> nn.Module:
    assert bench.input is not None and product.state is not None
    model = bench.run.edited_model([*bench.input.edits, *product.edits])
    model.load_state_dict(dict(product.state))
    return model


def _context(run: Run, samples: int, seed: int = 0) -> Context:
    """Samples from all of the training split in small batches: what a forward needs in memory is by their size."""
    from deepcompression.data.splits import drawn
    from deepcompression.training.context import context_of

    problem = run.problem(math.ceil(samples / _batches(samples)))
    problem = replace(problem, train=drawn(problem.train, samples, seed))
    context = context_of(problem, run.compute(), seed)

    def again(count: int) -> Iterable[Any]:
        run.rewind()  # a loader that draws an order draws the same in each pass
        return context.batches("activations", count)

    return replace(context, samples=again)


def _batches(samples: int) -> int:
    return max(FEWEST, math.ceil(samples / BATCH))


def _told(found: Calibration, plan: Plan) -> Collection[str]:
    if plan.range != "static":
        return [f"activations: {len(found.found)} inputs on grids of range {plan.range}"]
    taken = Counter(one.observer for one in found.found)
    by = ", ".join(f"{name} {count}" for name, count in taken.items())
    digest = f", SHA-256 {found.digest[:8]}" if found.digest else ", which show no digest"
    return [f"activations: {len(found.found)} values on grids ({by}) by {found.samples} samples{digest}"]


def _told_biases(done: Collection[Corrected]) -> Collection[str]:
    """How many layers were moved back, and which were not, by reason."""
    moved, left = [one for one in done if not one.why], defaultdict(list)
    for one in done:
        if one.why:
            left[one.why].append(one.layer)
    most = max((one.shift for one in moved), default=0.0)
    told = f"bias: the outputs of {len(moved)} layers moved back, a channel by {most:.3g} at most"
    return [told, *(f"bias of {', '.join(names[:NAMED])}{_more(names)}: {why}" for why, names in left.items())]


def _more(names: Collection[str]) -> str:
    return f" and {len(names) - NAMED} more" if len(names) > NAMED else ""


def _rows(found: Collection[Calibrated]) -> list[dict[str, Any]]:
    """A row a site, for the report."""
    hidden = ("sites", "errors")
    rows = [
        (site, {name: value for name, value in vars(one).items() if name not in hidden and value is not None})
        for one in found
        for site in one.sites
    ]
    return [{"site": site, **row} for site, row in rows]
