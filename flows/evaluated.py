"""A file judged on a split: a ``.dcz``, a checkpoint, or an export in its own runtime; with a table of classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepcompression.errors import DataError, ExportError, WeightsError
from deepcompression.export import TARGETS, target_of
from flows import checked
from flows.recipe.schema import Recipe
from tasks.execution.run import Run
from tasks.execution.settings import Weights
from tasks.report.answers import class_rows

if TYPE_CHECKING:
    from torch import nn

SPLITS = ("validation", "test", "train")


class Answers:
    """A metric that only keeps what was answered, and what was right, where answers are classes."""

    name = "answers"
    higher_is_better = True

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begins anew."""
        self.found: list[Any] = []
        self.right: list[Any] = []

    def update(self, outputs: Any, targets: Any) -> None:
        """Keeps a batch: logits (n, classes) and classes (n,); nothing of others."""
        import torch

        are_tensors = isinstance(outputs, torch.Tensor) and isinstance(targets, torch.Tensor)
        if are_tensors and outputs.ndim == 2 and targets.ndim == 1 and not targets.is_floating_point():
            self.found += outputs.argmax(1).tolist()
            self.right += targets.tolist()

    def compute(self) -> float:
        """Nothing."""
        return 0.0


def evaluated(file: Path, parsed: Recipe, split: str, inputs: list[str] | None = None) -> dict[str, Any]:
    """Metric and loss of a file on a split: ``metric``, ``value``, ``loss``, ``total``, ``correct``; ``classes``, where
    answers are such: ``class``, ``precision``, ``recall``, ``f1``, ``samples`` of each; ``higher_is_better``.

    Args:
        file: a ``.dcz``, weights of any other kind, or what an export wrote.
        parsed: the recipe, whose model, data, step and metric are used.
        split: train, validation or test.
        inputs: of an export, where samples are mappings: what the model takes, in order.

    Raises:
        InputError: the file is missing or does not fit, or the recipe's model, data, step or metric do not work.
        ExportError: the export's runtime is not on this machine, or takes no such samples.
    """
    from deepcompression.training.device import Compute
    from deepcompression.training.evaluate import evaluate

    if not file.exists():
        raise WeightsError(f"{file.resolve()}: no such file")
    run = checked.first_run(parsed)
    run.ready()
    samples = getattr(run.splits(), split)
    if samples is None:
        raise DataError(f"data.factory {parsed.data.factory}: has no {split} split")
    problem, target = run.problem(), target_of_file(file)
    model = _in_runtime(run, target, file, inputs) if target else _decoded(run, file)
    compute = Compute("cpu") if target else replace(run.compute(), evaluate_precision="float32")
    found = evaluate(model, samples, problem.step, problem.metric, compute)
    answers = Answers()
    evaluate(model, samples, problem.step, answers, compute)
    return {
        "file": str(file.resolve()),
        "bytes": _bytes(file),
        "runtime": target or "PyTorch",
        "recipe": parsed.name,
        "split": split,
        "metric": str(problem.metric.name),
        "value": found.metric,
        "higher_is_better": bool(problem.metric.higher_is_better),
        "loss": found.loss,
        "total": found.total,
        "correct": found.correct,
        "classes": class_rows(answers.right, answers.found, run.splits().classes),
    }


def target_of_file(file: Path) -> str | None:
    """The export target that writes files of this name; None of weights."""
    names = {name: str(target_of(name).FILE) for name in TARGETS}
    whole = [name for name, one in names.items() if one == file.name]
    ends = [name for name, one in names.items() if "." in one and file.name.endswith(one.removeprefix("model"))]
    of_c = ["c"] if file.is_dir() and (file / "network.c").exists() else []
    return next(iter([*whole, *sorted(ends, key=lambda name: -len(names[name])), *of_c]), None)


def _decoded(run: Run, file: Path) -> nn.Module:
    from deepcompression.formats.kinds import Kind, kind_of
    from deepcompression.torch import load_into
    from tasks.stages.baseline import read

    if file.is_file() and kind_of(file) == Kind.DCZ:
        return load_into(run.blank_model(), file)
    given = run.model.weights or Weights(path=str(file))
    return read(run, given.model_copy(update={"path": str(file)}))[0]


def _in_runtime(run: Run, target: str, file: Path, inputs: list[str] | None) -> nn.Module:
    import torch

    from deepcompression.export.ran import InRuntime
    from tasks.execution.example import example_of

    session = target_of(target).load(file, torch.get_num_threads())
    if session is None:
        raise ExportError(f"{file.resolve()}: the runtime of {target} is not on this machine")
    example = example_of(run, inputs, key="--input", training=True)
    sample = [torch.from_numpy(one) for one in (example.values() if isinstance(example, dict) else [example])]
    return InRuntime(session, run.blank_model(), sample)


def _bytes(file: Path) -> int:
    return sum(one.stat().st_size for one in ([file] if file.is_file() else file.rglob("*")) if one.is_file())


def show(result: Mapping[str, Any]) -> None:
    """Prints the table of classes, and the result."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if result["classes"]:
        table = Table(title=f"{result['recipe']}, {result['split']}", title_justify="left")
        table.add_column("class", overflow="fold")
        for heading in ("precision", "recall", "F1", "samples"):
            table.add_column(heading, justify="right")
        for row in result["classes"]:
            cells = (f"{row[name]:.1%}" for name in ("precision", "recall", "f1"))
            table.add_row(row["class"], *cells, f"{row['samples']:,}")
        console.print(table, markup=False)
    right = (
        "" if result["correct"] is None else f" ({result['total'] - result['correct']:,} errors in {result['total']:,})"
    )
    console.print(
        f"{result['split']} {result['metric']} {result['value']:.4f}{right}, loss {result['loss']:.4g}; "
        f"{result['file']}, {result['bytes']:,} bytes, in {result['runtime']}",
        soft_wrap=True,
        markup=False,
    )
