"""Models, data, steps and metrics as people bring them: each runs with the right numbers, or one line refuses it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deepcompression.errors import InputError
from deepcompression.problem import Accuracy, cross_entropy_step, evaluate
from flows import recipe as recipes
from flows.compress import compress
from tasks.sources import imports_of

CASES = Path(__file__).resolve().parents[1] / "cases"


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package of their code, importable."""
    monkeypatch.syspath_prepend(str(CASES))


@pytest.fixture
def run(tmp_path: Path, prefect_server: str, mlflow_template: Path) -> Callable[..., dict[str, Any]]:
    """Runs a case by its name, everything that it writes in the test's own folder; the test split stays unread."""

    def run_case(name: str, **overrides: Any) -> dict[str, Any]:
        recipe = yaml.safe_load((CASES / f"{name}.yaml").read_text())
        database = tmp_path / "mlflow.db"
        if not database.exists():
            shutil.copy(mlflow_template, database)
        places = {"store": str(tmp_path / "store"), "runs": str(tmp_path / "runs"), "test": False, "device": "cpu"}
        tracking = {"uri": f"sqlite:///{database}", "experiment": "cases"}
        result: dict[str, Any] = compress({**recipe, **places, "tracking": tracking}, overrides)
        return result

    return run_case
