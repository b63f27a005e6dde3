"""``python -m flows``: the one workflow command line."""

from __future__ import annotations

import json
import signal
import sys
from typing import Annotated, Any

import typer

from flows.bench.verb import bench
from flows.process import begin, guarded, print_json, terminated
from tasks.root import ROOT

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Deep Compression of your PyTorch model as a tracked flow: one YAML in, one small .dcz file out.",
    epilog="Start with: python -m flows run conf/digits.yaml",
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key=value pairs, such as seed=3 or stages.prune.density=0.05", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON, alone, on stdout")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="print results and errors only")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="show Prefect's own log, and tracebacks")]
Uri = Annotated[
    str | None,
    typer.Option("--tracking-uri", help="MLflow server (else MLFLOW_TRACKING_URI, or artifacts/mlflow.db)"),
]
Runs = Annotated[str, typer.Option("--runs", help="the folder that runs lie in")]
StoreOption = Annotated[
    str, typer.Option("--store", help="the stage store: a folder, or a URL such as s3://bucket/store")
]
AIM_MISSED = 3  # exit code


app.command()(bench)


@app.callback()
def _root() -> None:
    """Keeps `run` a word of its own."""


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="YAML file (see conf/), or the URL of one", show_default=False)],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="print summary.json, alone, on stdout")] = False,
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
        from flows.recipe import load as recipes
        from flows.recipe import merge

        words = overrides or []
        changes = merge.parse_overrides(words)
        recipes.load(recipe, changes)  # a wrong recipe is told at once, before any server starts
        _compress(recipe, changes, recipe, words, as_json)


@app.command()
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
        recipes.load(again, changes)
        _compress(again, changes, f"{found.name} again", overrides or [], as_json)


@app.command()
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
        from flows.sweeps import sweep as sweeps
        from tasks import secrets

        changes = recipes.parse_overrides(overrides or [])
        sweeps.load(sweep, changes)
        watchdog = begin(lambda result: _print(result, as_json, sweep=True))
        try:
            result: dict[str, Any] = sweeps.sweep(sweep, secrets.aside(changes))
        except AimMissed as missed:
            result = missed.summary
        if code := watchdog.report(result):
            raise typer.Exit(code)


@app.command()
def serve(
    schedules: Annotated[list[str], typer.Argument(help="YAML files, or a folder of them", show_default=False)],
    verbose: Verbose = False,
) -> None:
    """Register schedules with the Prefect server and run what is due, until interrupted.

    \b
    Example:
      make servers                                        (in another terminal)
      python -m flows serve conf/schedules/nightly.yaml

    It finds the server of `make servers` in this clone by itself; another one is named by PREFECT_API_URL.
    """
    with guarded(verbose, False):
        from flows import schedules as module

        module.serve([module.load(path) for path in module.paths_of(schedules)])


@app.command()
def servers(
    prefect_port: Annotated[int, typer.Option(help="of Prefect's pages and API")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="of MLflow's pages and API")] = 5000,
    data: Annotated[str, typer.Option(help="folder of databases and logs")] = "artifacts",
    verbose: Verbose = False,
) -> None:
    """Start a Prefect server and an MLflow server on this machine (loopback only), until interrupted."""
    with guarded(verbose, False):
        from flows import servers as module

        signal.signal(signal.SIGTERM, terminated)
        try:
            module.run((ROOT / data).resolve(), prefect_port, mlflow_port)
        except KeyboardInterrupt:
            return


@app.command()
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


@app.command()
def store(
    where: StoreOption = "artifacts/store",
    older: Annotated[str | None, typer.Option(help="remove what was not used for so long, such as 30d")] = None,
    size: Annotated[
        str | None, typer.Option(help="remove what was used longest ago until it fits, such as 10GB")
    ] = None,
    gone: Annotated[bool, typer.Option("--gone", help="remove what no run in --runs has used")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only tell what would go")] = False,
    tracking_uri: Uri = None,
    runs: Runs = "artifacts/runs",
    verbose: Verbose = False,
) -> None:
    """Show what the stage store holds, and prune it by age, by size, or of runs that are gone.

    What a live run uses, what is leased, and what a champion was made from always stays.

    \b
    Examples:
      python -m flows store
      python -m flows store --older 30d --dry-run
    """
    with guarded(verbose, False):
        from flows import history, upkeep

        upkeep.show_store(where)
        if older or size or gone:
            uri = tracking_uri or history.default_uri()
            upkeep.clean(where, runs, older=older, size_=size, gone=gone, uri=uri, dry_run=dry_run)


@app.command()
def sync(
    run: Annotated[list[str] | None, typer.Argument(help="folders or names of runs; default: all")] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="the server, if not that of the run's recipe")] = None,
    runs: Runs = "artifacts/runs",
    store: StoreOption = "artifacts/store",
    verbose: Verbose = False,
) -> None:
    """Send to MLflow what a server that was away did not get; nothing is sent twice.

    What other machines left in a shared store goes to MLFLOW_TRACKING_URI, or to a server that runs of yours name;
    anywhere else only with --tracking-uri.
    """
    with guarded(verbose, False):
        from deepcompression.errors import RunError
        from flows import upkeep

        failures = upkeep.sync(run or [], runs, store, tracking_uri)
        if failures:
            raise RunError(failures[0] + (f" (and {len(failures) - 1} more)" if failures[1:] else ""))


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors (conf/recipe.schema.json)."""
    from flows.recipe.schema import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))


def _compress(
    recipe: str | dict[str, Any], overrides: dict[str, Any], title: str, words: list[str], as_json: bool
) -> None:
    watchdog = begin(lambda summary: _print(summary, as_json))
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


def _print(result: dict[str, Any], as_json: bool, *, sweep: bool = False) -> None:
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


if __name__ == "__main__":
    app(prog_name="python -m flows")
