"""How much each tensor matters, one tracked task: it changes no weight, its result is the report."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.states import State

from tasks.console import bar
from tasks.execution.bench import Bench, Product
from tasks.execution.run import Reference, Run
from tasks.execution.stage import TASK, perform
from tasks.report.figures import sensitivity as picture
from tasks.secrets import sealed
from tasks.stages.prune import score_of
from tasks.storage.store import write_json

if TYPE_CHECKING:
    from deepcompression.allocation.sensitivity import Sensitivity


@task(name="sensitivity", **TASK)
@sealed
def sensitivity(
    run: Run, label: str, number: int | None, config: dict[str, Any], source: Reference
) -> State[Reference] | Reference:
    """Metric and loss of ``source`` when each tensor is pruned, and shared, alone; ``curves`` reads them.

    They also lie in the run's folder and in MLflow, as ``figures/sensitivity.json`` and ``.svg``.

    Args:
        run: the run.
        label: unique in the run.
        number: None, unless it is to be a step of the run.
        config: ``layers`` (patterns; None: what is pruned by default), ``densities`` (None: by equal factors),
            ``points``, ``down_to``, ``bits``, ``most_samples``, ``criterion``, ``score``; what is left out has the
            library's default.
        source: the stage whose weights are tried.
    """
    answer = perform(run, label, number, config, source, lambda bench: _work(bench, config), draws=False)
    _leave(run, answer if isinstance(answer, Reference) else answer.data)
    return answer


def curves(run: Run, reference: Reference) -> Sensitivity:
    """What the task measured, from the store."""
    from deepcompression.allocation.sensitivity import restored

    return restored(_report(run, reference))


def _report(run: Run, reference: Reference) -> dict[str, Any]:
    entry = run.store.find(reference.key)
    assert entry is not None
    report: dict[str, Any] = entry["report"]
    return report


def _work(bench: Bench, config: dict[str, Any]) -> Product:
    """Tensor by tensor, each kept when it is done, so that a killed task goes on with the next."""
    from deepcompression.allocation.sensitivity import Sensitivity
    from deepcompression.network.names import prunable, select

    assert bench.input is not None
    model = bench.model()
    patterns = config.get("layers")
    names = prunable(model) if patterns is None else select(model, patterns)
    parts = []
    with bar(bench.label, len(names)) as advance:
        for place, name in enumerate(names):
            parts.append(_one(bench, config, model, name, bench.folder / f"{place}.json"))
            advance(name)
    merged = Sensitivity(parts[0].base, parts[0].samples, tuple(one for part in parts for one in part.tensors))
    return Product(bench.state(), zeros=bench.input.zeros, shared=bench.input.shared, report=dataclasses.asdict(merged))


def _one(bench: Bench, config: dict[str, Any], model: Any, name: str, kept: Path) -> Sensitivity:
    from deepcompression.allocation import sensitivity as library

    if kept.exists():
        return library.restored(json.loads(kept.read_text()))
    found = library.sensitivity(
        model,
        bench.run.problem(),
        [name],
        densities=config.get("densities"),
        points=config.get("points") or library.STEPS,
        down_to=config.get("down_to") or library.LOWEST,
        bits=config.get("bits") or library.BITS,
        compute=bench.run.compute(),
        score=score_of(bench, config, model),
        most_samples=config.get("most_samples"),
    )
    write_json(kept, dataclasses.asdict(found))
    return found


def _leave(run: Run, reference: Reference) -> None:
    """The curves and their picture: in the run's folder and in MLflow."""
    report, folder = _report(run, reference), Path(run.folder) / "figures"
    write_json(folder / "sensitivity.json", report)
    picture(report, str(run.metric_object().name), folder / "sensitivity.svg")
    for name in ("sensitivity.json", "sensitivity.svg"):
        run.tracker.artifact(folder / name, "figures")
