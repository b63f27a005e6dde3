"""The arrows between packages and modules point down."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.util import find_spec
from pathlib import Path

import pytest
from imports import ROOT, SOURCES, TOPS, imports_of

# The library from below to above: what stands in one line knows nothing of its own line and of those above it.
LAYERS = (
    ("codec", "models"),
    ("formats",),
    ("network", "data"),
    ("structure",),
    ("training",),
    ("pruning", "sharing", "quantization", "distillation"),  # methods do not know each other
    ("allocation", "runtime", "datafree"),
    ("reconstruction",),
    ("torch",),
    ("measure", "export", "cli"),
)
WORKFLOW = {"prefect", "mlflow", "tasks", "flows", "pydantic", "omegaconf"}


def _above(layer: int) -> set[str]:
    return {f"deepcompression.{name}" for names in LAYERS[layer:] for name in names}


# What no file below a folder imports, inside functions neither: names of modules, or of packages with all that is in
# them. Every folder of modules has its line here; the lines of the folders above it hold for it too.
FORBIDDEN: dict[str, set[str]] = {
    "deepcompression": WORKFLOW,
    **{
        f"deepcompression/{name}": _above(layer) - {f"deepcompression.{name}"}
        for layer, names in enumerate(LAYERS)
        for name in names
        if name != "torch"
    },
    "deepcompression/network/edits": set(),
    "deepcompression/quantization/ranges": set(),
    "deepcompression/quantization/binary": set(),
    "deepcompression/quantization/observers": set(),
    "tasks": {"flows"},
    **{
        f"tasks/{name}": set()
        for name in ("machine", "execution", "methods", "stages", "storage", "tracking", "report", "registry", "upkeep")
    },
    "flows": set(),
    **{f"flows/{name}": {"flows.compress"} for name in ("recipe", "compare", "bench")},
    **{f"flows/{name}": set() for name in ("sweeps", "verbs")},
}
# Of the workflow, what may import MLflow: its runs, its models, and what MLflow itself runs.
MLFLOW = ("tasks/tracking", "tasks/registry")
# Where reading a .dcz begins. All that is reached from there needs numpy alone, but for what only torch does.
ENTRIES = ("deepcompression", "deepcompression.codec.file", "deepcompression.cli.main")
OF_TORCH = {
    "deepcompression.torch",
    "deepcompression.formats.checkpoint",
    "deepcompression.formats.state_dict",
    "deepcompression.models.hub",
}
HEAVY = ("torch", "prefect", "mlflow", "sklearn", "pydantic", "tasks", "flows")


def _folder(path: Path) -> str:
    return path.parent.relative_to(ROOT).as_posix()


def _within(name: str, packages: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in packages)


def test_every_folder_of_modules_has_its_rule() -> None:
    """A package or subpackage that is new is in no line of FORBIDDEN, and would be free to import anything."""
    folders = {_folder(path) for path in SOURCES.values()}
    assert folders - set(FORBIDDEN) == set(), "these folders need a line in FORBIDDEN"
    assert set(FORBIDDEN) - folders == set(), "these lines of FORBIDDEN are about no folder"


def test_every_package_is_looked_at_and_installed() -> None:
    """A package beside the three is in no rule and no wheel; a folder without __init__.py is in no wheel either."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == set(TOPS)
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert set(settings["packages"]["find"]["include"]) == {f"{package}*" for package in packages}
    assert [path for path in SOURCES.values() if not (path.parent / "__init__.py").exists()] == []


@pytest.mark.parametrize("module", SOURCES)
def test_arrows_point_down(module: str) -> None:
    """The library knows neither Prefect nor MLflow nor what is built on it; tasks know no flows."""
    folder = _folder(SOURCES[module])
    rules = set().union(*(names for above, names in FORBIDDEN.items() if f"{folder}/".startswith(f"{above}/")))
    assert {name for name in imports_of(SOURCES[module]) if _within(name, rules)} == set()


def test_few_modules_know_mlflow() -> None:
    """MLflow has its rooms, so that it can be away, or another tracker be put there."""
    knowing = {
        path.relative_to(ROOT).as_posix()
        for module, path in SOURCES.items()
        if "mlflow" in {name.partition(".")[0] for name in imports_of(path)}
    }
    assert {path for path in knowing if not path.startswith(MLFLOW)} == set()


def test_library_has_no_import_circle() -> None:
    """No module imports, not even inside a function, what imports it in turn: modules are understood one by one."""
    modules = {name: path for name, path in SOURCES.items() if path.is_relative_to(ROOT / "deepcompression")}
    modules = {name: path for name, path in modules.items() if path.stem != "__init__"}
    TopologicalSorter({name: imports_of(path) & set(modules) for name, path in modules.items()}).prepare()


def test_workflow_can_be_imported_from_any_of_its_modules() -> None:
    """No module of tasks or flows needs, while it is imported, what imports it in turn."""
    modules = {name: path for name, path in SOURCES.items() if path.stem != "__init__"}
    TopologicalSorter({name: _imports_first(path) & set(modules) for name, path in modules.items()}).prepare()


def _imports_first(path: Path) -> set[str]:
    """What a file imports while it is imported itself: not in functions, nor for types alone."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(m.partition('.')[0] for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def _reached() -> list[str]:
    """Modules of the library that reading and `dcz` come to, by name as a text too; without those for torch's files."""
    found: dict[str, None] = {}
    waiting = list(ENTRIES)
    while waiting:
        name = waiting.pop()
        if name not in found and name not in OF_TORCH:
            found[name] = None
            waiting += sorted((imports_of(SOURCES[name]) | _texts(SOURCES[name])) & set(SOURCES))
    return list(found)


def _texts(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_codec_needs_numpy_alone() -> None:
    """Reading a .dcz imports no torch, and nothing of the workflow: each module that it comes to, in one process."""
    names = [name for name in _reached() if find_spec("numba") or not name.endswith("kernels")]
    assert len(names) > 20
    code = (
        "import importlib, sys\n"
        f"for name in {names}:\n"
        "    importlib.import_module(name)\n"
        f"    if heavy := {{one.partition('.')[0] for one in sys.modules}} & {{*{HEAVY}}}:\n"
        "        sys.exit(f'{name} imports {heavy}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]


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
    assert not _loaded_after("import deepcompression.cli.main") & heavy
