"""One page about one run: what became smaller, where the bytes went, what it cost, how to load the file."""

from __future__ import annotations

import keyword
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deepcompression._atomic import written
from tasks.execution.run import Reference, Run
from tasks.execution.sources import versions
from tasks.machine.revision import git_revision
from tasks.report import figures, pareto
from tasks.report.answers import answers_of, shown
from tasks.report.bench import bench_of, section_of
from tasks.report.beside import bars
from tasks.report.drawn import network_of
from tasks.report.layers import fixed_width, layer_table
from tasks.report.links import links_of
from tasks.report.losses import by_op, rows_in
from tasks.report.methods import method_tables
from tasks.report.outcome import outcomes_of
from tasks.report.templates import template
from tasks.report.words import compared, comparison_of, end_of, lasted
from tasks.secrets import masked

TEMPLATE = "report.html.j2"


def write_report(
    run: Run, references: Sequence[Reference], summary: Mapping[str, Any], recipe: Mapping[str, Any], path: Path
) -> None:
    """Writes a finished run's page: one HTML file that loads nothing.

    Args:
        run: the run; its file is ``summary["file"]``.
        references: baseline, every stage, encode last.
        summary: the run's summary; ``promotion`` in it is shown where present.
        recipe: the recipe as stored, secrets masked.
        path: where the page goes; its folder exists.

    Raises:
        StorageError: the page cannot be written.
        FormatError: the run's file is damaged.
    """
    import deepcompression

    file = Path(summary["file"])
    inspection = deepcompression.inspect(file)
    entries = [run.store.find(reference.key) or {} for reference in references]
    stages = [_stage(reference, entry) for reference, entry in zip(references, entries, strict=True)]
    folder = Path(summary["folder"])
    histograms, moments = figures.histograms(run, references, inspection)
    layers, total = layer_table(inspection, fixed_width(file), summary)
    losses, covered = by_op(rows_in(folder)), covered_table(stages)
    answers = answers_of(folder, summary.get("classes"))
    text = template(TEMPLATE).render(
        summary=summary,
        outcomes=outcomes_of(summary),
        when=when(summary),
        links=links_of(run, summary),
        rerun=f"python -m flows rerun {folder.name}",
        bars=bars(summary),
        answers=shown(answers) if answers else None,
        network=network_of(folder, layers, losses, covered),
        bench=bench_of(folder),
        baseline=end_of(summary["baseline"]),
        final=end_of(summary["final"]),
        split=summary["final"].get("split", "test"),
        sentence=compared(summary),
        comparison=comparison_of(summary),
        bits_per_weight=references[-1].numbers["bits_per_weight"],
        stages=stages,
        validated=next((stage["validated"] for stage in stages if stage["validated"]), None),
        longest=max(stage["worked"] or 0 for stage in stages) or 1,
        covered=covered,
        methods=method_tables(stages),
        losses=losses,
        matrices=sorted((one for one in layers if not one.is_vector), key=lambda one: -one.bytes),
        vectors=sorted((one for one in layers if one.is_vector), key=lambda one: -one.bytes),
        total=total,
        inspection=inspection,
        waterfall=figures.waterfall("waterfall", summary["dense_bytes"], stages),
        by_tensor=figures.bytes_by_tensor("tensors", inspection),
        histograms=histograms,
        shared=moments,
        curves=_curves(stages, str(summary["metric"])),
        budget=summary.get("budget"),
        tradeoff=pareto.tradeoff("tradeoff", summary["budget"]) if summary.get("budget") else "",
        promotion=summary.get("promotion"),
        exports=summary.get("exports") or [],
        speed=section_of(folder),
        recipe=_yaml(recipe),
        facts=_facts(run, summary),
        python=loading(recipe, run.python_path, file.name),
        file=file.name,
    )
    with written(path) as target:
        target.write(masked(text).encode("utf-8", "replace"))


def when(summary: Mapping[str, Any]) -> str:
    """When a run began, and how long it took; what is not known is left out."""
    began, seconds = summary.get("started"), summary.get("seconds")
    told = [time.strftime("%Y-%m-%d %H:%M", time.localtime(began))] if began else []
    return ", ".join([*told, *([lasted(seconds)] if seconds is not None else [])])


def _stage(reference: Reference, entry: Mapping[str, Any]) -> dict[str, Any]:
    numbers = reference.numbers
    return {
        "stage": numbers["stage"],
        "size_bytes": numbers["size_bytes"],
        "ratio": numbers["compression_ratio"],
        "density": numbers["density"],
        "model_density": numbers.get("model_density"),
        "bits_per_weight": numbers["bits_per_weight"],
        "metric": numbers["val_metric"],
        "counted": numbers.get("val_total") if numbers.get("val_correct") is not None else None,
        "validated": numbers.get("val_total"),
        "seconds": numbers["seconds"],
        "worked": numbers.get("worked_seconds"),
        "reused": numbers["cached"],
        "notes": entry.get("notes") or [],
        "history": entry.get("history") or [],
        "best": (entry.get("report") or {}).get("best_epoch"),
        "covered": (entry.get("report") or {}).get("covered") or [],
        "methods": (entry.get("report") or {}).get("methods") or [],
    }


def covered_table(stages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a matrix: which stages worked on it, and which left it alone, by reason; and vectors left alone, summed up.

    Args:
        stages: each with ``stage``, its label, and ``covered``, rows of ``network.coverage.Covered``.
    """
    rows: dict[str, dict[str, Any]] = {}
    for stage in stages:
        total = sum(one["bytes"] for one in stage["covered"])
        for one in stage["covered"]:
            if one["done"] and not one["matrix"]:
                continue
            plain = {**one, "share": one["bytes"] / total if total else 0.0, "done": [], "left": {}}
            row = rows.setdefault(one["tensor"], plain)
            (row["done"] if one["done"] else row["left"].setdefault(one["reason"], [])).append(stage["stage"])
    return list(rows.values())


def _curves(stages: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    return [
        figures.curves(f"curve{place}", stage["stage"], stage["history"], metric, stage["best"], stage["counted"])
        for place, stage in enumerate(stages)
        if stage["history"]
    ]


def loading(recipe: Mapping[str, Any], python_path: Sequence[str], file: str) -> str:
    """Python lines that load the file into the recipe's model."""
    model = recipe["model"]
    if isinstance(model, str):  # a secret as a whole
        return f"# model: {model}"
    module, _, attribute = str(model["factory"]).partition(":")
    kwargs = model.get("kwargs") or {}
    plain = isinstance(kwargs, Mapping) and all(name.isidentifier() and not keyword.iskeyword(name) for name in kwargs)
    arguments = ", ".join(f"{name}={value!r}" for name, value in kwargs.items()) if plain else f"**{kwargs!r}"
    lines = ["import sys", "", f"sys.path[:0] = {list(python_path)!r}"] if python_path else []
    return "\n".join(
        [
            *lines,
            "from deepcompression.torch import load_into",
            f"from {module} import {attribute.partition('.')[0]}",
            "",
            f"model = load_into({attribute}({arguments}), {file!r}).eval()",
        ]
    )


def _facts(run: Run, summary: Mapping[str, Any]) -> dict[str, str]:
    """Versions, machine, and where the run stands elsewhere."""
    import torch

    import deepcompression

    facts = {
        **versions(),
        "deepcompression": deepcompression.__version__,
        "git revision": git_revision(),
        "system": platform.platform(),
        "device": _device(run),
        "threads": f"{torch.get_num_threads()} of {os.cpu_count()} cores",
        "MLflow run": str(summary.get("mlflow_run_id") or ""),
        "MLflow": str(summary.get("tracking_uri") or ""),
        "Prefect flow run": str(summary.get("prefect_flow_run_id") or ""),
        "folder": str(summary.get("folder") or ""),
    }
    return {name: value for name, value in facts.items() if value}


def _device(run: Run) -> str:
    import torch

    device = run.compute().resolved()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return f"{device}, {name}; {run.precision}"


def _yaml(recipe: Mapping[str, Any]) -> str:
    import yaml

    return str(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))
