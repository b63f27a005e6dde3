"""``python -m flows``: the one workflow command line."""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

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


@app.callback()
def _root() -> None:
    """Keeps `run` a word of its own."""


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="YAML file (see conf/), or the URL of one", show_default=False)],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="print summary.json, alone, on stdout")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print results and errors only")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="show Prefect's own log, and tracebacks")] = False,
) -> None:
    """Run a recipe: train or load, compress, encode, verify the file, log to MLflow.

    Started again after an interruption, it goes on from the last epoch; finished stages are never done twice.

    \b
    Examples:
      python -m flows run conf/digits.yaml
      python -m flows run conf/lenet-5.yaml seed=3 stages.prune.density.fc1=0.05
      python -m flows run conf/digits.yaml 'seeds=[0,1,2]' --json
    """
    _settings(verbose)
    try:
        summary = _run(recipe, overrides or [], quiet, verbose)
    except KeyboardInterrupt:
        _stop(
            1,
            "stopped: interrupted; finished stages and the last epoch are kept: start the same command again to go on",
        )
    except Exception as error:
        _fail(error, verbose)
    if as_json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
    else:
        from flows.table import show

        show(summary)


@app.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors (conf/recipe.schema.json)."""
    from flows.schema import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))


def _run(recipe: str, words: list[str], quiet: bool, verbose: bool) -> dict[str, Any]:
    from flows import recipe as recipes

    overrides = recipes.parse_overrides(words)
    recipes.load(recipe, overrides)  # a wrong recipe is told at once, before any server starts
    signal.signal(signal.SIGTERM, _terminated)
    _end_orphans()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    from flows.compress import compress
    from tasks import console

    if quiet:
        console.quiet()
    console.say(f"[bold]{recipe}[/]  {' '.join(words)}")
    result: dict[str, Any] = compress(recipe, overrides)
    return result


def _settings(verbose: bool) -> None:
    """Prefect without a server: quiet, its database beside the runs, time enough to start. What you set stands."""
    root = Path(__file__).resolve().parent.parent
    os.environ.setdefault("PREFECT_API_DATABASE_CONNECTION_URL", f"sqlite+aiosqlite:///{root}/artifacts/prefect.db")
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "90")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
        os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
    (root / "artifacts").mkdir(exist_ok=True)


def _end_orphans() -> None:
    """Ends temporary Prefect servers of ours whose run was killed hard: Prefect leaves them running for ever."""
    import psutil

    ours = os.environ["PREFECT_API_DATABASE_CONNECTION_URL"]
    for process in psutil.process_iter(["cmdline", "ppid"]):
        try:
            server = "prefect.server.api.server:create_app" in " ".join(process.info["cmdline"] or ())
            parent = process.parent() if server else None
            orphan = server and (parent is None or parent.pid == 1 or parent.name() in ("systemd", "init"))
            if orphan and process.environ().get("PREFECT_API_DATABASE_CONNECTION_URL") == ours:
                process.terminate()
        except psutil.Error:
            continue


def _terminated(*_: object) -> None:
    raise KeyboardInterrupt


def _fail(error: Exception, verbose: bool) -> None:
    from deepcompression.errors import InputError

    if verbose:
        raise error
    known = type(error).__module__.startswith("deepcompression.")
    text = " ".join(str(error).split()) or type(error).__name__
    kind = "" if known else f"{type(error).__name__}: "
    hint = "" if known else " (run again with -v for the traceback)"
    _stop(2 if isinstance(error, InputError) else 1, f"error: {kind}{text}{hint}")


def _stop(code: int, message: str) -> None:
    print(message, file=sys.stderr)
    raise typer.Exit(code)


if __name__ == "__main__":
    app(prog_name="python -m flows")
