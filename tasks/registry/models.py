"""All of MLflow's model registry: a run's file as a model that MLflow loads by itself, its versions, the champion."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from deepcompression.errors import FactoryError, RunError, one_line
from tasks.execution.run import Run
from tasks.execution.sources import imports_of
from tasks.machine.deadline import Bounded
from tasks.secrets import masked
from tasks.storage.store import file_digest
from tasks.tracking.client import client_of

LIBRARY = "deepcompression"
ALIAS = "champion"
FILE = "artifacts/model.dcz"  # in a logged model's folder
MISSING = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # no such model, no such alias
CODE = {".py", ".json", ".yaml", ".yml", ".toml", ".txt"}  # of a package; weights and data beside them stay away
PROBE = "import sys, mlflow.pyfunc as p; model = p.load_model(sys.argv[1]); model.predict(model.input_example)"
_SAVING = threading.Lock()  # MLflow passes the model of a code file through a global variable

os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@dataclass(frozen=True)
class Measured:
    """What two files are compared by; kept in the tags of a model version.

    ``val_correct`` (of ``val_total`` samples) exists where a sample's score is right or wrong.
    """

    run: str
    sha256: str
    file_bytes: int
    ratio: float
    metric: str
    val_metric: float
    val_correct: int | None
    val_total: int | None
    data_digest: str

    def tags(self) -> dict[str, str]:
        """As text; what does not exist is left out."""
        return {name: str(value) for name, value in vars(self).items() if value is not None}

    @classmethod
    def of_tags(cls, tags: Mapping[str, str]) -> Measured | None:
        """The inverse of ``tags``; None where a tag is missing or is no number."""
        try:
            counts = [int(tags[name]) if name in tags else None for name in ("val_correct", "val_total")]
            return cls(
                tags["run"], tags["sha256"], int(tags["file_bytes"]), float(tags["ratio"]), tags["metric"],
                float(tags["val_metric"]), *counts, tags["data_digest"],
            )  # fmt: skip
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True)
class Champion:
    """The version that the alias names; ``measured`` is None where something else than a run registered it."""

    version: int
    measured: Measured | None


class Registry:
    """One registered model at one MLflow server or database. Every method may raise whatever its client throws."""

    def __init__(self, uri: str, model: str) -> None:
        self.uri, self.model = uri, model

    @cached_property
    def client(self) -> Any:
        """A client for runs and registry alike; an answering server, a migrated database."""
        client_of(self.uri)
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return client if self.uri.startswith("sqlite:///") else Bounded(client)

    def champion(self) -> Champion | None:
        """What the alias names now, or None: no such model, or no version of it has the alias."""
        from mlflow.exceptions import MlflowException

        try:
            found = self.client.get_model_version_by_alias(self.model, ALIAS)
        except MlflowException as error:
            if error.error_code == "PERMISSION_DENIED":  # so a server with log-in answers where there is no such model
                self.client.create_registered_model(self.model)
            elif error.error_code not in MISSING:
                raise
            return None
        return Champion(int(found.version), Measured.of_tags(found.tags))

    def upload(self, folder: Path, run_id: str) -> str:
        """Logs a model folder with a run, whose status stays as it is; returns MLflow's id of the logged model."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        experiment = self.client.get_run(run_id).info.experiment_id
        logged = self.client.create_logged_model(experiment, name=self.model, source_run_id=run_id)
        described = Model.load(str(folder))
        described.run_id, described.model_id, described.artifact_path = (
            run_id,
            logged.model_id,
            logged.artifact_location,
        )
        described.save(str(folder / "MLmodel"))
        self.client.log_model_artifacts(logged.model_id, str(folder))
        self.client.finalize_logged_model(logged.model_id, "READY")
        self.client.log_outputs(run_id, models=[LoggedModelOutput(logged.model_id, step=0)])
        return str(logged.model_id)

    def register(self, model_id: str, run_id: str, measured: Measured) -> int:
        """Makes a new version of a logged model, tagged, without the alias; returns its number."""
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(self.model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # Of a source models:/<id> a database's client would look the id up at MLflow's global tracking URI.
        source = self.client.get_logged_model(model_id).artifact_location
        tags = {**measured.tags(), "recipe_digest": self.client.get_run(run_id).data.tags.get("recipe.digest", "")}
        told = f"{measured.file_bytes:,} bytes, {measured.ratio:.1f}x smaller than the dense model; validation "
        told += f"{measured.metric} {measured.val_metric:.4f}"
        made = self.client.create_model_version(self.model, source, run_id, tags, description=told, model_id=model_id)
        link = json.dumps([{"name": self.model, "version": made.version}])  # MLflow's pages lead from model to version
        self.client.set_logged_model_tags(model_id, {"mlflow.modelVersions": link})
        return int(made.version)

    def crown(self, version: int) -> None:
        """Moves the alias to a version."""
        self.client.set_registered_model_alias(self.model, ALIAS, str(version))

    def withdraw(self, version: int, model_id: str) -> None:
        """Takes back a version that has not got the alias."""
        self.client.delete_model_version(self.model, str(version))
        self.client.delete_logged_model(model_id)


def champion_files(uri: str) -> frozenset[str]:
    """SHA-256 of every file that is the champion of some model.

    Raises:
        RunError: the registry does not answer.
    """
    try:
        client = client_of(uri)
        models = [one for one in client.search_registered_models() if ALIAS in one.aliases]
        champions = [client.get_model_version_by_alias(one.name, ALIAS) for one in models]
    except Exception as error:  # whatever a server or its client throws
        reason = masked(one_line(error))[:160]
        raise RunError(f"{masked(uri)} does not say which files are champions: {reason}") from None
    return frozenset(one.tags["sha256"] for one in champions if "sha256" in one.tags)


def champion_file(uri: str, model: str, folder: Path) -> Path:
    """The champion's ``.dcz``, downloaded into ``folder``: the very file that was registered, and nothing of it is run.

    The SHA-256 is the registry's, which whoever writes to the artifact store cannot change.

    Raises:
        RunError: the registry does not answer, has no champion of that name, or not its SHA-256.
        ChecksumMismatch: the artifact store has another file by now.
    """
    from mlflow.artifacts import download_artifacts

    from tasks.registry.served import check_file

    try:
        version = client_of(uri).get_model_version_by_alias(model, ALIAS)
        sha256 = version.tags.get("sha256")
        source = f"{str(version.source).rstrip('/')}/{FILE}"
        path = download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=uri) if sha256 else ""
    except Exception as error:  # whatever a server, its client or its artifact store throws
        reason = one_line(error)[:160]
        raise RunError(f"{masked(uri)} does not give the champion of {model}: {masked(reason)}") from None
    if not sha256:
        raise RunError(f"{masked(uri)}: version {version.version} of {model} has no sha256: no run registered it")
    check_file(path, sha256)
    return Path(path)


def package(run: Run, file: Path, example: Any, folder: Path) -> None:
    """Writes the folder that MLflow loads: the file, the code that builds its model, an example, a signature.

    Args:
        run: the run.
        file: its ``.dcz``.
        example: a few samples as the model takes them: an array, or name -> array in the order of its arguments.
        folder: a new folder; the model lies in its ``model``, copies of code in its ``code``.

    Raises:
        InputError: the factory and the file do not fit each other.
        FactoryError: the code of the factory cannot be copied.
        RunError: the folder cannot be loaded by itself in a fresh process.
    """
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import PythonModelContext, save_model
    from mlflow.types import ParamSchema, ParamSpec

    inputs = list(example) if isinstance(example, Mapping) else None
    config = {"factory": run.model.factory, "kwargs": run.model.arguments(), "inputs": inputs, "device": "auto"}
    classes = list(run.splits().classes or ())
    config |= {"sha256": file_digest(file), "classes": classes, "names": bool(classes) and _counts_right(run)}
    artifacts, served = {"model": str(file)}, Path(__file__).with_name("served.py")
    code, requirements = _code(run.model.factory.partition(":")[0], folder / "code")
    with _SAVING:
        from tasks.registry.served import Compressed

        model, context = Compressed(), PythonModelContext(artifacts, {**config, "device": run.device})
        model.load_context(context)
        save_model(
            str(folder / "model"),
            python_model=str(served),
            artifacts=artifacts,
            model_config=config,
            signature=ModelSignature(
                _schema(example),
                None if config["names"] else _schema(model.predict(context, example)),
                ParamSchema([ParamSpec("raw", "boolean", False)]),
            ),
            input_example=example,
            code_paths=[str(path) for path in code],
            pip_requirements=requirements,
        )
    _probe(folder / "model")


def _counts_right(run: Run) -> bool:
    """Whether each sample is one class of several: by the metric that counts so."""
    from deepcompression.training.problem import Accuracy

    return isinstance(run.metric_object(), Accuracy)


def _probe(folder: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-B", "-P", "-c", PROBE, str(folder)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (masked(done.stderr).strip().splitlines() or ["no message"])[-1]
        raise RunError(
            f"model: it does not answer by itself in a fresh process ({last}); its factory may need files or code "
            "that are no Python packages"
        )


def _schema(value: Any) -> Any:
    """The schema of an array or a flat mapping of arrays, batches of any size; None for what MLflow has no word for."""
    import numpy as np
    from mlflow.types import Schema, TensorSpec

    named: dict[str | None, Any] = dict(value) if isinstance(value, Mapping) else {None: value}
    if not all(isinstance(one, np.ndarray) and one.ndim for one in named.values()):
        return None
    return Schema([TensorSpec(one.dtype, (-1, *one.shape[1:]), name) for name, one in named.items()])


def _code(module: str, into: Path) -> tuple[list[Path], list[str]]:
    """The library and the user's packages that ``module`` needs, copied; installed ones as pinned requirements."""
    needed = imports_of(module)
    into.mkdir()
    for top in sorted({LIBRARY, *needed.own}):
        spec = importlib.util.find_spec(top)
        assert spec is not None
        if not Path(str(spec.origin or next(iter(spec.submodule_search_locations or ()), ""))).exists():
            raise FactoryError(f"{top} lies in an archive, from which a registered model takes no code; unpack it")
        for place in spec.submodule_search_locations or []:
            shutil.copytree(place, into / top, ignore=_not_code, dirs_exist_ok=True)
        if not spec.submodule_search_locations:
            shutil.copy(str(spec.origin), into)
    providers = metadata.packages_distributions() if needed.installed else {}
    names = {"numpy", "torch", *(providers[top][0] for top in needed.installed if top in providers)}
    # A local version such as 2.13.0+cpu names a build that another machine's index does not have.
    return sorted(into.iterdir()), sorted(f"{name}=={metadata.version(name).partition('+')[0]}" for name in names)


def _not_code(folder: str, names: list[str]) -> list[str]:
    kept = {one.name for one in Path(folder).iterdir() if one.is_dir() or one.suffix in CODE}
    return [name for name in names if name not in kept or name.startswith(".") or name == "__pycache__"]
