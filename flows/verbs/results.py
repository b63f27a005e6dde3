"""Verbs about what runs left: compare, export, evaluate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.process import begin, guarded, print_json
from flows.verbs.options import Json, Overrides, Quiet, Runs, Uri, Verbose


def compare(
    run: Annotated[list[str] | None, typer.Argument(help="runs: folders, MLflow or Prefect ids")] = None,
    last: Annotated[int | None, typer.Option(min=1, help="the newest so many runs")] = None,
    name: Annotated[str | None, typer.Option(help="with --last: runs of this recipe name only")] = None,
    experiment: Annotated[str | None, typer.Option(help="the runs of an MLflow experiment")] = None,
    form: Annotated[str, typer.Option("--format", help="table, html, csv, latex or json")] = "table",
    layers: Annotated[
        bool, typer.Option("--layers", help="which layers lose it: each op beside the dense net's; table, csv or json")
    ] = False,
    tracking_uri: Uri = None,
    runs: Runs = "artifacts/runs",
    verbose: Verbose = False,
) -> None:
    """Compare runs: what differs in their recipes beside what differs in size and quality.

    The first run is what the others are compared with. Runs that differ in nothing but the seed become mean and spread.

    \b
    Examples:
      python -m flows compare --last 5
      python -m flows compare digits-20261121-083034-e980 digits-20261121-090000-11aa --format latex
      python -m flows compare --last 1 --layers
    """
    with guarded(verbose, False):
        from flows import history
        from flows.compare import compare as module

        uri = tracking_uri or history.default_uri()
        found = history.several(run or [], last, name, experiment, uri, runs)
        if layers:
            from flows.compare import layers as side

            form = history.one_of(form, side.FORMATS)
            tables, left = side.layers_of(found)
            print(side.render(tables, form), end="")
            print(*(f"left out: {one}" for one in left), sep="\n", end="\n" if left else "", file=sys.stderr)
            return
        compared = module.compare([module.read(folder) for folder in found])
        if form == "table":
            module.show(compared)
        else:
            print(module.render(compared, history.one_of(form, module.FORMATS)), end="")


def export(
    run: Annotated[
        str, typer.Argument(help="a finished run: its folder, an MLflow run id, or a Prefect id", show_default=False)
    ],
    to: Annotated[list[str], typer.Option(help="a format, such as onnx; repeatable", show_default=False)],
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="where samples are mappings: what the model takes, in order; repeatable"),
    ] = None,
    io: Annotated[
        str | None, typer.Option(help="of inputs and outputs: float, or integer (target onnx, of a model that rounds)")
    ] = None,
    tracking_uri: Uri = None,
    runs: Runs = "artifacts/runs",
    as_json: Annotated[bool, typer.Option("--json", help="print summary.json, alone, on stdout")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Write a finished run's file for other runtimes, and judge it there: bytes, accuracy, what differs.

    A recipe's key export does the same at the end of the run.

    \b
    Examples:
      python -m flows export digits-20261121-083034-e980 --to onnx
      python -m flows export digits-int8-20261121-090000-11aa --to onnx --io integer
    """
    with guarded(verbose, quiet):
        from deepcompression.export import TARGETS
        from flows import history
        from flows.runs import finished

        uri = tracking_uri or history.default_uri()
        for one in to:
            history.one_of(one, list(TARGETS))
        _ = io and history.one_of(io, ["float", "integer"])
        done = finished(history.find(run, uri, runs))  # what is wrong with it is told at once, before any server starts
        watchdog = begin(lambda summary: _tell(summary, as_json))
        from flows.exports import export_run

        result = export_run(str(done.folder), list(dict.fromkeys(to)), inputs, io)
        if code := watchdog.report(result):
            raise typer.Exit(code)


def evaluate(
    file: Annotated[Path, typer.Argument(help="a .dcz, a checkpoint, or what an export wrote", show_default=False)],
    recipe: Annotated[
        str, typer.Argument(help="YAML file: its model, data, step and metric are used", show_default=False)
    ],
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="validation, test or train")] = "validation",
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="of an export, where samples are mappings: what the model takes; repeatable"),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Judge a file by a recipe: metric and loss on a split, and a table of classes; nothing is logged.

    A run chooses by its validation split and reads the test split once; --split test reads it again.

    \b
    Examples:
      python -m flows evaluate artifacts/runs/digits-20261121-083034-e980/model.dcz conf/digits.yaml
      python -m flows evaluate model.onnx conf/digits.yaml --split test
    """
    with guarded(verbose, quiet):
        from flows import history
        from flows.evaluated import SPLITS, evaluated, show
        from flows.recipe import load as recipes
        from flows.recipe import merge
        from tasks.execution.warned import listen

        listen()
        parsed = recipes.load(recipe, merge.parse_overrides(overrides or []))
        result = evaluated(file, parsed, history.one_of(split, SPLITS), inputs)
        if as_json:
            print_json(result)
        else:
            show(result)


def _tell(summary: dict[str, Any], as_json: bool) -> None:
    from flows.exports import table
    from tasks.console import say

    if as_json:
        print_json(summary)
    else:
        say(table(summary))
