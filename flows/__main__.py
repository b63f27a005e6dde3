"""``python -m flows``, installed ``deep-compression``: the one workflow command line."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from flows.process import command, printable
from flows.verbs import keeping, planning, results, running
from flows.verbs.bench import bench
from tasks.root import NAME, ROOT, VARIABLE

_UsageError: Any = typer.BadParameter.__base__  # click's; typer has it from click, or brings its own

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Deep Compression of your PyTorch model as a tracked flow: one YAML in, one small .dcz file out.",
    epilog="Start with: python -m flows run conf/digits.yaml",
)
VERBS = (
    planning.new, planning.plan, running.run, running.rerun, running.sweep, keeping.serve, keeping.servers,
    results.compare, results.export, results.evaluate, bench, keeping.store, keeping.sync, keeping.schema,
)  # fmt: skip
for verb in VERBS:
    app.command(cls=keeping.BareRuns if verb is keeping.store else None)(verb)


def _version(wanted: bool) -> None:
    if wanted:
        from deepcompression import __version__

        typer.echo(f"{NAME} {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Keeps `run` a word of its own."""


def main() -> None:
    """Runs a verb; a mistyped one is one line on stderr."""
    if command() == NAME:
        _as_installed()
    try:
        code = app(prog_name=command(), standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not isinstance(error, _UsageError):
            raise
        code = _misused(error)
    sys.exit(code)


def _misused(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        path = error.ctx.command_path if error.ctx else command()
        print(printable(f"error: {error.format_message()} ({path} --help tells more)"), file=sys.stderr)
    return 2


def _as_installed() -> None:
    """The help names the command that was typed, and what it starts has its folder."""
    os.environ[VARIABLE] = str(ROOT)
    said = str(app.info.epilog)
    app.info.epilog = said.replace("python -m flows run conf/digits.yaml", f"{NAME} new my-net")
    for one in app.registered_commands:
        assert one.callback is not None
        one.callback.__doc__ = (one.callback.__doc__ or "").replace("python -m flows", NAME)


if __name__ == "__main__":
    main()
