"""The arrows between packages and modules point down."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CODEC = (
    *("cli", "inspection", "terminal", "weights", "tensorfile", "io", "layouts", "format", "blobs", "positions"),
    *(
        "values",
        "grids",
        "_numba",
        "arithmetic",
        "arithmetic_loop",
        "coders",
        "streams",
        "kernels",
        "parallel",
        "bits",
        "dtypes",
        "atomic",
        "metadata",
        "errors",
    ),
)


def _imports(path: Path) -> set[str]:
    """Every module that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _tops(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in _imports(path)}


@pytest.mark.parametrize("path", sorted(ROOT.glob("deepcompression/*.py")), ids=lambda path: path.stem)
def test_library_knows_no_workflow(path: Path) -> None:
    """The library imports neither Prefect nor MLflow nor what is built on it."""
    assert not _tops(path) & {"prefect", "mlflow", "tasks", "flows", "pydantic", "omegaconf"}


@pytest.mark.parametrize("path", sorted(ROOT.glob("tasks/*.py")), ids=lambda path: path.stem)
def test_tasks_know_no_flows_and_few_know_mlflow(path: Path) -> None:
    """Tasks do not import flows; one module has MLflow's runs, one its models, one is what MLflow itself runs."""
    assert "flows" not in _tops(path)
    assert path.stem in ("tracking", "registry", "served") or "mlflow" not in _tops(path)


def test_stages_do_not_know_each_other() -> None:
    """What stages share is a helper below them; fine-tuning is the one that pruning's dropout correction uses."""
    stages = {"prune", "share", "quantize", "recalibrate", "slim", "finetune"}
    for stage in sorted(stages):
        others = {
            name.removeprefix("deepcompression.") for name in _imports(ROOT / "deepcompression" / f"{stage}.py")
        } & (stages - {stage})
        assert others <= ({"finetune"} if stage == "prune" else set()), stage


def test_library_has_no_import_circle() -> None:
    """No module imports, not even inside a function, what imports it in turn: modules are understood one by one."""
    files = [path for path in ROOT.glob("deepcompression/**/*.py") if path.stem != "__init__"]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    TopologicalSorter({name: _imports(path) & set(modules) for name, path in modules.items()}).prepare()


def _loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", [f"deepcompression.{stem}" for stem in CODEC] + ["deepcompression"])
def test_codec_needs_numpy_alone(module: str) -> None:
    """Reading a .dcz imports no torch, and nothing of the workflow (in a fresh process)."""
    if module.endswith("kernels"):
        pytest.importorskip("numba")
    loaded = _loaded_after(f"import {module}")
    assert not loaded & {"torch", "prefect", "mlflow", "sklearn", "pydantic", "tasks", "flows"}


def test_loading_a_file_imports_no_torch(tmp_path: Path) -> None:
    """`deepcompression.load` works in production without torch, numba or dahuffman being imported."""
    statement = (
        "import numpy, deepcompression;"
        f"deepcompression.save({{'w': numpy.eye(9, dtype='f4')}}, r'{tmp_path}/w.dcz', coder='packed');"
        f"assert (deepcompression.load(r'{tmp_path}/w.dcz')['w'] == numpy.eye(9)).all()"
    )
    assert not _loaded_after(statement) & {"torch", "numba", "dahuffman", "safetensors"}


def test_command_lines_are_lazy() -> None:
    """`--help` imports nothing heavy."""
    heavy = {"torch", "prefect", "mlflow", "sklearn", "matplotlib", "omegaconf", "numba"}
    assert not _loaded_after("import flows.__main__") & heavy
    assert not _loaded_after("import deepcompression.cli") & heavy
