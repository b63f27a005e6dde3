"""Verbs around runs: serve, servers, store, sync, schema."""

from __future__ import annotations

import json
import signal
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from flows.process import guarded, terminated
from flows.verbs.options import Runs, StoreOption, Uri, Verbose
from tasks.root import ROOT


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


def store(
    where: StoreOption = "artifacts/store",
    older: Annotated[str | None, typer.Option(help="remove what was not used for so long, such as 30d")] = None,
    size: Annotated[
        str | None, typer.Option(help="remove what was used longest ago until it fits, such as 10GB")
    ] = None,
    gone: Annotated[bool, typer.Option("--gone", help="remove what no run in --runs has used")] = False,
    delete_runs: Annotated[
        bool,
        typer.Option(
            "--delete-runs",
            help="with --older, instead: delete runs that old, folder, MLflow run and Prefect flow run; --runs with no "
            "folder behind it is the same",
        ),
    ] = False,
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
      python -m flows store --runs --older 30d --dry-run
    """
    with guarded(verbose, False):
        from flows import history, upkeep

        if delete_runs:
            _delete_runs(where, runs, older, tracking_uri or history.default_uri(), dry_run)
            return
        upkeep.show_store(where)
        if older or size or gone:
            uri = tracking_uri or history.default_uri()
            upkeep.clean(where, runs, older=older, size_=size, gone=gone, uri=uri, dry_run=dry_run)


def _delete_runs(where: str, runs: str, older: str | None, uri: str, dry_run: bool) -> None:
    from deepcompression.errors import RecipeError, RunError
    from flows.forgotten import forget
    from flows.process import prefect

    if not older:
        raise RecipeError("store --runs: which ones? --older 30d deletes runs that were last at work so long ago")
    if failed := forget(where, runs, older, uri, prefect, dry_run=dry_run):
        raise RunError(failed[0] + (f" (and {len(failed) - 1} more)" if failed[1:] else ""))


class BareRuns(TyperCommand):
    """``--runs`` with no folder behind it means the runs themselves."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments, with the long name in its place."""
        following = [*args, "-"][1:]
        bare = [one == "--runs" and after.startswith("-") for one, after in zip(args, following, strict=True)]
        told = ["--delete-runs" if is_bare else one for one, is_bare in zip(args, bare, strict=True)]
        return list(super().parse_args(ctx, told))


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


def schema() -> None:
    """Print the JSON schema of recipes, for editors (conf/recipe.schema.json)."""
    from flows.recipe.schema import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=2))
