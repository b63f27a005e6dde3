"""One page about one run: what became smaller, where the bytes went, what it cost, how to load the file."""

from __future__ import annotations

import keyword
import math
import os
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from deepcompression._atomic import written
from tasks.execution.run import Reference, Run
from tasks.execution.sources import versions
from tasks.machine.revision import git_revision
from tasks.report import figures, pareto
from tasks.report.bench import section_of
from tasks.report.losses import by_op, rows_in
from tasks.report.methods import method_tables
from tasks.report.templates import template
from tasks.report.words import compared, comparison_of, end_of
from tasks.secrets import masked

TEMPLATE = "report.html.j2"


class Bits(NamedTuple):
    """Bits for each weight that is not zero; None where there is none.

    ``fixed`` is with codes and gaps of fixed width, ``coded`` as they stand in the file.
    """

    fixed_weight: float | None
    coded_weight: float | None
    fixed_index: float | None
    coded_index: float | None
    entropy: float | None


@dataclass(frozen=True)
class Layer:
    """A tensor, or all of them, in the file."""

    name: str
    shape: str
    method: str
    weights: int
    kept: int
    bits: Bits
    overhead_bytes: int
    bytes: int
    ratio: float | None
    same_as: str | None = None

    @property
    def density(self) -> float | None:
        """The share of weights that are not zero."""
        return self.kept / self.weights if self.weights else None


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
    histograms, moments = figures.histograms(run, references, inspection)
    layers, total = layer_table(inspection, _fixed_width(file), summary)
    text = template(TEMPLATE).render(
        summary=summary,
        baseline=end_of(summary["baseline"]),
        final=end_of(summary["final"]),
        split=summary["final"].get("split", "test"),
        sentence=compared(summary),
        comparison=comparison_of(summary),
        bits_per_weight=references[-1].numbers["bits_per_weight"],
        stages=stages,
        longest=max(stage["worked"] or 0 for stage in stages) or 1,
        covered=covered_table(stages),
        methods=method_tables(stages),
        losses=by_op(rows_in(Path(summary["folder"]))),
        layers=layers,
        total=total,
        inspection=inspection,
        waterfall=figures.waterfall("waterfall", summary["dense_bytes"], stages),
        by_tensor=figures.bytes_by_tensor("tensors", inspection),
        histograms=histograms,
        shared=moments,
        curves=_curves(stages, str(summary["metric"])),
        verdict=summary.get("verdict"),
        budget=summary.get("budget"),
        tradeoff=pareto.tradeoff("tradeoff", summary["budget"]) if summary.get("budget") else "",
        promotion=summary.get("promotion"),
        exports=summary.get("exports") or [],
        speed=section_of(Path(summary["folder"])),
        recipe=_yaml(recipe),
        facts=_facts(run, summary),
        python=loading(recipe, run.python_path, file.name),
        file=file.name,
    )
    with written(path) as target:
        target.write(masked(text).encode("utf-8", "replace"))


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


def layer_table(
    coded: Mapping[str, Any], fixed: Mapping[str, Any], summary: Mapping[str, Any]
) -> tuple[list[Layer], Layer]:
    """A row a tensor, and the row of the whole file: its bytes are the rows' and the header's.

    Args:
        coded: what ``deepcompression.inspect`` says of the file.
        fixed: the same of the same tensors without Huffman coding.
        summary: has ``ratio``.
    """
    pairs = list(zip(coded["tensors"], fixed["tensors"], strict=True))
    layers = [_layer(after, before) for after, before in pairs]
    own = [(after, before) for after, before in pairs if after["same_as"] is None]
    kept = sum(_kept(after) for after, _ in own)
    total = Layer(
        "all tensors",
        "",
        "",
        sum(math.prod(after["shape"]) for after, _ in own),
        kept,
        _bits([(before, after) for after, before in own], kept),
        _overhead([after for after, _ in own]) + coded["header_bytes"],
        coded["file_bytes"],
        summary["ratio"],
    )
    return layers, total


def _layer(after: Mapping[str, Any], before: Mapping[str, Any]) -> Layer:
    from deepcompression.codec.dtypes import DTYPES

    kind, count = DTYPES[after["dtype"]], math.prod(after["shape"])
    dense = count * (min(kind.itemsize, 4) if kind.floating else kind.itemsize)
    return Layer(
        after["name"],
        " × ".join(map(str, after["shape"])) or "scalar",
        after["method"],
        count,
        _kept(after),
        _bits([(before, after)], 0 if after["same_as"] is not None else _kept(after)),
        _overhead([after]),
        after["bytes"],
        dense / after["bytes"] if after["bytes"] else None,
        after["same_as"],
    )


def _bits(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], kept: int) -> Bits:
    """Of (fixed, coded) descriptions of tensors that have ``kept`` non-zero weights together."""
    counts = [
        *(sum(pair[which][part] for pair in pairs) for part in ("values", "positions") for which in (0, 1)),
        sum(coded["entropy_bytes"] for _, coded in pairs),
    ]
    return Bits(*(8 * count / kept if kept else None for count in counts))


def _kept(tensor: Mapping[str, Any]) -> int:
    return round(float(tensor["density"]) * int(math.prod(tensor["shape"])))


def _overhead(tensors: Sequence[Mapping[str, Any]]) -> int:
    return sum(int(one["codebook"] + one["table"]) for one in tensors)


def _fixed_width(file: Path) -> dict[str, Any]:
    """What ``inspect`` says of the file's tensors without Huffman coding."""
    import deepcompression

    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "packed.dcz"
        deepcompression.save(deepcompression.load(file, raw=True), packed, coder="packed")
        return deepcompression.inspect(packed)


def _curves(stages: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    return [
        figures.curves(f"curve{place}", stage["stage"], stage["history"], metric, stage["best"])
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
