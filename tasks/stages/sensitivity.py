"""How much each tensor matters: it changes no weight, its result is the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tasks.console import bar
from tasks.execution.bench import Bench, Product
from tasks.execution.pruned_by import Criterion
from tasks.execution.run import Reference, Run
from tasks.execution.scores import score_of
from tasks.execution.settings import Factory, Stage
from tasks.report.sensitivity import sensitivity as picture
from tasks.storage.store import write_json

if TYPE_CHECKING:
    from deepcompression.allocation.sensitivity import Sensitivity


class Settings(Stage):
    """What is tried; what is None has the library's default.

    ``layers``: patterns (None: what is pruned by default); ``densities``: None is ``points`` of them by equal factors;
    ``every``: of tensors in the order of their size every so many-th is tried, the others are taken to be as the one
    that is nearest in size.
    """

    draws: ClassVar[bool] = False

    stage: Literal["sensitivity"]
    layers: list[str] | None = None
    densities: list[float] | None = None
    points: int | None = None
    down_to: float | None = None
    bits: list[int] | None = None
    most_samples: int | None = None
    every: int = 1
    criterion: Criterion = "magnitude"
    score: Factory | None = None


def curves(run: Run, reference: Reference) -> Sensitivity:
    """What the task measured, from the store."""
    from deepcompression.allocation.sensitivity import restored

    return restored(_report(run, reference))


def _report(run: Run, reference: Reference) -> dict[str, Any]:
    entry = run.store.find(reference.key)
    assert entry is not None
    report: dict[str, Any] = entry["report"]
    return report


def work(bench: Bench, settings: Settings) -> Product:
    """Metric and loss when each tensor is pruned, and shared, alone; ``curves`` reads them.

    Tensor by tensor, each kept when it is done, so that a killed task goes on with the next.
    """
    from deepcompression.allocation.sensitivity import Sensitivity, borrowed
    from deepcompression.network.names import parameters, prunable, select

    assert bench.input is not None
    model = bench.model()
    names = prunable(model) if settings.layers is None else select(model, settings.layers)
    sizes = {name: one.numel() for name, one in parameters(model).items()}
    chosen = set(sorted(names, key=lambda name: -sizes[name])[:: settings.every])
    tried = [name for name in names if name in chosen]
    parts = []
    with bar(bench.label, len(tried)) as advance:
        for place, name in enumerate(tried):
            parts.append(_one(bench, settings, model, name, bench.folder / f"{place}.json"))
            advance(name)
    found = [one for part in parts for one in part.tensors]
    others = borrowed(found, model, names) if found else []
    merged = Sensitivity(parts[0].base, parts[0].samples, (*found, *others))
    told = f"{len(others)} of {len(names)} tensors were not tried: they are taken to be as those nearest in size"
    return Product(bench.state(), selected=(), report=dataclasses.asdict(merged), notes=[told] if others else [])


def _one(bench: Bench, settings: Settings, model: Any, name: str, kept: Path) -> Sensitivity:
    from deepcompression.allocation import sensitivity as library

    if kept.exists():
        return library.restored(json.loads(kept.read_text()))
    found = library.sensitivity(
        model,
        bench.run.problem(),
        [name],
        densities=settings.densities,
        points=settings.points or library.STEPS,
        down_to=settings.down_to or library.LOWEST,
        bits=settings.bits or library.BITS,
        compute=bench.run.compute(),
        score=score_of(bench, settings, model),
        most_samples=settings.most_samples,
    )
    write_json(kept, dataclasses.asdict(found))
    return found


def leave(run: Run, reference: Reference) -> None:
    """The curves and their picture, in the run's folder and in MLflow: ``figures/sensitivity.json`` and ``.svg``."""
    report, folder = _report(run, reference), Path(run.folder) / "figures"
    write_json(folder / "sensitivity.json", report)
    picture(report, str(run.metric_object().name), folder / "sensitivity.svg")
    for name in ("sensitivity.json", "sensitivity.svg"):
        run.tracker.artifact(folder / name, "figures")
