"""``python -m flows``: the one workflow command line."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import typer

from deepcompression.errors import one_line
from flows.watchdog import AGAIN, Terminated, Watchdog
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
PREFECT_SECONDS = 15.0


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
    with _guarded(verbose, quiet):
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
    with _guarded(verbose, quiet):
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
    with _guarded(verbose, quiet):
        from deepcompression.errors import AimMissed
        from flows.recipe import merge as recipes
        from flows.sweeps import sweep as sweeps
        from tasks import secrets

        changes = recipes.parse_overrides(overrides or [])
        sweeps.load(sweep, changes)
        watchdog = _begin(lambda result: _print(result, as_json, sweep=True))
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
    with _guarded(verbose, False):
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
    with _guarded(verbose, False):
        from flows import servers as module

        signal.signal(signal.SIGTERM, _terminated)
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
    """
    with _guarded(verbose, False):
        from flows import history
        from flows.compare import compare as module

        uri = tracking_uri or history.default_uri()
        found = history.several(run or [], last, name, experiment, uri, runs)
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
    with _guarded(verbose, False):
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
    with _guarded(verbose, False):
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


@contextlib.contextmanager
def _guarded(verbose: bool, quiet: bool) -> Iterator[None]:
    """What every verb shares: quiet libraries, and every error as one line with its exit code."""
    from tasks import secrets

    _settings(verbose)
    if quiet:
        from tasks import console

        console.quiet()
    with secrets.terminal():
        try:
            yield
        except KeyboardInterrupt as told:
            by_signal = isinstance(told, Terminated)
            _stop(143 if by_signal else 130, f"stopped: {'terminated' if by_signal else 'interrupted'}; {AGAIN}")
        except typer.Exit:
            raise
        except Exception as error:
            _fail(secrets.without_secrets(error), verbose)


def _begin(tell: Callable[[Any], None]) -> Watchdog:
    """Before a flow: nothing will hold it up when it is told to end, what earlier ones left running is ended.

    Args:
        tell: shows what came out; the exit code is 0, or that of the ``typer.Exit`` that it raises.
    """
    from flows import watchdog

    def code_of(result: Any) -> int:
        try:
            tell(result)
        except typer.Exit as stopped:
            return int(stopped.exit_code)
        return 0

    started = watchdog.start(code_of)
    _end_orphans()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with _prefect():  # every run needs these, and importing them takes as long as a server's start
        import mlflow  # noqa: F401
        import torch  # noqa: F401

        import flows.compress  # noqa: F401
    return started


@contextlib.contextmanager
def _prefect() -> Iterator[None]:
    """A Prefect server that is named and away is told at once; where none is named, one is there after the block."""
    from prefect.settings import get_current_settings

    from deepcompression.errors import RunError
    from flows import servers
    from tasks.secrets import masked
    from tasks.upkeep.liveness import prefect_answers

    settings = get_current_settings()
    if settings.api.url is None and settings.server.ephemeral.enabled:
        with servers.temporary():
            yield
        return
    if (url := settings.api.url) and not prefect_answers(PREFECT_SECONDS):
        raise RunError(
            f"no Prefect server answers at {masked(url)}: start it, or unset PREFECT_API_URL (runs then start one)"
        )
    yield


def _compress(
    recipe: str | dict[str, Any], overrides: dict[str, Any], title: str, words: list[str], as_json: bool
) -> None:
    watchdog = _begin(lambda summary: _print(summary, as_json))
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
        _print_json(result)
    else:
        (table.show_sweep if sweep else table.show)(result)
    if missed(result):
        if as_json or sweep:  # a run's table begins with it
            print(told(result["verdict"]), file=sys.stderr)
        raise typer.Exit(AIM_MISSED)


def _print_json(value: Any) -> None:
    from tasks import secrets
    from tasks.storage.store import as_json

    print(as_json(secrets.hidden(value)), file=secrets.unmasked_stdout())


def _settings(verbose: bool) -> None:
    """Prefect without a server: quiet, its database beside the runs, time enough to start. What you set stands."""
    artifacts = ROOT / "artifacts"
    os.environ.setdefault("PREFECT_API_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{artifacts}/prefect.db")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
        os.environ.setdefault("PREFECT_INTERNAL_LOGGING_LEVEL", "CRITICAL")
        logging.raiseExceptions = False  # a server that goes away would fill the screen with log lines not delivered
    artifacts.mkdir(exist_ok=True)
    if "PREFECT_API_URL" not in os.environ and (artifacts / "servers.json").exists():
        from flows.servers import running_prefect

        url = running_prefect(artifacts)
        os.environ.update({"PREFECT_API_URL": url} if url else {})


def _end_orphans() -> None:
    """Ends temporary Prefect servers of ours whose run was killed hard: Prefect leaves them running for ever."""
    import psutil

    ours = os.environ["PREFECT_API_DATABASE_CONNECTION_URL"]
    for process in psutil.process_iter(["cmdline", "ppid"]):
        try:
            server = "prefect.server.api.server:create_app" in " ".join(process.info["cmdline"] or ())
            parent = process.parent() if server else None
            orphan = server and (parent is None or parent.pid == 1 or parent.name() in ("systemd", "init"))
            settings = process.environ() if orphan else {}
            temporary = settings.get("PREFECT__SERVER_EPHEMERAL") == "1"  # not one that somebody put in the background
            if temporary and settings.get("PREFECT_API_DATABASE_CONNECTION_URL") == ours:
                process.terminate()
        except psutil.Error:
            continue


def _terminated(*_: object) -> None:
    raise Terminated


def _fail(error: BaseException, verbose: bool) -> None:
    from deepcompression.errors import InputError

    code = 2 if isinstance(error, InputError) else 1
    if verbose:
        _stop(code, "".join(traceback.format_exception(error)).rstrip())
    if type(error).__module__.partition(".")[0] in ("httpx", "httpcore"):
        print(f"error: Prefect's server does not answer any more ({error}); {AGAIN}", file=sys.stderr, flush=True)
        os._exit(1)  # Prefect would try for a minute to deliver its events
    known = type(error).__module__.startswith("deepcompression.")
    text = one_line(error) or type(error).__name__
    kind = "" if known else f"{type(error).__name__}: "
    hint = "" if known else " (run again with -v for the traceback)"
    _stop(code, f"error: {kind}{text}{hint}")


def _stop(code: int, message: str) -> None:
    from flows import watchdog

    print(*map(_printable, message.split("\n")), sep="\n", file=sys.stderr, flush=True)  # a traceback has many lines
    watchdog.leave_soon(code)
    raise typer.Exit(code)


def _printable(message: str) -> str:
    """A message may quote what a server or a file says: no sequence in it reaches the terminal."""
    return "".join(one if one.isprintable() else "?" for one in message)


if __name__ == "__main__":
    app(prog_name="python -m flows")
