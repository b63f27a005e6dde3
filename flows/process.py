"""The process of a verb: quiet libraries, one Prefect server, and every error as one line with its exit code."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import typer

from deepcompression.cli.terminal import tell_of_compiling
from deepcompression.errors import one_line
from flows.watchdog import AGAIN, Terminated, Watchdog
from tasks.root import NAME, ROOT

PREFECT_SECONDS = 15.0
MODULE = "python -m flows"
FLOW = {  # what the extra [flow] brings, as it is imported
    "torch", "sklearn", "scipy", "prefect", "fastapi", "sqlalchemy", "mlflow", "omegaconf", "pydantic", "filelock",
    "psutil", "matplotlib", "jinja2", "fsspec", "optuna",
}  # fmt: skip


@contextlib.contextmanager
def guarded(verbose: bool, quiet: bool) -> Iterator[None]:
    """What every verb shares: quiet libraries, and every error as one line with its exit code."""
    from tasks import secrets

    _settings(verbose)
    tell_of_compiling(_say)
    if quiet:
        from tasks import console

        console.quiet()
    with secrets.terminal():
        try:
            yield
        except KeyboardInterrupt as told:
            by_signal = isinstance(told, Terminated)
            stop(143 if by_signal else 130, f"stopped: {'terminated' if by_signal else 'interrupted'}; {AGAIN}")
        except typer.Exit:
            raise
        except Exception as error:
            if _swallowed(error):
                stop(130, f"stopped: interrupted; {AGAIN}")
            fail(secrets.without_secrets(error), verbose)


def _swallowed(error: BaseException | None) -> bool:
    """Whether an error is what compiled code made of a Ctrl-C that came while it called back."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or "KeyboardInterrupt" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _say(text: str) -> None:
    from tasks import console

    console.say(text)


def begin(tell: Callable[[Any], None], check: Callable[[], None] | None = None) -> Watchdog:
    """Before a flow: nothing will hold it up when it is told to end, what earlier ones left running is ended.

    Args:
        tell: shows what came out; the exit code is 0, or that of the ``typer.Exit`` that it raises.
        check: raises what is wrong with the input: before a server is asked, or while ours starts, which takes longer.
    """
    from flows import watchdog

    def code_of(result: Any) -> int:
        try:
            tell(result)
        except typer.Exit as stopped:
            return int(stopped.exit_code)
        return 0

    started = watchdog.start(code_of)
    end_orphans()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with (
        _prefect(partial(_checked, check)) as waiting,
        _importing(),
    ):  # every run needs these; a server takes longer to start
        import torch

        import flows.compress  # noqa: F401
        from tasks.tracking.client import imported

        imported()
        if waiting:
            import matplotlib.figure  # noqa: F401  # of the report's figures
            import torch._dynamo  # noqa: F401  # the first optimizer imports it, even where nothing is compiled
    return started


def _checked(check: Callable[[], None] | None) -> None:
    """The check, without garbage collection: most of it is imports."""
    gc.disable()
    try:
        _ = check and check()
    finally:
        gc.enable()


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """No garbage collection meanwhile: imports leave none, and looking for it is a fifth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what is imported stays: later collections need not look at it either
        gc.enable()


def prefect() -> contextlib.AbstractContextManager[object]:
    """A Prefect server answers while it lasts: the one that is named, or else a temporary one."""

    @contextlib.contextmanager
    def there() -> Iterator[None]:
        end_orphans()
        with _prefect(partial(_checked, None)):
            pass
        yield

    return there()


@contextlib.contextmanager
def _prefect(check: Callable[[], None]) -> Iterator[bool]:
    """A Prefect server that is named and away is told at once; where none is named, one is there after the block.

    Args:
        check: called first; while our server starts only where that finds its database made: one that is stopped while
            it makes it would leave half of it.

    Yields:
        Whether one is being started, which the end of the block waits for.
    """
    from flows import servers

    if servers.unconfigured() or _starts_its_own():
        made = servers.has_database()
        if not made:
            check()
        with servers.temporary():
            if made:
                check()
            yield True
        return
    check()
    from prefect.settings import get_current_settings

    from deepcompression.errors import RunError
    from tasks.secrets import masked
    from tasks.upkeep.liveness import prefect_answers

    if (url := get_current_settings().api.url) and not prefect_answers(PREFECT_SECONDS):
        raise RunError(
            f"no Prefect server answers at {masked(url)}: start it, or unset PREFECT_API_URL (runs then start one)"
        )
    yield False


def _starts_its_own() -> bool:
    from prefect.settings import get_current_settings

    settings = get_current_settings()
    return settings.api.url is None and bool(settings.server.ephemeral.enabled)


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


def print_json(value: Any) -> None:
    """Prints a result on stdout, secrets hidden."""
    from tasks import secrets
    from tasks.storage.store import as_json

    print(as_json(secrets.hidden(value)), file=secrets.unmasked_stdout())


def end_orphans() -> None:
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


def terminated(*_: object) -> None:
    """A signal's handler: ends the command as Ctrl-C does, with the exit code of SIGTERM."""
    raise Terminated


def fail(error: BaseException, verbose: bool) -> None:
    """Tells an error in one line, or with its traceback, and ends the command: 2 for the user's mistakes, of which each
    has its line, else 1."""
    from deepcompression.errors import InputError

    code = 2 if isinstance(error, InputError) else 1
    others = error.others if isinstance(error, InputError) else ()
    if verbose:
        stop(code, "".join(traceback.format_exception(error)).rstrip())
    if type(error).__module__.partition(".")[0] in ("httpx", "httpcore"):
        print(f"error: Prefect's server does not answer any more ({error}); {AGAIN}", file=sys.stderr, flush=True)
        os._exit(1)  # Prefect would try for a minute to deliver its events
    if isinstance(error, ModuleNotFoundError) and error.name in FLOW:
        stop(2, f"error: {command()} needs {error.name}: pip install 'deep-compression[flow]'")
    known = type(error).__module__.startswith("deepcompression.")
    text = one_line(error) or type(error).__name__
    kind = "" if known else f"{type(error).__name__}: "
    hint = "" if known else " (run again with -v for the traceback)"
    stop(code, "\n".join([f"error: {kind}{text}{hint}", *(f"error: {one_line(one)}" for one in others)]))


def stop(code: int, message: str) -> None:
    """Tells why, and ends the command; what still waits for a server does not hold it up."""
    from flows import watchdog

    print(*map(printable, message.split("\n")), sep="\n", file=sys.stderr, flush=True)  # a traceback has many lines
    watchdog.leave_soon(code)
    raise typer.Exit(code)


def command() -> str:
    """What was typed to begin this process."""
    return NAME if Path(sys.argv[0]).stem == NAME else MODULE


def printable(message: str) -> str:
    """A message may quote what a server or a file says: no sequence in it reaches the terminal. It names the command
    that was typed."""
    told = message if command() == MODULE else message.replace(MODULE, command())
    return "".join(one if one.isprintable() else "?" for one in told)
