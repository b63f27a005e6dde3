"""A client of MLflow that never blocks for minutes, and what is asked of a server about runs that are not at hand."""

from __future__ import annotations

import contextlib
import logging
import os
import urllib.error
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock

from deepcompression.errors import RunError, one_line
from tasks.machine.deadline import SLOWEST, Bounded, within
from tasks.machine.environment import opener
from tasks.root import ROOT
from tasks.secrets import masked

RECIPE_BYTES = 256 * 1024  # of a recipe that a server has; far above any
KNOCK_SECONDS = 5.0
# By default one call to a server that is away blocks for four minutes.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# It would stand on stdout, which `--json` promises to JSON alone.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


def imported() -> None:
    """Imports MLflow, which takes a second: at a time when the process would wait anyway."""
    import mlflow  # noqa: F401


def terminate(uri: str, run_id: str) -> None:
    """Ends the MLflow run of a process that died on another machine, if it is still said to be running."""
    client = client_of(uri)
    if client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, "KILLED")


def forget(uri: str, run_id: str) -> None:
    """Deletes an MLflow run, as its pages do: ``mlflow gc`` then removes it for ever. Nothing happens where it is gone.

    Raises:
        Exception: whatever a server or its client throws.
    """
    from mlflow.exceptions import MlflowException

    try:
        client_of(uri).delete_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "INVALID_STATE"):
            raise


def recipe_of(uri: str, run_id: str) -> str:
    """The recipe, as YAML, that an MLflow run logged.

    Raises:
        RunError: no such server, run, or artifact.
    """
    import tempfile

    try:
        client = client_of(uri)
        sizes = [one.file_size for one in client.list_artifacts(run_id) if one.path == "recipe.yaml" and not one.is_dir]
        if not sizes:
            raise FileNotFoundError("it logged no file recipe.yaml")
        with tempfile.TemporaryDirectory() as folder:
            _check_size(sizes[0])
            path = Path(client.download_artifacts(run_id, "recipe.yaml", folder))
            _check_size(path.stat().st_size)
            return path.read_text(encoding="utf-8")
    except Exception as error:  # whatever a tracking server or its client throws
        reason = masked(one_line(error))[:200]
        raise RunError(f"MLflow run {run_id} in {masked(uri)}: its recipe cannot be read: {reason}") from None


def _check_size(size: int | None) -> None:
    if size is not None and size > RECIPE_BYTES:
        raise RunError(f"recipe.yaml has {size:,} bytes; expected {RECIPE_BYTES:,} at most")


def runs_of_experiment(uri: str, experiment: str) -> list[str]:
    """Ids of an experiment's finished runs that are no children, newest first; one that missed its aim is finished too.

    Raises:
        RunError: no such server, or no such experiment.
    """
    try:
        client = client_of(uri)
        found = client.get_experiment_by_name(experiment)
        runs = client.search_runs([found.experiment_id], "attributes.status != 'RUNNING'") if found else None
        there = [] if found else [repr(one.name) for one in client.search_experiments()]
    except Exception as error:
        raise RunError(f"{masked(uri)} does not answer: {masked(' '.join(str(error).split()))[:160]}") from None
    if runs is None:
        raise RunError(f"{masked(uri)} has no experiment {experiment!r}; there are {', '.join(there)}")
    whole = [run for run in runs if run.info.status == "FINISHED" or "verdict" in run.data.tags]
    return [str(run.info.run_id) for run in whole if "mlflow.parentRunId" not in run.data.tags]


def run_of_flow(uri: str, flow_run_id: str) -> str | None:
    """The id of the MLflow run that a Prefect flow run opened (the parent, of several), or None.

    Raises:
        RunError: the server does not answer.
    """
    try:
        client = client_of(uri)
        experiments = [one.experiment_id for one in client.search_experiments()]
        query = f"tags.`prefect.flow_run_id` = '{flow_run_id}'"
        runs = client.search_runs(experiments, query, order_by=["attributes.start_time ASC"], max_results=1)
    except Exception as error:
        raise RunError(f"{masked(uri)} does not answer: {masked(' '.join(str(error).split()))[:160]}") from None
    return str(runs[0].info.run_id) if runs else None


def resolve_uri(uri: str) -> str:
    """A tracking URI with a relative SQLite path made absolute from the repository's root."""
    if uri.startswith("sqlite:///") and not uri.startswith("sqlite:////"):
        return f"sqlite:///{ROOT / uri.removeprefix('sqlite:///')}"
    return uri


@lru_cache
def client_of(uri: str, slowest: float = SLOWEST) -> Any:
    """A client whose store exists and answers; a fresh database is migrated, by one process at a time.

    Args:
        uri: of a server or a database. Each call of a server's client has a deadline (``tasks.machine.deadline``).
        slowest: bytes a second: what carries files has more time for more bytes.

    Raises:
        OSError: a server that does not answer its health check.
        RunError: one that did not answer it whole within 5 s.
    """
    if uri.startswith(("http://", "https://")):
        within(KNOCK_SECONDS, _knock, uri)
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    if not uri.startswith("sqlite:///"):
        return Bounded(MlflowClient(tracking_uri=uri), slowest)
    database = Path(uri.removeprefix("sqlite:///"))
    database.parent.mkdir(parents=True, exist_ok=True)
    # Processes that open a fresh database together corrupt each other's migration.
    with FileLock(f"{database}.lock"):
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


def _knock(uri: str) -> None:
    """Any answer will do, 401 too: somebody is there."""
    parts = urlsplit(uri)
    host = parts.netloc.rpartition("@")[2]  # urllib does not understand user:password@
    url = f"{parts.scheme}://{host}{parts.path.rstrip('/')}/health"
    with contextlib.suppress(urllib.error.HTTPError):
        opener(url).open(url, timeout=3).close()
