"""Verbs that compress: run, rerun, sweep."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from flows.process import begin, guarded, print_json
from flows.verbs.options import Json, Overrides, Quiet, Runs, Uri, Verbose

AIM_MISSED = 3  # exit code


def run(
    recipe: Annotated[str, typer.Argument(help="YAML file (see conf/), or the URL of one", show_default=False)],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="print summary.json, alone, on stdout")] = False,
    rehearsal: Annotated[
        bool, typer.Option("--rehearsal/--no-rehearsal", help="walk through the stages first, two seconds at most")
    ] = True,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run a recipe: train or load, compress, encode, verify the file, log to MLflow.

    Started again after an interruption, it goes on from the last epoch; finished stages are never done twice.

    Exit codes: 0 done; 2 the input is wrong, told before anything trains; 3 the file misses its budget, max_metric_loss
    or min_ratio; 130 after Ctrl-C, 143 after SIGTERM; 1 everything else.

    \b
    Examples:
      python -m flows run conf/digits.yaml
      python -m flows run conf/lenet-5.yaml seed=3 stages.prune.density.fc1=0.05
      python -m flows run conf/digits.yaml 'seeds=[0,1,2]' --json
    """
    with guarded(verbose, quiet):
        from flows.recipe import merge

        words = overrides or []
        changes = merge.parse_overrides(words)
        _compress(recipe, changes, recipe, words, as_json, rehearsal)


def rerun(
    run: Annotated[
        str, typer.Argument(help="a run's folder, an MLflow run id, or a Prefect flow-run id", show_default=False)
    ],
    overrides: Overrides = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="package.module, or package.module:callable, that a server's recipe may call; repeatable"),
    ] = None,
    allow_folder: Annotated[
        list[str] | None, typer.Option(help="a folder whose data and weights a server's recipe may read; repeatable")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="a local recipe: its python_path, store, runs, tracking and promote are used")
    ] = None,
    tracking_uri: Uri = None,
    runs: Runs = "artifacts/runs",
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run the stored recipe of an earlier run again, with something changed; unchanged stages are reused.

    A recipe names code and files. One that comes from a tracking server, from Prefect or by a URL, not from a folder of
    this machine, is read as plain data: no ${...} but references within itself. It may call the factories of
    deepcompression.models and deepcompression.data, torch's optimizers, schedulers and plain layers, and models that
    torchvision and timm list themselves, untrained. It reads data and weights (.safetensors, .dcz) below
    DEEPCOMPRESSION_DATA and the folders of --allow-folder only. Where results go and what is promoted is yours.

    --allow package.module lets it call whatever is defined in that module or below it, --allow package.module:callable
    one callable, with arguments of the recipe's choice: allow code that you would let a stranger call. The packages in
    the python_path of --recipe are allowed so. What you give as key=value is not judged.

    \b
    Examples:
      python -m flows rerun digits-20261121-083034-e980 stages.share.bits.default=3
      python -m flows rerun 7a8f4b6a33544107b1cb78aa346aeb2e seed=2 --tracking-uri http://mlflow:5000
    """
    with guarded(verbose, quiet):
        from flows import history
        from flows.recipe import load as recipes
        from flows.recipe import merge

        changes = merge.parse_overrides(overrides or [])
        found = history.find(run, tracking_uri or history.default_uri(), runs)
        ours = recipes.load(recipe) if recipe else None
        again = history.admit(found, allow or [], ours, changes, allow_folder or [])
        _compress(again, changes, f"{found.name} again", overrides or [], as_json)


def sweep(
    sweep: Annotated[str, typer.Argument(help="YAML file, see conf/sweeps/", show_default=False)],
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run many variants of a recipe, on several processes or a Dask cluster, and show which are worth it.

    Started again after an interruption it goes on; a trial that fails is reported, the others go on. Variants are
    chosen by size and validation; the test split is read for the chosen ones only.

    \b
    Examples:
      python -m flows sweep conf/sweeps/digits.yaml
      python -m flows sweep conf/sweeps/digits.yaml workers=4 runner=dask
    """
    with guarded(verbose, quiet):
        from deepcompression.errors import AimMissed
        from flows.recipe import merge as recipes
        from flows.sweeps import checked
        from tasks import secrets

        changes = recipes.parse_overrides(overrides or [])
        plan = checked.load(sweep, changes)
        watchdog = begin(lambda result: tell(result, as_json, sweep=True), lambda: checked.refuse(plan))
        from flows.sweeps import sweep as sweeps

        try:
            result: dict[str, Any] = sweeps.sweep(sweep, secrets.aside(changes))
        except AimMissed as missed:
            result = missed.summary
        if code := watchdog.report(result):
            raise typer.Exit(code)


def _compress(
    recipe: str | dict[str, Any],
    overrides: dict[str, Any],
    title: str,
    words: list[str],
    as_json: bool,
    rehearsed: bool = True,
) -> None:
    from flows.recipe import load as recipes

    recipes.load(recipe, overrides)  # a wrong key is told at once, before torch is imported
    watchdog = begin(lambda summary: tell(summary, as_json), lambda: _refuse(recipe, overrides, rehearsed))
    from rich.markup import escape

    from deepcompression.errors import AimMissed
    from flows.compress import compress
    from tasks import console, secrets

    console.say(f"[bold]{escape(title)}[/]  {escape(' '.join(words))}".rstrip())
    try:
        result: dict[str, Any] = compress(secrets.aside(recipe), secrets.aside(overrides))
    except AimMissed as missed:
        result = missed.summary
    if code := watchdog.report(result):
        raise typer.Exit(code)


def _refuse(recipe: str | dict[str, Any], overrides: dict[str, Any], rehearsed: bool) -> None:
    from flows.checked import refuse_recipe

    refuse_recipe(recipe, overrides)
    if rehearsed:
        from flows.rehearsed import refuse_rehearsed

        refuse_rehearsed(recipe, overrides)


def tell(result: dict[str, Any], as_json: bool, *, sweep: bool = False) -> None:
    """The result of a run or a sweep; exit code 3 where it misses what was asked for (a sweep: every trial of it)."""
    from flows import table
    from tasks.verdict import missed, told

    if as_json:
        print_json(result)
    else:
        (table.show_sweep if sweep else table.show)(result)
    if missed(result):
        if as_json or sweep:  # a run's table begins with it
            print(told(result["verdict"]), file=sys.stderr)
        raise typer.Exit(AIM_MISSED)
